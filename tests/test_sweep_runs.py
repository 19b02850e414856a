import json

import pytest
from test_sweep import run_of

from detector.config import override
from detector.run_page import RunPageError
from detector.sweep_runs import add_cost, read_run, run_state


def test_what_is_left_to_do_for_a_run(tmp_path):
    config = override({}, ["train.steps=5"], "test")
    run = tmp_path / "run"
    assert run_state(run, config) == "new"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text(config.to_yaml())
    assert run_state(run, config) == "new"  # no checkpoint to go on from
    (run / "checkpoints" / "step-000002").mkdir()
    (run / "checkpoints" / "last").symlink_to("step-000002")
    assert run_state(run, config) == "cut off"
    (run / "evaluation.json").write_text("{}")
    assert run_state(run, config) == "cut off"
    (run / "freeze_proof.json").write_text("{}")
    assert run_state(run, config) == "finished"
    with pytest.raises(ValueError, match=r"another configuration \(train.steps 5 -> 6\)"):
        run_state(run, override({}, ["train.steps=6"], "test"))
    # Written by a version that knew fewer keys.
    (run / "config.yaml").write_text("train: {steps: 5}")
    assert run_state(run, config) == "finished"
    with pytest.raises(ValueError, match=r"\(freeze_schedule \[\] -> gradual\)"):
        run_state(run, override({}, ["train.steps=5", "freeze_schedule=gradual"], "test"))


def test_a_run_is_read_back(tmp_path):
    scores = {name: 0.5 for name in run_of("rpn", 0).numbers}
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0, "images_per_second": 4.0}]
    rows += [{"step": 3, "images_per_second": 8.0}, {"step": 4, "images_per_second": 80.0}]

    def stage(*fates):
        names = ("a", "b", "c")
        rows = [
            {"path": p, "shape": [2, i + 1], "fate": f}
            for i, (p, f) in enumerate(zip(names, fates, strict=True))
        ]
        return {"from_step": 0, "plan": {"variables": rows}}

    files = {
        "evaluation.json": json.dumps({**scores, "classes": {"cat": {"AP": 0.4, "AP50": 0.6}}}),
        "plan.json": json.dumps(
            {"stages": [stage("trained", "frozen", "updated"), stage("trained", "trained", "frozen")]}
        ),
        "detections.json": "[]",
        "config.yaml": "train: {seed: 3, batch_size: 8}",
        "metrics.jsonl": "".join(json.dumps(row) + "\n" for row in rows),
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert read_run(tmp_path).seconds is None
    add_cost(tmp_path, 10.0, 500)
    add_cost(tmp_path, 5.0, 300)  # resumed
    remedy = "; delete .* to train the run again"
    for name, damaged, message in (
        ("plan.json", files["plan.json"][:-5], f"plan.json is damaged: expected JSON: .*{remedy}"),
        ("cost.json", "{", f"cost.json is damaged: expected JSON: .*{remedy}"),
        ("evaluation.json", "{}", f"evaluation.json is damaged: it lacks the key 'AP'{remedy}"),
        ("detections.json", None, f"detections.json: no such file{remedy}"),
        ("config.yaml", "train: [", f"config.yaml: not YAML: (.|\n)*{remedy}"),
        (
            "metrics.jsonl",
            '{"step": 1\n' + files["metrics.jsonl"],
            "metrics.jsonl: line 1 is damaged: expected",
        ),
        ("metrics.jsonl", None, f"metrics.jsonl: no such file{remedy}"),
    ):
        whole = (tmp_path / name).read_text()
        (tmp_path / name).unlink() if damaged is None else (tmp_path / name).write_text(damaged)
        with pytest.raises(RunPageError, match=message):
            read_run(tmp_path)
        (tmp_path / name).write_text(whole)
    with open(tmp_path / "metrics.jsonl", "a") as lines:
        lines.write('{"step": 5, "lo')  # as a killed run leaves it
    run = read_run(tmp_path)
    assert (run.seed, run.classes, run.step_seconds) == (3, {"cat": 0.4}, 1.0)
    assert (run.trained_parameters, run.parameters) == (2 + 4, 2 + 4 + 6)
    assert (run.seconds, run.peak_memory_bytes) == (15.0, 500)


@pytest.fixture
def scheduled(tmp_path):
    """Return a function that writes a run of 2 images a step, with stages from 0, 10, 15 and 40 on."""
    names = run_of("rpn", 0).numbers

    def write(rates):
        files = {
            "evaluation.json": {**dict.fromkeys(names, 0.5), "classes": {}},
            "plan.json": {
                "stages": [{"from_step": step, "plan": {"variables": []}} for step in (0, 10, 15, 40)]
            },
            "detections.json": [],
            "config.yaml": {"train": {"seed": 0, "batch_size": 2}},
        }
        for name, value in files.items():
            (tmp_path / name).write_text(json.dumps(value))
        rows = [{"step": step, "images_per_second": rate} for step, rate in rates.items()]
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return read_run(tmp_path)

    return write


def test_the_step_of_a_schedule_is_the_mean_of_its_stages(scheduled):
    # 0.5 s for 10 steps, 0.25 s (and an outlier) for 5, 0.2 s for 25, and 0.1 s for the 10 that are left.
    run = scheduled({5: 4.0, 10: 4.0, 11: 8.0, 13: 80.0, 14: 8.0, 15: 8.0, 40: 10.0, 45: 20.0, 50: 20.0})
    assert run.step_seconds == pytest.approx((10 * 0.5 + 5 * 0.25 + 25 * 0.2 + 10 * 0.1) / 50)
    assert run.boundaries == (10, 15, 40)


def test_a_stage_that_a_run_never_came_to_or_was_not_timed_does_not_count(scheduled):
    run = scheduled({10: 4.0, 40: 10.0})  # stopped early, as its last stage would have begun
    assert run.boundaries == (10, 15)
    assert run.step_seconds == pytest.approx((10 * 0.5 + 25 * 0.2) / 35)

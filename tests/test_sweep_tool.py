"""`tools/sweep.py`: mostly with a stand-in for tools/train.py that writes a run's folder without training."""

import json
import os
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import sweep as sweep_tool
import yaml
from small_runs import SMALL_MODEL, drawn_shapes

from data.coco import read_coco

pytestmark = pytest.mark.usefixtures("built_once")

ROOT = Path(__file__).resolve().parents[1]

# Takes the options of tools/train.py.  Freezing the RPN fails, or waits for Ctrl-C, where the folder says so.
STAND_IN = """
import argparse, json, signal, sys, time
from pathlib import Path
sys.path[:0] = [{tools!r}, {root!r}]
import command_line
parser = argparse.ArgumentParser()
command_line.add_config_options(parser)
command_line.add_freeze_options(parser)
parser.add_argument("--run", type=Path)
parser.add_argument("--resume", type=Path)
parser.add_argument("--no-progress", action="store_true")
arguments = parser.parse_args()
folder = arguments.run or arguments.resume
with open({calls!r}, "a") as calls:
    how = "resume" if arguments.resume else "run"
    calls.write(json.dumps([how, folder.parent.name, folder.name]) + "\\n")
(folder / "checkpoints" / "step-000001").mkdir(parents=True, exist_ok=True)
if arguments.run:
    assert not (folder / "config.yaml").exists()
    (folder / "config.yaml").write_text(command_line.load_config(arguments).to_yaml())
    (folder / "checkpoints" / "last").symlink_to("step-000001")
mood = Path({mood!r})
if folder.parent.name == "rpn" and mood.exists():
    if mood.read_text() == "fail":
        sys.exit("error: it failed")
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
    mood.write_text("ready")
    time.sleep(60)
frozen = folder.parent.name == "rpn"
rows = [dict(path="rpn/kernel", shape=[3], fate="frozen" if frozen else "trained")]
rows.append(dict(path="box_classifier/kernel", shape=[7], fate="trained"))
names = "AP AP50 AP75 AP_small AP_medium AP_large AR_1 AR_10 AR_100 AR_small AR_medium AR_large".split()
found = json.loads(Path({detections!r}).read_text())
write = lambda name, value: (folder / name).write_text(json.dumps(value))
write("plan.json", dict(stages=[dict(from_step=0, plan=dict(variables=rows))]))
classes = dict.fromkeys(["circle", "square", "triangle", "star"], dict(AP=0.5, AP50=0.5))
write("evaluation.json", dict(dict.fromkeys(names, 0.5), classes=classes))
write("detections.json", found[::2] if frozen else found)
write("freeze_proof.json", dict(holds=True))
write("metrics.jsonl", dict(step=1, loss=1.0, images_per_second=8.0))
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A small detector on some of the shapes' target domain, from scratch."""
    folder = tmp_path_factory.mktemp("sweep_tool")
    source = drawn_shapes(folder, "target/val", 40)
    values = {
        "model": SMALL_MODEL,
        "data": {"train": source, "evaluate": source},
        "train": {"steps": 2, "batch_size": 2, "log_every": 1, "evaluate_at_start": False},
        "evaluate": {"batch_size": 20},
        "freeze": {"allow_fresh": True},
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def stand_in(config, tmp_path, monkeypatch):
    """Replace tools/train.py; returns a function to what it was called for, and the file of its mood."""
    source = yaml.safe_load(config.read_text())["data"]["evaluate"]
    truth = read_coco(source["annotations"], source["images"]).coco_ground_truth()
    found = [
        {**{key: a[key] for key in ("image_id", "category_id", "bbox")}, "score": 0.9}
        for a in truth["annotations"]
    ]
    (tmp_path / "found.json").write_text(json.dumps(found))
    places = {"tools": str(ROOT / "tools"), "root": str(ROOT), "calls": str(tmp_path / "calls")}
    places |= {"mood": str(tmp_path / "mood"), "detections": str(tmp_path / "found.json")}
    script = tmp_path / "train_stand_in.py"
    script.write_text(STAND_IN.format(**places))
    monkeypatch.setattr(sweep_tool, "TRAIN", [sys.executable, str(script)])

    def calls():
        path = tmp_path / "calls"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    return calls, tmp_path / "mood"


def test_a_sweep_trains_what_is_missing_and_reports(stand_in, config, tmp_path, capsys):
    calls, mood = stand_in
    output = tmp_path / "out"
    arguments = ["--config", str(config), "--variant", "rpn=rpn", "--seeds", "0,1", "--output", str(output)]
    mood.write_text("fail")
    assert sweep_tool.main(arguments) == 1
    printed = capsys.readouterr().out
    assert calls() == [["run", v, s] for s in ("seed-0", "seed-1") for v in ("none", "rpn")]
    assert "[2/4] rpn, seed 0: FAILED" in printed and "error: it failed" in printed
    assert "[3/4] none, seed 1: AP 0.500" in printed
    assert "nothing to compare it with" in printed
    assert "rpn, seed 1" in (output / "sweep.html").read_text()

    # Those that failed have a checkpoint: they are resumed, the others are left alone.
    mood.unlink()
    assert sweep_tool.main(arguments) == 0
    printed = capsys.readouterr().out
    assert calls() == [["resume", "rpn", "seed-0"], ["resume", "rpn", "seed-1"]]
    assert "[1/4] none, seed 0: finished before" in printed and "[2/4] rpn, seed 0: resumed, AP" in printed
    assert "Train everything: the one variant tried was shown to lower AP." in printed
    assert max(map(len, printed.splitlines())) <= 100 or "sweep.html" in printed
    results = json.loads((output / "sweep.json").read_text())
    none, rpn = results["variants"]
    assert none["seeds"] == rpn["seeds"] == [0, 1] and not results["failed"]
    assert (rpn["trained_parameters"], none["trained_parameters"], rpn["step_seconds"]) == (7, 10, 0.25)
    assert rpn["difference"]["high"] < 0 and rpn["seconds"] > 0 and rpn["peak_memory_bytes"] > 10 * 2**20
    assert (output / "sweep.html").read_text().count("data:image/jpeg") > 4
    assert (output / "sweep.csv").read_text().count("\n") == 3
    seeds = {s: yaml.safe_load((output / "rpn" / f"seed-{s}" / "config.yaml").read_text()) for s in (0, 1)}
    assert all(had["train"]["seed"] == s and had["freeze"]["freeze"] == ["rpn"] for s, had in seeds.items())

    # What was trained otherwise is not taken for the same.
    assert sweep_tool.main([*arguments, "--set", "train.steps=3"]) == 2
    assert "train.steps 2 -> 3" in capsys.readouterr().err and calls() == []


def test_a_run_cut_off_before_its_first_checkpoint_starts_again(stand_in, config, tmp_path):
    calls, _ = stand_in
    arguments = ["--config", str(config), "--variant", "rpn=rpn", "--output", str(tmp_path / "out")]
    assert sweep_tool.main(arguments) == 0
    calls()
    run = tmp_path / "out" / "rpn" / "seed-0"
    (run / "evaluation.json").unlink()
    (run / "checkpoints" / "last").unlink()
    assert sweep_tool.main(arguments) == 0
    assert calls() == [["run", "rpn", "seed-0"]]


def test_a_schedule_is_a_variant(stand_in, config, tmp_path, capsys):
    calls, _ = stand_in
    path, output = tmp_path / "sweep.yaml", tmp_path / "out"

    def sweep(*stages):
        variant = {"name": "rpn", "freeze": "rpn", "freeze_schedule": list(stages)}
        path.write_text(yaml.safe_dump({"config": str(config), "variants": [variant]}))
        return sweep_tool.main(["--config", str(path), "--output", str(output)])

    assert sweep({"from_step": 2, "unfreeze": ["rpn"]}) == 2  # the run ends there
    assert "error: variant rpn: a freeze stage starts at step 2" in capsys.readouterr().err
    assert calls() == []
    assert sweep({"from_step": 1, "unfreeze": ["rpn"]}) == 0
    assert calls() == [["run", "none", "seed-0"], ["run", "rpn", "seed-0"]]
    had = yaml.safe_load((output / "rpn" / "seed-0" / "config.yaml").read_text())["freeze_schedule"]
    assert [(stage["from_step"], stage["unfreeze"]) for stage in had] == [(1, ["rpn"])]
    (result,) = json.loads((output / "sweep.json").read_text())["variants"][1:]
    assert result["options"] == ["--freeze", "rpn", "--unfreeze-at", "1:rpn"]
    assert sweep({"from_step": 1, "unfreeze": ["rpn"], "lr_factor": 0.5}) == 2
    error = capsys.readouterr().err
    assert "rpn/seed-0 holds a run with another configuration (freeze_schedule" in error and calls() == []


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGTERM, signal.SIGHUP))],
)
def test_ctrl_c_reaches_the_run_and_stops_the_sweep(number, stand_in, config, tmp_path):
    calls, mood = stand_in
    mood.write_text("wait")
    # What a shell starts in the background ignores Ctrl-C, and so does all that the tests start there.
    code = textwrap.dedent(f"""
        import signal, sys
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.path[:0] = [{str(ROOT / "tools")!r}, {str(ROOT)!r}]
        import sweep
        sweep.TRAIN = {sweep_tool.TRAIN!r}
        sys.exit(sweep.main(sys.argv[1:]))
    """)
    arguments = ["--config", str(config), "--variant", "rpn=rpn", "--variant", "tower=box_classifier/tower"]
    command = [sys.executable, "-c", code, *arguments, "--output", str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while mood.read_text() != "ready":
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, number)
    _, error = process.communicate(timeout=180)
    assert process.returncode == 128 + number and error.strip() == "stopped"
    assert [name for _, name, _ in calls()] == ["none", "rpn"]  # and not the tower
    # What it took until then is kept.
    assert json.loads((tmp_path / "out" / "rpn" / "seed-0" / "cost.json").read_text())["seconds"] > 0


def test_under_nohup_closing_the_terminal_stops_nothing():
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what nohup does before it starts a command
    try:
        hang_up = "import os, signal; os.kill(os.getppid(), signal.SIGHUP)"
        code, _, stopped_by = sweep_tool._wait(subprocess.Popen([sys.executable, "-c", hang_up]))
    finally:
        signal.signal(signal.SIGHUP, previous)
    assert (code, stopped_by) == (0, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--variant", "a=rpm"], "variant a: freeze selector 'rpm' matches nothing; nearest: 'rpn'"),
        (["--variant", "a=rpn", "--seeds", "0,x"], "--seeds takes whole numbers"),
        (["--variant", "a=rpn", "--seeds", "0,0"], "a seed stands there twice"),
        (["--variant", "rpn"], "--variant takes name=selectors"),
        ([], "a sweep needs a freeze to try"),
        (["--variant", "a=rpn", "--set", "data.evaluate=null"], "set data.evaluate"),
    ],
)
def test_a_users_mistake_is_one_line_and_trains_nothing(
    arguments, message, stand_in, config, tmp_path, capsys
):
    calls, _ = stand_in
    arguments = [*arguments, "--config", str(config), "--output", str(tmp_path / "out")]
    assert sweep_tool.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert calls() == [] and not (tmp_path / "out").exists()


FREEZES = {
    "freeze: {freeze: [rpn]}": ["freeze.freeze=[]"],
    "freeze: {train_only: [rpn], layers: heads}": ["freeze.train_only=[]", "freeze.layers=null"],
    "freeze: {unfreeze: [rpn]}\nfreeze_schedule: gradual": ["freeze.unfreeze=[]", "freeze_schedule=[]"],
    "freeze_schedule: [{from_step: 1, unfreeze: [rpn]}]": ["freeze_schedule=[]"],
}


@pytest.mark.parametrize(("freezes", "taken_back"), FREEZES.items(), ids=FREEZES)
def test_a_configuration_that_freezes_is_refused_with_what_takes_that_back(
    freezes, taken_back, config, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(sweep_tool, "_check_freezes", lambda runs, train_set: None)
    monkeypatch.setattr(sweep_tool, "_train_all", lambda console, runs, states: [run.name for run in runs])
    path = tmp_path / "frozen.yaml"
    path.write_text(f"base: {config}\n{freezes}\n")
    arguments = ["--config", str(path), "--variant", "rpn=rpn", "--output", str(tmp_path / "out")]
    assert sweep_tool.main(arguments) == 2
    error = capsys.readouterr().err
    before = "error: the configuration freezes something already; in a sweep only its variants do: "
    before += "take it back with "
    assert error.startswith(before) and error.count("\n") == 1
    options = shlex.split(error.removeprefix(before))
    assert options[::2] == ["--set"] * len(taken_back) and options[1::2] == taken_back
    assert sweep_tool.main([*arguments, *options]) == 1, "no run has results"
    assert "2 variants × 1 seed" in capsys.readouterr().out


def test_help_shows_the_option_that_a_refused_freeze_names(capsys):
    with pytest.raises(SystemExit):
        sweep_tool.main(["--help"])
    assert "--allow-fresh  " in capsys.readouterr().out


@pytest.mark.slow
def test_a_real_sweep_of_two_variants(config, tmp_path, capsys):
    listed = {"config": str(config), "variants": [{"name": "rpn", "freeze": "rpn"}]}
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(listed))
    arguments = ["--config", str(path), "--output", str(tmp_path / "out")]
    assert sweep_tool.main(arguments) == 0
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "sweep.json").read_text())
    none, rpn = results["variants"]
    assert rpn["trained_parameters"] < none["trained_parameters"] <= none["parameters"]
    assert none["step_seconds"] > 0 and none["peak_memory_bytes"] > 100 * 2**20
    assert results["advice"].split()[0] in printed
    assert sweep_tool.main(arguments) == 0
    assert capsys.readouterr().out.count("finished before") == 2

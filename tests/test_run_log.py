import errno
import json
import shutil
from collections import defaultdict
from pathlib import Path

import pytest
import tensorflow as tf

from detector.run_log import RunLog, environment


def test_metrics_come_back_and_a_half_written_line_is_dropped(tmp_path):
    run = RunLog(tmp_path / "run")
    run.metrics(1, {"loss": 0.5, "evaluation/AP": None})
    run.metrics(2, {"loss": 0.25})
    with open(tmp_path / "run" / "metrics.jsonl", "a") as lines:
        lines.write('{"step": 3, "lo')
    assert run.read_metrics() == [{"step": 1, "loss": 0.5, "evaluation/AP": None}, {"step": 2, "loss": 0.25}]
    run.forget_after(1)
    run.metrics(2, {"loss": 0.2})
    assert [row["loss"] for row in run.read_metrics()] == [0.5, 0.2]


@pytest.mark.parametrize(("is_evaluated", "kept"), [(True, [0, 1, 2, 2]), (False, [0, 1, 2])])
def test_the_scores_of_a_step_that_is_to_be_evaluated_again_are_forgotten(is_evaluated, kept, tmp_path):
    run = RunLog(tmp_path)
    run.metrics(0, {"evaluation/AP": 0.1})
    for step in (1, 2, 3):
        run.metrics(step, {"loss": 0.5})
        run.metrics(step, {"evaluation/AP": 0.1}) if step > 1 else None
    run.forget_after(2, is_evaluated)
    assert [row["step"] for row in run.read_metrics()] == kept
    assert run.read_metrics()[2] == {"step": 2, "loss": 0.5}


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b'"step": 1}', "expected JSON: "),
        (b'{"step": 1, "\xff": 2}', "expected JSON: "),
        (b"[1, 2]", r"expected a mapping with a 'step', got \[1, 2\]"),
        (
            '["xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxé"]'.encode(),
            "expected a mapping with a 'step', got .*xxx",
        ),
        (b'{"loss": 2.0}', "expected a mapping with a 'step', got {"),
    ],
)
def test_a_damaged_line_of_the_metrics_is_named_and_the_others_stay(line, what, tmp_path):
    run = RunLog(tmp_path)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
    before = path.read_bytes()
    with pytest.raises(ValueError, match=rf"metrics.jsonl: line 2 is damaged: {what}.*; delete the line"):
        run.forget_after(2)
    assert path.read_bytes() == before


def test_a_page_that_cannot_be_written_leaves_the_older_and_no_half_written_one(tmp_path, monkeypatch):
    run = RunLog(tmp_path / "run")
    run.write_text("plan.json", "old")

    def full(path, text, **options):
        path.write_bytes(b"as far as it went")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        run.write_text("plan.json", "new")
    assert (run.folder / "plan.json").read_text() == "old"
    assert not list(run.folder.glob(".*"))


def board(run):
    """Return what TensorBoard shows of a run's folder: {name: {step: number or text}}."""
    shown = defaultdict(dict)
    for path in (run / "tensorboard").glob("events.*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                content = tf.make_ndarray(value.tensor).item()
                shown[value.tag][event.step] = content.decode() if isinstance(content, bytes) else content
    return shown


def test_tensorboard_gets_the_numbers_and_the_notes(tmp_path):
    run = RunLog(tmp_path)
    run.metrics(1, {"loss": 0.5, "evaluation/AP": None})
    run.note(0, "freeze_plan", "trains all")
    assert board(tmp_path) == {"loss": {1: 0.5}, "freeze_plan": {0: "trains all"}}


def test_the_best_and_the_newest_checkpoints_are_kept(tmp_path):
    run = RunLog(tmp_path)
    assert run.last is None and run.best is None
    for step in (1, 2, 3, 4):
        path = run.checkpoint_path(step)
        path.mkdir()
        run.point("last", path)
        if step == 1:
            run.point("best", path)
        run.keep_newest(2)
    assert [path.name for path in sorted(run.checkpoints.glob("step-*"))] == [
        "step-000001",
        "step-000003",
        "step-000004",
    ]
    assert (run.best.name, run.last.name) == ("step-000001", "step-000004")


def test_a_run_that_was_copied_without_its_links_goes_on(tmp_path):
    run = RunLog(tmp_path / "run")
    for step in (1, 2):
        run.checkpoint_path(step).mkdir()
        run.point("last", run.checkpoint_path(step))
    shutil.copytree(tmp_path / "run", tmp_path / "copy")  # follows links
    copy = RunLog(tmp_path / "copy")
    assert copy.last == copy.checkpoints / "last" and not copy.last.is_symlink()
    copy.point("last", copy.checkpoint_path(2))
    assert copy.last.name == "step-000002" and (copy.checkpoints / "last").is_symlink()


def test_the_newest_checkpoints_are_those_of_the_largest_steps(tmp_path):
    run = RunLog(tmp_path)
    for step in (999000, 999500, 1000000, 1000500):
        run.checkpoint_path(step).mkdir()
    own = run.checkpoints / "step-000500 before the restart"  # somebody's copy is none of ours
    own.mkdir()
    run.keep_newest(3)
    names = {"step-999500", "step-1000000", "step-1000500", own.name}
    assert {path.name for path in run.checkpoints.glob("step-*")} == names


def test_going_back_leaves_a_run_as_it_was_then(tmp_path):
    def run_with(best):
        run = RunLog(tmp_path / f"best-{best}")
        for step in (1, 2, 3, 4):
            run.checkpoint_path(step).mkdir()
        run.point("last", run.checkpoint_path(4))
        run.point("best", run.checkpoint_path(best))
        for name in ("config.yaml", "evaluation.json", "detections.json", "freeze_proof.json"):
            run.write_text(name, "{}")
        return run

    run = run_with(best=1)
    dropped = run.go_back(run.checkpoint_path(2), best_step=1)
    assert [path.name for path in dropped] == ["step-000003", "step-000004"]
    assert {path.name for path in run.checkpoints.iterdir()} == {"step-000001", "step-000002", "best", "last"}
    assert (run.best, run.last) == (run.checkpoint_path(1), run.checkpoint_path(2))
    # It is not finished any more.
    assert {path.name for path in run.folder.iterdir()} == {"config.yaml", "tensorboard", "checkpoints"}

    # The best of all is dropped; what was the best then counts, if it is still there.
    run = run_with(best=4)
    run.go_back(run.checkpoint_path(3), best_step=2)
    assert run.best == run.checkpoint_path(2)
    run = run_with(best=3)
    run.go_back(run.checkpoint_path(2), best_step=None)
    assert run.best is None and not (run.checkpoints / "best").is_symlink()


def test_a_pointer_to_a_deleted_checkpoint_is_none(tmp_path):
    run = RunLog(tmp_path)
    run.checkpoint_path(1).mkdir()
    run.point("last", run.checkpoint_path(1))
    run.checkpoint_path(1).rmdir()
    assert run.last is None


def test_the_folder_can_be_moved(tmp_path):
    run = RunLog(tmp_path / "here")
    run.checkpoint_path(1).mkdir()
    run.point("last", run.checkpoint_path(1))
    (tmp_path / "here").rename(tmp_path / "there")
    assert RunLog(tmp_path / "there").last == tmp_path / "there" / "checkpoints" / "step-000001"


def test_files_are_whole(tmp_path):
    run = RunLog(tmp_path)
    run.write_json("plan.json", {"a": 1})
    run.write_json("plan.json", {"a": 2})
    assert json.loads((tmp_path / "plan.json").read_text()) == {"a": 2}
    assert not list(tmp_path.glob(".*partial"))


def test_the_environment_names_the_packages():
    packages = environment()["packages"]
    assert packages["tensorflow"].startswith("2.20") and packages["tf-keras"].startswith("2.20")

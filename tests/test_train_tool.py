"""`tools/train.py` as a user runs it, on a small detector and a few of the embedded data set's images."""

import dataclasses
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import command_line
import numpy as np
import pytest
import tensorflow as tf
import train
import train as train_tool
import yaml
from conftest import building_once, rewriting_graphs, running_eagerly

from data.pipeline import training_batches
from data.shapes import IMAGE_COUNTS, make_shapes
from detector import checkpoint
from detector.cost import StageCost
from detector.run_lock import run_lock

# TensorFlow's notice that data sets are not run eagerly.
pytestmark = pytest.mark.filterwarnings("ignore:Even though the:UserWarning")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A small detector on the shapes' target domain, from scratch, evaluated on its training set."""
    folder = tmp_path_factory.mktemp("train_tool")
    # By their file, so that processes of their own do not draw all of them.
    shapes = make_shapes(folder / "shapes", dict.fromkeys(IMAGE_COUNTS, 12))["target/train"]
    source = {"format": "coco", "annotations": str(shapes / "annotations.json")}
    source["images"] = str(shapes / "images")
    values = {
        "model": {
            "feature_extractor": {"depth_multiplier": 0.1, "min_depth": 4, "batch_norm_momentum": 0.9},
            "resizer": {"kind": "fixed_shape", "height": 64, "width": 64},
            "anchors": {"base_size_hw": [32, 32], "scales": [0.5, 1.0]},
            "rpn": {"conv_depth": 8, "minibatch_size": 16, "max_proposals": 16},
            "box_classifier": {"crop_size": 8, "batch_size": 8, "max_detections": 10},
        },
        "data": {"train": source, "evaluate": source, "augment": [{"name": "HorizontalFlip", "p": 0.5}]},
        "train": {"steps": 12, "batch_size": 2, "checkpoint_every": 2, "log_every": 1, "clip_norm": 1.0},
        "evaluate": {"batch_size": 12},
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def values_of(run):
    info = checkpoint.read_info(run / "checkpoints" / "last")
    return checkpoint.read_values(run / "checkpoints" / "last", info)


def test_a_run_killed_at_a_random_step_and_resumed_ends_with_the_same_bits(config, tmp_path):
    command = [sys.executable, str(ROOT / "tools" / "train.py"), "--no-progress"]
    start = [*command, "--config", str(config), "--freeze", "feature_extractor", "--allow-fresh"]
    start += ["--set", "train.steps=24", "--set", "data.evaluate=null", "--set", "train.optimizer.kind=adamw"]
    start += ["--set", "train.checkpoint_every=4"]
    # What nobody kills needs no process, only the rewriting of graphs that a process does.
    with rewriting_graphs():
        assert train_tool.main([*start[2:], "--run", str(tmp_path / "whole")]) == 0

    cut = subprocess.Popen([*start, "--run", str(tmp_path / "cut")], stdout=subprocess.DEVNULL)
    metrics = tmp_path / "cut" / "metrics.jsonl"

    def steps_logged():
        return metrics.read_bytes().count(b"\n") if metrics.exists() else 0

    # Checkpoints are of every fourth step: this is before, at and behind one.
    wanted, deadline = random.randint(5, 11), time.monotonic() + 120
    while steps_logged() < wanted:
        assert cut.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    cut.send_signal(signal.SIGKILL)
    cut.wait()
    killed = f"killed after step {steps_logged()}"
    assert checkpoint.read_info(tmp_path / "cut" / "checkpoints" / "last").step < 24, killed

    with rewriting_graphs():
        assert train_tool.main(["--resume", str(tmp_path / "cut"), "--no-progress"]) == 0, killed
    whole, resumed = values_of(tmp_path / "whole"), values_of(tmp_path / "cut")
    assert whole.keys() == resumed.keys() and any(key.startswith("optimizer/") for key in whole)
    different = [key for key in whole if whole[key].tobytes() != resumed[key].tobytes()]
    assert not different, killed
    rows = [json.loads(line) for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 25)), killed


@pytest.mark.usefixtures("eagerly")
def test_a_run_leaves_its_folder_and_prints_what_matters(config, tmp_path, capsys):
    run = tmp_path / "run"
    arguments = [
        "--config",
        str(config),
        "--freeze",
        "rpn",
        "--allow-fresh",
        "--run",
        str(run),
        "--no-progress",
    ]
    assert train_tool.main([*arguments, "--set", "train.steps=3"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"rpn +6 .*frozen", printed)
    assert "freeze rpn: matches 6 variables" in printed
    assert "Predicted saving: 50%" in printed  # the RPN is all that costs, and half of it its gradient
    assert "AP before training: " in printed and re.search(r"AP 0\.\d{3} before, 0\.\d{3} after", printed)
    assert re.search(r"proof: all 6 frozen variables are bit-identical before and after 3 steps", printed)
    assert f"python tools/export.py {run}" in printed

    names = {path.name for path in run.iterdir()}
    assert names >= {
        *("config.yaml", "plan.json", "environment.json", "metrics.jsonl", "tensorboard", "checkpoints"),
        *("detections.json", "evaluation.json", "freeze_proof.json"),
    }
    proof = json.loads((run / "freeze_proof.json").read_text())
    assert proof["holds"] and [stage["frozen_variables"] for stage in proof["stages"]] == [6]
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert set(evaluation["classes"]) == {"circle", "square", "triangle", "star"}
    info = checkpoint.read_info(run / "checkpoints" / "best")
    assert info.plan is not None and info.provenance["rpn"]["checkpoint"] is None

    # What is there already is not overwritten.
    before = np.fromfile(run / "metrics.jsonl", np.uint8)
    assert train_tool.main(arguments) == 2
    assert "holds a run already" in capsys.readouterr().err
    np.testing.assert_array_equal(before, np.fromfile(run / "metrics.jsonl", np.uint8))


@pytest.fixture(scope="module", autouse=True)
def costs():
    """Make up what stages cost: to count it traces every one of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("detector.cost.stage_costs", lambda *_: [StageCost("rpn", 1)])
        yield


@pytest.fixture(scope="module")
def untrained():
    """A `build_model` that builds a detector once, for what comes to no training."""
    return building_once()


@pytest.fixture(scope="module")
def short_run(config, tmp_path_factory):
    """A run of two steps, not to be changed."""
    run = tmp_path_factory.mktemp("short") / "run"
    options = ["--set", "train.steps=2", "--set", "data.evaluate=null", "--no-progress"]
    with running_eagerly():
        assert train_tool.main(["--config", str(config), "--run", str(run), *options]) == 0
    return run


@pytest.mark.slow
def test_a_run_that_chose_its_freeze_and_is_resumed_ends_with_the_same_bits(config, short_run, tmp_path):
    """What `--freeze auto` measures in the process that begins leaves no trace in the steps it takes."""
    command = [sys.executable, str(ROOT / "tools" / "train.py"), "--no-progress"]
    start = [*command, "--config", str(config), "--freeze", "auto"]
    for setting in (
        f"train.restore.path={short_run}",
        "train.steps=4",
        "train.optimizer.kind=adamw",
        "data.evaluate=null",
    ):
        start += ["--set", setting]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    done = subprocess.run([*start, "--run", str(whole)], check=True, capture_output=True, text=True)
    assert re.search(r"suggested .*: --freeze (?!none)", done.stdout)
    shutil.copytree(whole, resumed, symlinks=True)
    back = resumed / "checkpoints" / "step-000002"
    subprocess.run([*command, "--resume", str(back)], check=True, capture_output=True)
    expected, values = values_of(whole), values_of(resumed)
    assert [key for key in expected if expected[key].tobytes() != values[key].tobytes()] == []


def test_a_run_goes_on_only_with_what_it_began_with(short_run, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(short_run, run, symlinks=True)

    def refused(*arguments):
        capsys.readouterr()
        assert train_tool.main(["--resume", str(run), *arguments]) == 2
        return capsys.readouterr().err

    error = refused("--set", "train.steps=3", "--freeze", "rpn", "--run", str(tmp_path / "other"))
    assert "the configuration that it has: leave out --set, --freeze, --run, or start a new run" in error
    with run_lock(run):
        assert "another process trains in" in refused()

    read = command_line.read_source

    def reading(change):
        monkeypatch.setattr(command_line, "read_source", lambda *arguments: change(read(*arguments)))

    reading(lambda data: dataclasses.replace(data, examples=data.examples[1:]))
    assert f"the images or boxes of data.train are not those that {run} began with" in refused()
    reading(lambda data: dataclasses.replace(data, categories=data.categories[::-1]))
    assert "began with the classes 'circle' (1), 'square' (2)" in refused()
    monkeypatch.undo()
    partial = run / "checkpoints" / ".step-000003.partial"  # of a run that was killed as it saved
    partial.mkdir()
    (partial / "variables_part").write_bytes(bytes(1000))
    with run_lock(run):
        refused()
        assert partial.is_dir()
    assert train_tool.main(["--resume", str(run)]) == 0
    assert not list((run / "checkpoints").glob(".*"))


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("plan.json", lambda text: text[:-50], "expected JSON: "),
        ("plan.json", lambda text: "{}", "it lacks the key 'stages'"),
        ("plan.json", lambda text: text.replace('"trained"', '"frozen"', 1), "the freeze plan was altered"),
        ("plan.json", None, "no such file"),
        ("data.json", lambda text: "", "expected JSON: "),
        ("data.json", lambda text: "[1]", "other values than were written"),
        ("config.yaml", lambda text: "", "it is empty"),
        ("config.yaml", lambda text: "\udcff" + text, "not UTF-8"),
        ("checkpoints/last/checkpoint.json", lambda text: text[:-50], "is damaged"),
        (
            "checkpoints/last/checkpoint.json",
            lambda text: text.replace('"best_ap"', '"best"', 1),
            "`training` is not that of this version",
        ),
    ],
)
def test_a_damaged_file_of_a_run_is_named(name, damage, message, short_run, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(short_run, run, symlinks=True)
    path = run / name
    if damage is None:
        path.unlink()
    else:
        path.write_text(damage(path.read_text()), errors="surrogateescape")
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    capsys.readouterr()
    assert train_tool.main(["--resume", str(run), "--no-progress"]) == 2
    error = capsys.readouterr().err
    assert str(path) in error or str(path.parent.resolve() / path.name) in error
    assert message in error and error.count("\n") == 1
    assert {file: file.read_bytes() for file in before} == before


@pytest.mark.usefixtures("eagerly")
def test_the_exit_code_says_which_signal_stopped_the_run(config, tmp_path, capsys, monkeypatch):
    def stopped_by(number, *arguments):
        def batches(*arguments, **options):
            for batch in training_batches(*arguments, **options):
                os.kill(os.getpid(), number)
                yield batch

        monkeypatch.setattr("data.pipeline.training_batches", batches)
        return train_tool.main([*arguments, "--no-progress"])

    run = str(tmp_path / "run")
    start = ["--config", str(config), "--run", run, "--set", "data.evaluate=null"]
    assert stopped_by(signal.SIGTERM, *start) == 143
    assert (
        f"stopped at step 1 of 12; to go on: python tools/train.py --resume {run}" in capsys.readouterr().err
    )
    assert stopped_by(signal.SIGINT, "--resume", run) == 130
    assert "stopped at step 2 of 12" in capsys.readouterr().err
    previous = signal.signal(
        signal.SIGHUP, signal.default_int_handler
    )  # not what the tests were started with
    try:
        assert stopped_by(signal.SIGHUP, "--resume", run) == 129
    finally:
        signal.signal(signal.SIGHUP, previous)
    assert "stopped at step 3 of 12" in capsys.readouterr().err


@pytest.mark.usefixtures("eagerly")
def test_a_run_that_nobody_reads_goes_on_and_can_be_stopped(config, tmp_path, monkeypatch):
    def batches(*arguments, **options):
        for step, batch in enumerate(training_batches(*arguments, **options)):
            if step == 1:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    monkeypatch.setattr("data.pipeline.training_batches", batches)
    reader, writer = os.pipe()
    os.close(reader)
    run = tmp_path / "run"
    start = ["--config", str(config), "--run", str(run), "--set", "data.evaluate=null", "--no-progress"]
    with open(writer, "w") as nobody:
        monkeypatch.setattr(sys, "stdout", nobody)
        monkeypatch.setattr(sys, "stderr", nobody)
        assert train_tool.main(start) == 130
    assert checkpoint.read_info(run / "checkpoints" / "last").step == 2


def test_a_frozen_variable_that_moved_is_one_message(config, tmp_path, capsys, monkeypatch):
    def make_step(model, *arguments, **options):
        def step(*arguments):
            model.rpn.conv.bias.assign_add(tf.ones_like(model.rpn.conv.bias))
            return {"loss": tf.constant(0.5)}

        return step

    monkeypatch.setattr("detector.training_loop.make_step", make_step)
    run = tmp_path / "run"
    start = ["--config", str(config), "--run", str(run), "--freeze", "rpn", "--allow-fresh", "--no-progress"]
    assert train_tool.main([*start, "--set", "train.steps=1", "--set", "data.evaluate=null"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: 1 of 6 frozen variables moved by step 1: rpn/conv/bias; ")
    assert error.count("\n") == 1
    assert not json.loads((run / "freeze_proof.json").read_text())["holds"]


@pytest.mark.usefixtures("eagerly")
def test_a_run_goes_back_to_an_earlier_checkpoint_and_ends_with_the_same_bits(config, tmp_path, capsys):
    run = tmp_path / "run"
    options = ["--set", "train.steps=3", "--set", "train.checkpoint_every=1", "--set", "data.evaluate=null"]
    assert train_tool.main(["--config", str(config), "--run", str(run), *options, "--no-progress"]) == 0
    whole = values_of(run)
    first, second, third = (run / "checkpoints" / f"step-00000{step}" for step in (1, 2, 3))
    for damaged in (second, third):
        data = next(damaged.glob("variables.data*"))
        data.write_bytes(data.read_bytes()[:-5])
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}

    capsys.readouterr()
    assert train_tool.main(["--resume", str(run)]) == 2
    error = capsys.readouterr().err
    assert f"{third} is damaged or incomplete" in error
    assert f"; to go back: python tools/train.py --resume {second}, or {first}\n" in error
    assert train_tool.main(["--resume", str(second)]) == 2
    error = capsys.readouterr().err
    assert f"{second} is damaged or incomplete" in error
    assert f"; to go back: python tools/train.py --resume {first}\n" in error
    copied = run / "checkpoints" / "best"
    shutil.copytree(first, copied)
    assert train_tool.main(["--resume", str(copied)]) == 2
    assert f"{copied} is a copy of a checkpoint; name the one beside it" in capsys.readouterr().err
    shutil.rmtree(copied)
    # Nothing was dropped for a checkpoint that is damaged.
    assert {file: file.read_bytes() for file in before} == before

    assert train_tool.main(["--resume", str(first), "--no-progress"]) == 0
    printed = capsys.readouterr().out
    assert f"going back to {first}; dropped: step-000002, step-000003\n" in printed
    assert f"resuming {run} at step 1\n" in printed
    again = values_of(run)
    assert {key: value.tobytes() for key, value in again.items()} == {
        key: value.tobytes() for key, value in whole.items()
    }
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]


@pytest.mark.usefixtures("eagerly")
def test_a_run_that_was_cut_off_before_its_first_checkpoint_starts_again(short_run, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(short_run, run, symlinks=True)
    shutil.rmtree(run / "checkpoints")
    assert train_tool.main(["--resume", str(run)]) == 2
    advice = re.search(r"start it again with (--config \S+ --run \S+)\n", capsys.readouterr().err)
    assert train_tool.main([*advice[1].split(), "--no-progress"]) == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--freeze", "box_clasifier"],
            "freeze selector 'box_clasifier' matches nothing; nearest: 'box_classifier'",
        ),
        (["--freeze", "rpn"], "fresh variables"),
        (["--set", "train.learning_rate.warmup_steps=12"], "leave nothing of the cosine's 12 steps"),
        (["--set", "train.lr_factors={rpm: 0.1}"], "'rpm' matches nothing; nearest: 'rpn'"),
        (["--set", "data.augment=[{name: Flop}]"], "Flop"),
        (["--set", "train.stesp=4"], "unknown key 'train.stesp'; nearest: 'train.steps'"),
        (["--set", "data.train={format: voc, root: nowhere}"], "nowhere"),
        (["--set", "data.train=null"], "set data.train"),
        (["--set", "data.class_names=[circle, star, square]"], "category 'triangle' is not in class_names"),
        (["--set", "train.restore.path=nowhere"], "nowhere"),
        (["--resume", "nowhere"], "nowhere is no run's folder"),
        (
            ["--run", "runs/feature_extractor[:Mixed_4c]"],
            "does not find what lies at a path with [",
        ),
    ],
)
def test_a_users_mistake_is_one_line(arguments, message, config, untrained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("detector.experiment.build_model", untrained)
    start = [] if "--resume" in arguments else ["--config", str(config), "--run", str(tmp_path / "run")]
    assert train_tool.main([*start, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and "Traceback" not in error
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("eagerly")
def test_a_loss_that_is_not_finite_is_one_message(config, tmp_path, capsys):
    run = tmp_path / "run"
    steep = [
        "train.learning_rate={schedule: constant, base: 1e30}",
        "train.clip_norm=null",
        "data.evaluate=null",
    ]
    options = [part for text in steep for part in ("--set", text)]
    assert train_tool.main(["--config", str(config), "--run", str(run), "--no-progress", *options]) == 1
    error = capsys.readouterr().err
    assert re.match(r"error: step \d+: a loss is not finite \(.*images \[\d+, \d+\]", error)
    assert "Traceback" not in error


def test_a_cache_limit_without_a_cache_is_refused(capsys):
    assert train.main(["--cache-limit", "5"]) == 2
    assert "--cache-limit goes with --set train.cache=features" in capsys.readouterr().err


@pytest.mark.usefixtures("eagerly")
def test_kept_features_give_the_losses_and_scores_of_the_run_without(config, tmp_path, capsys, monkeypatch):
    # What the plan saves, which is told first, takes longer to count than the step.
    monkeypatch.setattr("detector.cost.stage_costs", lambda model, canvas_hw: [StageCost("rpn", 1)])
    folder = tmp_path / "features"
    options = ["--config", str(config), "--freeze", "feature_extractor", "--allow-fresh", "--no-progress"]
    options += ["--set", "train.steps=1", "--set", "train.views=2", "--set", "train.evaluate_at_start=false"]
    cache = ["--set", "train.cache=features", "--set", f"train.cache_folder={folder}", "--cache-limit", "1"]
    assert train_tool.main([*options, "--run", str(tmp_path / "without")]) == 0
    capsys.readouterr()
    assert train_tool.main([*options, *cache, "--run", str(tmp_path / "with")]) == 0
    said = capsys.readouterr().out
    assert re.search(r"\nevaluation: features after .*, computed once for 12 examples\n", said)
    assert re.search(
        r"\nfeatures after feature_extractor/Mixed_4e: .*, computed once for 24 examples\n", said
    )
    assert len(list(folder.glob("*/cache.json"))) == 2

    def numbers(name):
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        trained, scored = map(json.loads, lines)
        assert trained["loss"] > 0 and "evaluation/AP" in scored
        # None where the data set has no box of a size.
        return {key: -1 if value is None else value for key, value in {**trained, **scored}.items()}

    assert numbers("with") == pytest.approx(numbers("without"), rel=1e-5, abs=1e-6)

"""`tools/train.py` as a user runs it, on a small detector and a few of the embedded data set's images."""

import json
import os
import re
import signal
import sys

import numpy as np
import pytest
import tensorflow as tf
import train as train_tool
from conftest import building_once
from small_runs import small_config

from data.pipeline import training_batches
from detector import checkpoint

# TensorFlow's notice that data sets are not run eagerly.
pytestmark = pytest.mark.filterwarnings("ignore:Even though the:UserWarning")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return small_config(tmp_path_factory.mktemp("train_tool"))


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
    assert "Predicted saving: 1% of the arithmetic" in printed  # the tiny detector's RPN is a small part
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


@pytest.fixture(scope="module")
def untrained():
    """A `build_model` that builds a detector once, for what comes to no training."""
    return building_once()


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
    assert train_tool.main(["--cache-limit", "5"]) == 2
    assert "--cache-limit goes with --set train.cache=features" in capsys.readouterr().err


@pytest.mark.usefixtures("eagerly")
def test_kept_features_give_the_losses_and_scores_of_the_run_without(config, tmp_path, capsys):
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

"""Runs of `tools/train.py` that were killed, stopped or damaged, and go on or go back."""

import dataclasses
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import command_line
import pytest
import train as train_tool
from conftest import rewriting_graphs, running_eagerly
from small_runs import small_config, values_of

from detector import checkpoint
from detector.run_lock import run_lock

# TensorFlow's notice that data sets are not run eagerly.
pytestmark = pytest.mark.filterwarnings("ignore:Even though the:UserWarning")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return small_config(tmp_path_factory.mktemp("resumed_runs"))


@pytest.mark.slow
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

"""The README's commands and code do what it says."""

import argparse
import importlib
import re
import shlex
from pathlib import Path

import command_line
import cv2
import pytest
from conftest import running_eagerly

from detector.sweep_config import is_sweep, read_sweep

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "configs").glob("*.yaml")),
]
# The quick start's model and data, at a size for tests.
QUICK = ["--set", "train.steps=2", "--set", "train.learning_rate.warmup_steps=0", "--no-progress"]


def commands(path):
    """Yield the `python tools/…` lines of a page, continuation lines joined, comments of YAML opened."""
    text = (
        re.sub(r"^#", "", path.read_text(), flags=re.MULTILINE)
        if path.suffix == ".yaml"
        else path.read_text()
    )
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if match := re.match(r"\s*(?:\.venv/bin/)?python (tools/\S+\.py.*)", line):
            yield shlex.split(match[1])


ALL = [
    pytest.param(command, id=f"{page.name}: {' '.join(command)}")
    for page in PAGES
    for command in commands(page)
]


def tool(command):
    return importlib.import_module(Path(command[0]).stem)


def test_there_are_commands_for_every_tool():
    used = {Path(parameter.values[0][0]).stem for parameter in ALL}
    assert used >= {"train", "plan", "evaluate", "export", "predict", "import_weights", "convert_config"}


def configuration_of(command, arguments):
    """Return the file that a command lays its settings over: its own, or that of the run it names."""
    if arguments.config is not None:
        return arguments.config
    runs = [match[1] for word in command if (match := re.match(r"runs/([a-z_]+)", word))]
    files = [ROOT / "configs" / f"{name}.yaml" for name in runs]
    return next((file for file in files if file.is_file()), None)


@pytest.mark.parametrize("command", ALL)
def test_every_command_is_understood(command, monkeypatch):
    module, parse, parsed = tool(command), argparse.ArgumentParser.parse_args, []

    def noted(parser, words):
        parsed.append(parse(parser, words))
        return parsed[-1]

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", noted)
    monkeypatch.setattr(module.launch, "run", lambda main: 0)
    assert module.main(command[1:]) == 0
    (arguments,) = parsed
    if not hasattr(arguments, "config"):
        return
    monkeypatch.chdir(ROOT)
    if arguments.pipeline_config is not None:  # the reader's own; its data are TFRecords
        arguments.pipeline_config = None
        source = {"format": "tfrecord", "path": ["a.record"]}
        command_line.load_config(arguments, base={"data": {"train": source, "evaluate": source}})
        return
    arguments.config = configuration_of(command, arguments)
    if arguments.config is not None and is_sweep(arguments.config):
        sweep = read_sweep(arguments.config)
        arguments.config, arguments.set = sweep.config, [*sweep.set, *arguments.set]
    command_line.load_config(arguments)


@pytest.fixture
def workplace(tmp_path, monkeypatch, few_shapes):
    """An empty folder with the checkout's configurations and data in it."""
    for name in ("configs", "data"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("ignore:Even though the:UserWarning")
@pytest.mark.usefixtures("reloaded_here", "loaded_once")
def test_the_quick_start_leads_from_training_to_pictures(workplace, capsys):
    chain = [command for command in commands(ROOT / "README.md") if "runs/shapes-001" in " ".join(command)]
    names = [Path(command[0]).stem for command in chain]
    assert names == ["plan", "plan", "evaluate", "export", "evaluate", "predict"]
    (workplace / "photos").mkdir()
    cv2.imwrite(str(workplace / "photos" / "grey.png"), cv2.UMat(90, 120, cv2.CV_8UC3).get())
    with running_eagerly():  # up to the export, whose graph the rest runs
        assert tool(["train.py"]).main(["--freeze", "box_classifier", *QUICK]) == 0
        assert "proof: all 99 frozen variables are bit-identical" in capsys.readouterr().out
        for command in chain[:3]:
            assert tool(command).main(command[1:]) == 0, command
    for command in chain[3:]:
        assert tool(command).main(command[1:]) == 0, command
    assert (workplace / "runs/shapes-001/saved_model/saved_model.pb").is_file()
    assert list((workplace / "predictions").iterdir())


@pytest.mark.filterwarnings("ignore:Even though the:UserWarning")
@pytest.mark.usefixtures("eagerly")
def test_the_library_example_runs(workplace, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert "train.steps=100" in code
    code = code.replace('"train.steps=100"', '"train.steps=2", "train.learning_rate.warmup_steps=0"')
    exec(compile(code, "README.md", "exec"), {})
    assert re.search(
        r"proof: all 99 frozen variables are bit-identical.*\nAP 0\.\d{3}\n$",
        capsys.readouterr().out,
        re.DOTALL,
    )
    assert (workplace / "build/mine/saved_model.pb").is_file()

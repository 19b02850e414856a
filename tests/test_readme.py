"""The README's commands and code do what it says."""

import importlib
import re
import shlex
from pathlib import Path

import cv2
import pytest

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


@pytest.mark.parametrize("command", ALL)
def test_every_command_is_understood(command, monkeypatch):
    module = tool(command)
    monkeypatch.setattr(module.command_line, "run", lambda main: 0)
    assert module.main(command[1:]) == 0


@pytest.fixture
def workplace(tmp_path, monkeypatch, few_shapes):
    """An empty folder with the checkout's configurations and data in it."""
    for name in ("configs", "data"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("reloaded_here")
def test_the_quick_start_leads_from_training_to_pictures(workplace, capsys):
    chain = [command for command in commands(ROOT / "README.md") if "runs/shapes-001" in " ".join(command)]
    chain = [command for command in chain if Path(command[0]).stem not in ("train", "plan")]
    assert [Path(command[0]).stem for command in chain] == ["evaluate", "export", "evaluate", "predict"]
    assert tool(["train.py"]).main(["--freeze", "box_classifier", *QUICK]) == 0
    assert "proof: all 99 frozen variables are bit-identical" in capsys.readouterr().out
    (workplace / "photos").mkdir()
    cv2.imwrite(str(workplace / "photos" / "grey.png"), cv2.UMat(90, 120, cv2.CV_8UC3).get())
    for command in chain:
        assert tool(command).main(command[1:]) == 0, command
    assert (workplace / "runs/shapes-001/saved_model/saved_model.pb").is_file()
    assert list((workplace / "predictions").iterdir())


@pytest.mark.filterwarnings("ignore:Even though the:UserWarning")
@pytest.mark.usefixtures("eagerly")  # the quick start traces the same detector
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

import argparse
import importlib

import command_line
import pytest

from detector.config import override


def test_weights_that_are_in_the_projects_folder_alone_are_refused(tmp_path, monkeypatch):
    def require(path):
        command_line.require_restorable_here(override({}, [f"train.restore.path={path}"], "test"))

    for path in ("null", "data/shapes_source", "nowhere/at/all"):
        require(path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as error:
        require("data/shapes_source")
    project = command_line.PROJECT
    assert str(error.value) == (
        f"train.restore.path data/shapes_source is not in {tmp_path} but in {project}: paths in "
        f"configurations are relative to the folder that the command runs in; run it in {project}"
    )
    for path in ("null", project / "data/shapes_source", "nowhere/at/all"):
        require(path)
    (tmp_path / "data").symlink_to(project / "data")
    require("data/shapes_source")


@pytest.mark.parametrize(
    "command",
    [["train"], ["plan"], ["diagnose"], ["sweep", "--variant", "a=rpn"]],
    ids=lambda words: words[0],
)
def test_elsewhere_the_default_configuration_is_refused_before_anything_is_written(
    command, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert importlib.import_module(command[0]).main(command[1:]) == 2
    error = capsys.readouterr().err
    assert (
        error.startswith("error: train.restore.path data/shapes_source is not in") and error.count("\n") == 1
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "default"),
    [
        *((name, "YAML (default: configs/shapes.yaml)") for name in ("train", "plan", "sweep")),
        ("benchmark", "YAML (default: configs/shapes.yaml; a FILE names its own)"),
        ("diagnose", "YAML (default: the run's; another MODEL needs one, "),
        ("evaluate", "YAML (default: the run's; a model without a run needs one, "),
        ("export", "YAML (default: the run's; of another project's weights, what they tell)"),
        ("predict", "YAML (default: the model's own; of another project's weights, what they tell)"),
        ("import_weights", "YAML (default: what SOURCE tells of its model)"),
    ],
)
def test_the_help_says_what_holds_without_a_configuration(name, default, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit):
        importlib.import_module(name).main(["--help"])
    assert default in capsys.readouterr().out


def test_without_a_file_the_configuration_is_the_quick_starts_or_the_commands_own():
    parser = argparse.ArgumentParser()
    command_line.add_config_options(parser)
    arguments = parser.parse_args(["--set", "train.steps=7"])
    config = command_line.load_config(arguments)
    assert (config.data.train.format, config.train.steps) == ("shapes", 7)
    config = command_line.load_config(arguments, base={"model": {"precision": "bfloat16"}})
    assert (config.data.train, config.model.precision, config.train.steps) == (None, "bfloat16", 7)
    assert command_line.load_config(arguments, base={}).data.train is None
    arguments = parser.parse_args(["--config", str(command_line.DEFAULT_CONFIG)])
    assert command_line.load_config(arguments, base={}).data.train.format == "shapes"

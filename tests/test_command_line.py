import argparse
import importlib

import command_line
import pytest


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

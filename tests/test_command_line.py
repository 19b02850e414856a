import argparse
import importlib
import os

import command_line
import pytest
import tensorflow as tf

from detector.config import override

# TensorFlow's own texts: of a step in a graph, of a single operation, and of a write.
IN_A_GRAPH = (
    "Graph execution error:\n\nDetected at node model/Conv2D defined at (most recent call last):\n"
    '  File "detector/memory_optimizer.py", line 1, in step\n'
    "OOM when allocating tensor with shape[2,512,64,64] and type float on /job:localhost/replica:0/task:0/"
    "device:GPU:0 by allocator GPU_0_bfc\n\t [[{{node model/Conv2D}}]]\nHint: If you want to see a list"
)
ALONE = "{{function_node __wrapped__AddV2_device_CPU:0}} failed to allocate memory [Op:AddV2] name: "
FULL_DISK = "{{function_node __wrapped__SaveV2}} runs/a/events.v2; No space left on device [Op:SaveV2]"


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (IN_A_GRAPH, "out of memory (OOM when allocating tensor with shape[2,512,64,64] and type float on "),
        (ALONE, "out of memory (failed to allocate memory): lower train.batch_size"),
        (FULL_DISK, "runs/a/events.v2; No space left on device\n"),
    ],
    ids=["in a graph", "alone", "a full disk"],
)
def test_what_ran_out_is_one_line(message, shown, capsys):
    def fail():
        raise tf.errors.ResourceExhaustedError(None, None, message)

    assert command_line.run(fail) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {shown}") and error.count("\n") == 1
    is_memory = message != FULL_DISK
    for remedy in (
        "train.batch_size",
        "model.resizer",
        "train.recompute",
        "freeze",
        "model.precision=bfloat16",
    ):
        assert (remedy in error) == is_memory


@pytest.mark.parametrize("is_too_late", [False, True])
def test_of_gpus_as_much_memory_is_taken_as_is_needed(is_too_late, monkeypatch):
    grown = []

    def grow(gpu, enable):
        grown.append((gpu, enable))
        if is_too_late:
            raise RuntimeError("Physical devices cannot be modified after being initialized")

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [f"{kind}:0", f"{kind}:1"])
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", grow)
    monkeypatch.setenv("TF_FORCE_GPU_ALLOW_GROWTH", "")  # to be put back
    monkeypatch.delenv("TF_FORCE_GPU_ALLOW_GROWTH")
    command_line.settle_process.__wrapped__()
    assert grown == [("GPU:0", True), ("GPU:1", True)]
    assert os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] == "true"  # for a benchmark's peers


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

import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from conftest import CLASS_NAMES

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import import_weights as tool

from detector import checkpoint
from detector.run_log import RunLog
from detector.weights.object_detection_api import api_names


@pytest.fixture
def source(tiny_model, tiny_config, tmp_path, monkeypatch):
    """A TF1 checkpoint of a tiny detector for three classes, and the configuration that builds it."""
    monkeypatch.chdir(tmp_path)
    model = tiny_model()
    names = api_names(model)
    variables = model.variables_by_path
    values = {names[path]: variable for path, variable in variables.items()} | {"global_step": tf.Variable(9)}
    tf.compat.v1.train.Saver(values).save(None, str(tmp_path / "zoo" / "model.ckpt"), write_meta_graph=False)
    (tmp_path / "tiny.yaml").write_text(tiny_config().to_yaml())
    return ["zoo/model.ckpt", "--config", "tiny.yaml"], variables


def test_a_checkpoint_is_written_and_every_variable_accounted_for(source, capsys):
    arguments, variables = source
    assert tool.main([*arguments, "--class-names", "circle, square,star"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "zoo/model.ckpt: Object Detection API, TF1 detector",
        "feature_extractor: 251 restored, 0 fresh",
        "rpn: 6 restored, 0 fresh",
        "box_classifier: 99 restored, 0 fresh",
        "predictor kept, class by class in the file's order: 1 → circle, 2 → square, 3 → star",
        "left in the file: 1 (the training step)",
        "wrote build/imported/zoo",
    ]
    info = checkpoint.read_info("build/imported/zoo")
    assert info.class_names == ["circle", "square", "star"]
    assert (info.step, info.provenance["rpn"]["checkpoint"]) == (0, "zoo/model.ckpt")
    for path, value in checkpoint.read_values("build/imported/zoo").items():
        np.testing.assert_array_equal(value, variables[path], err_msg=path)


def test_classes_that_nobody_named_are_told_to_be_numbers(source, capsys):
    arguments, _ = source
    assert tool.main([*arguments, "--output", "out"]) == 0
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "left in the file: 1 (the training step)",
        "classes are called 1 … 3, as the file does not name them: name them with --label-map or "
        "--class-names, or training on named classes will not find them",
        "wrote out",
    ]
    # Digits are called so.
    assert tool.main([*arguments, "--output", "out", "--class-names", "1,2,3"]) == 0
    assert "classes are called" not in capsys.readouterr().out


def test_other_classes_and_a_line_for_every_variable(source, capsys):
    arguments, _ = source
    Path("labels.pbtxt").write_text("item { id: 2 name: 'cat' }\nitem { id: 4 name: 'dog' }\n")
    assert tool.main([*arguments, "--label-map", "labels.pbtxt", "--output", "out", "--verbose"]) == 0
    out = capsys.readouterr().out.splitlines()
    bias = "box_classifier/predictor/class_scores/bias"
    assert "  restored rpn/conv/kernel <- Conv/weights" in out
    assert f"  fresh    {bias}: 3 classes in the file, 4 in the model" in out
    assert "  left     global_step: the training step" in out
    assert sum(line.startswith("  restored ") for line in out) == 352
    assert "box_classifier: 95 restored, 4 fresh (3 classes in the file, 4 in the model)" in out
    info = checkpoint.read_info("out")
    assert info.categories == [
        {"id": i, "name": n} for i, n in enumerate(["(no class 1)", "cat", "(no class 3)", "dog"], start=1)
    ]
    assert bias in info.provenance["box_classifier"]["fresh"]


def test_a_run_is_imported_with_the_ids_of_its_classes(tiny_model, tiny_config, tmp_path, capsys):
    run = RunLog(tmp_path / "run")
    run.write_text("config.yaml", "")
    categories = [{"id": 7 + i, "name": name} for i, name in enumerate(CLASS_NAMES)]
    info = checkpoint.CheckpointInfo(5, categories, tiny_config().model.model_dump(mode="json"))
    run.point("last", checkpoint.save(run.checkpoint_path(5), info, tiny_model().variables_by_path))
    assert tool.main([str(run.folder), "--output", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.startswith(f"{run.folder}/checkpoints/step-000005: checkpoint of this")
    assert checkpoint.read_info(tmp_path / "out").categories == categories


def test_the_model_is_read_off_the_file_where_no_configuration_is_given(
    shared, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(shared / "oracle"))
    import seeded_checkpoint

    tsv = shared / "oracle" / "zoo" / "faster_rcnn_inception_v2_coco_2018_01_28.tsv"
    seeded_checkpoint.main(str(tsv), "zoo/model.ckpt")
    assert tool.main(["zoo/model.ckpt", "--type", "detection", "--class-names", "cat"]) == 0
    out = capsys.readouterr().out
    assert "rpn: 0 restored, 6 fresh (the type restores the feature extractor and the tower alone)" in out
    assert "box_classifier: 95 restored, 4 fresh" in out
    assert "left in the file: 10" in out
    # And on from there: the checkpoint knows its model and classes.
    assert tool.main(["build/imported/zoo", "--output", "again"]) == 0
    assert checkpoint.read_info("again").class_names == ["cat"]

    # A label map says which classes the model has, as names do: it does not rename the file's first ones.
    Path("labels.pbtxt").write_text("item { id: 1 name: 'raccoon' }")
    capsys.readouterr()
    assert tool.main(["zoo/model.ckpt", "--label-map", "labels.pbtxt", "--output", "raccoon"]) == 0
    assert "95 restored, 4 fresh (90 classes in the file, 1 in the model)" in capsys.readouterr().out
    assert checkpoint.read_info("raccoon").class_names == ["raccoon"]


def test_mistakes_are_one_line_and_write_nothing(source, capsys):
    arguments, _ = source
    Path("taken").mkdir()
    Path("taken/file").touch()
    for more, message in (
        (["--type", "classification"], "use the type 'full'"),
        (["--set", "model.rpn.conv_depth=9"], "does not fit the model"),
        (["--set", "model.feature_extractor.type=resnet50"], "holds inception_v2, but the model is resnet50"),
        (["--output", "taken"], "exists and is no checkpoint"),
        (["--label-map", "none.pbtxt"], "none.pbtxt"),
        (
            ["--class-names", "a,,b"],
            "--class-names 'a,,b': expected names and commas, like cat,dog; name 2 is",
        ),
        (["--class-names", ""], "--class-names '': expected names and commas, like cat,dog; name 1 is empty"),
        (["--class-names", "a, b,a"], "--class-names 'a, b,a': 'a' is there twice; give each class one name"),
    ):
        assert tool.main([*arguments, *more]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error, error
    assert not Path("build").exists()
    assert tool.main(["nowhere.ckpt"]) == 2
    assert capsys.readouterr().err.startswith("error: no weights at nowhere.ckpt")

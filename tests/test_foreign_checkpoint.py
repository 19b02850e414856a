import argparse
import json
from pathlib import Path

import cv2
import diagnose as diagnose_tool
import foreign_checkpoint
import numpy as np
import predict as predict_tool
import pytest
import tensorflow as tf

from detector import checkpoint
from detector.weights.object_detection_api import api_names

PIPELINE = """
model { faster_rcnn {
  num_classes: 3
  image_resizer { fixed_shape_resizer { height: 64 width: 64 } }
  feature_extractor { type: 'faster_rcnn_inception_v2' }
  first_stage_anchor_generator { grid_anchor_generator { scales: [0.5, 1.0] aspect_ratios: [0.5, 1, 2] } }
  first_stage_box_predictor_conv_hyperparams {
    op: CONV regularizer { l2_regularizer { weight: 0.0 } }
    initializer { truncated_normal_initializer { stddev: 0.01 } }
  }
  first_stage_box_predictor_depth: 8
  initial_crop_size: 8 maxpool_kernel_size: 2 maxpool_stride: 2
  second_stage_box_predictor { mask_rcnn_box_predictor { fc_hyperparams {
    op: FC regularizer { l2_regularizer { weight: 0.0 } }
    initializer { variance_scaling_initializer { factor: 1.0 uniform: true mode: FAN_AVG } }
  } } }
  second_stage_post_processing {
    batch_non_max_suppression { iou_threshold: 0.6 max_detections_per_class: 100 max_total_detections: 300 }
    score_converter: SOFTMAX
  }
} }
eval_input_reader { label_map_path: 'labels.pbtxt' tf_record_input_reader { input_path: 'val.record' } }
"""
LABELS = "item { id: 1 name: 'cat' } item { id: 3 name: 'dog' }"


def options(**given):
    return argparse.Namespace(**{"config": None, "pipeline_config": None, "set": [], **given})


@pytest.fixture
def zoo(tiny_config, tiny_model, tmp_path, monkeypatch):
    """A TF1 detector for three classes, its pipeline.config and its label map, which has a gap."""
    monkeypatch.chdir(tmp_path)
    model = tiny_model()
    names = api_names(model)
    values = {names[path]: variable for path, variable in model.variables_by_path.items()}
    tf.compat.v1.train.Saver(values).save(None, "zoo/model.ckpt", write_meta_graph=False)
    Path("pipeline.config").write_text(PIPELINE)
    Path("labels.pbtxt").write_text(LABELS)
    Path("tiny.yaml").write_text(tiny_config().to_yaml())
    return model


def test_a_detector_of_another_project_becomes_a_checkpoint(zoo, capsys):
    path = foreign_checkpoint.as_own(Path("zoo/model.ckpt"), options(config=Path("tiny.yaml")))
    assert path == Path("build/imported/zoo")
    assert checkpoint.read_info(path).class_names == ["1", "2", "3"]
    assert capsys.readouterr().out == (
        "zoo/model.ckpt: Object Detection API, TF1 detector, imported as build/imported/zoo\n"
        "classes are called 1 … 3, as the file does not name them: name them with tools/import_weights.py "
        "--label-map FILE\n"
    )
    assert foreign_checkpoint.as_own(path, options()) == path  # one of our own stays what it is


def test_a_pipeline_config_names_the_classes_by_its_label_map(zoo):
    arguments = options(
        pipeline_config=Path("pipeline.config"),
        set=[
            "model.feature_extractor.depth_multiplier=0.1",
            "model.feature_extractor.min_depth=4",
            "model.anchors.base_size_hw=[32, 32]",
        ],
    )
    info = checkpoint.read_info(foreign_checkpoint.as_own(Path("zoo/model.ckpt"), arguments))
    assert [(category["id"], category["name"]) for category in info.categories] == [
        (1, "cat"),
        (2, "(no class 2)"),
        (3, "dog"),
    ]


def test_a_placeholder_for_a_label_map_is_no_obstacle(zoo, capsys):
    Path("zoo.config").write_text(PIPELINE.replace("labels.pbtxt", "PATH_TO_BE_CONFIGURED"))
    arguments = options(
        pipeline_config=Path("zoo.config"),
        set=[
            "model.feature_extractor.depth_multiplier=0.1",
            "model.feature_extractor.min_depth=4",
            "model.anchors.base_size_hw=[32, 32]",
        ],
    )
    info = checkpoint.read_info(foreign_checkpoint.as_own(Path("zoo/model.ckpt"), arguments))
    assert info.class_names == ["1", "2", "3"]
    assert "no label map PATH_TO_BE_CONFIGURED" in capsys.readouterr().err


def test_half_a_detector_is_refused(zoo, tiny_config):
    text = tiny_config("model.rpn.conv_depth=8").to_yaml()
    Path("other.yaml").write_text(text.replace("class_names: null", "class_names: [cat, dog]"))
    with pytest.raises(ValueError, match="does not hold the whole detector: 4 fresh"):
        foreign_checkpoint.as_own(Path("zoo/model.ckpt"), options(config=Path("other.yaml")))


@pytest.mark.usefixtures("eagerly")
def test_it_detects_on_images(zoo, capsys):
    cv2.imwrite("photo.png", np.full((40, 60, 3), 90, np.uint8))
    arguments = ["zoo/model.ckpt", "photo.png", "--output", "out"]
    assert predict_tool.main([*arguments, "--config", "tiny.yaml"]) == 0
    assert "imported as build/imported/zoo\nclasses are called 1 … 3, " in capsys.readouterr().out
    assert [
        entry["name"] for entry in json.loads(Path("out/predictions.json").read_text())["categories"]
    ] == [
        "1",
        "2",
        "3",
    ]
    arguments[0] = "build/imported/zoo"
    assert predict_tool.main([*arguments, "--set", "model.rpn.l2=1"]) == 2
    assert "build/imported/zoo has its own configuration: leave --config, " in capsys.readouterr().err


@pytest.mark.parametrize("given", [[], ["--config", "tiny.yaml"]])
def test_it_is_diagnosed_by_its_prefix_on_data_that_are_named(zoo, given, capsys):
    assert diagnose_tool.main(["zoo/model.ckpt", *given]) == 2
    assert "error: the configuration names no data: set data.train, like --set" in capsys.readouterr().err

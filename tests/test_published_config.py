"""From a published pipeline.config and checkpoint to a run, as the README has it."""

import argparse
import json
import re
import shutil
from pathlib import Path

import command_line
import cv2
import numpy as np
import plan as plan_tool
import pytest
import tensorflow as tf
from test_readme import ROOT, commands, tool
from test_tfrecord import record, write

from detector import checkpoint
from detector.weights.object_detection_api import api_names

# What published files say, of a small detector; five classes stand for COCO's.
PIPELINE = """
model { faster_rcnn {
  num_classes: 5
  image_resizer { fixed_shape_resizer { height: 64 width: 64 } }
  feature_extractor { type: 'faster_rcnn_inception_v2' }
  first_stage_anchor_generator { grid_anchor_generator { scales: [0.5, 1.0] aspect_ratios: [0.5, 1, 2] } }
  first_stage_box_predictor_conv_hyperparams {
    op: CONV regularizer { l2_regularizer { weight: 0.0 } }
    initializer { truncated_normal_initializer { stddev: 0.00999999977648 } }
  }
  first_stage_box_predictor_depth: 8
  first_stage_nms_iou_threshold: 0.699999988079
  first_stage_max_proposals: 16
  initial_crop_size: 8 maxpool_kernel_size: 2 maxpool_stride: 2
  second_stage_box_predictor { mask_rcnn_box_predictor { fc_hyperparams {
    op: FC regularizer { l2_regularizer { weight: 0.0 } }
    initializer { variance_scaling_initializer { factor: 1.0 uniform: true mode: FAN_AVG } }
  } } }
  second_stage_batch_size: 8
  second_stage_post_processing {
    batch_non_max_suppression { iou_threshold: 0.6 max_detections_per_class: 100 max_total_detections: 300 }
    score_converter: SOFTMAX
  }
} }
train_config {
  batch_size: 64 num_steps: 25000
  optimizer { momentum_optimizer {
    learning_rate { cosine_decay_learning_rate {
      learning_rate_base: .04 total_steps: 25000 warmup_learning_rate: .013333 warmup_steps: 2000
    } }
    momentum_optimizer_value: 0.9
  } use_moving_average: false }
  fine_tune_checkpoint: "PATH_TO_BE_CONFIGURED/model.ckpt"
  from_detection_checkpoint: true
  data_augmentation_options { random_horizontal_flip {} }
  freeze_variables: 'FirstStageFeatureExtractor/InceptionV2/Conv2d_1a_7x7'
}
train_input_reader {
  label_map_path: "PATH_TO_BE_CONFIGURED/mscoco_label_map.pbtxt"
  tf_record_input_reader { input_path: "PATH_TO_BE_CONFIGURED/mscoco_train.record" }
}
eval_input_reader {
  label_map_path: "PATH_TO_BE_CONFIGURED/mscoco_label_map.pbtxt"
  tf_record_input_reader { input_path: "PATH_TO_BE_CONFIGURED/mscoco_val.record" }
}
"""
COCO = ["person", "bicycle", "car", "motorcycle", "airplane"]
OWN = ["cat", "dog", "bird"]
BOX = (0.25, 0.1, 0.75, 0.5)
# What a pipeline.config cannot say, so that the model is as small as the tests'.
SMALL = [
    "model.feature_extractor={depth_multiplier: 0.1, min_depth: 4}",
    "model.anchors.base_size_hw=[32, 32]",
]
FIRST = ["train.steps=1", "train.evaluate_at_start=false", "train.learning_rate.warmup_steps=0"]


def options(*settings):
    return [word for setting in settings for word in ("--set", setting)]


def label_map(names):
    return "".join(f"item {{ id: {i} name: '{name}' }}\n" for i, name in enumerate(names, start=1))


@pytest.fixture
def workplace(tiny_model, tmp_path, monkeypatch):
    """What the README's commands read: a zoo's archive, a label map, COCO, records, and a photo."""
    monkeypatch.chdir(tmp_path)
    model = tiny_model(class_names=COCO)
    names = api_names(model)
    values = {names[path]: variable for path, variable in model.variables_by_path.items()}
    tf.compat.v1.train.Saver(values).save(None, "zoo/model.ckpt", write_meta_graph=False)
    Path("zoo/pipeline.config").write_text(PIPELINE)
    Path("mscoco_label_map.pbtxt").write_text(label_map(COCO))
    Path("label_map.pbtxt").write_text(label_map(OWN))
    write("train.record", *(record([BOX], [number], [], str(number)) for number in (1, 2)))
    write("val.record", record([BOX], [1]))
    cv2.imwrite("photo.jpg", np.full((40, 60, 3), 90, np.uint8))
    Path("val2017").mkdir()
    shutil.copy("photo.jpg", "val2017/1.jpg")
    truth = {
        "images": [{"id": 1, "file_name": "1.jpg", "height": 40, "width": 60}],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 20]}],
    }
    Path("instances_val2017.json").write_text(json.dumps(truth))


def readme(*words):
    """Return the README's commands that have one of the words in an argument."""
    return [
        command
        for command in commands(ROOT / "README.md")
        if any(word in " ".join(command) for word in words)
    ]


@pytest.mark.filterwarnings("ignore:Even though the:UserWarning")
@pytest.mark.usefixtures("workplace", "eagerly")
def test_a_published_detector_detects_on_a_photo(capsys):
    imported, predicted, evaluated = readme("checkpoints/coco")
    assert tool(imported).main([*imported[1:], *options(*SMALL)]) == 0
    printed = capsys.readouterr().out
    assert "predictor kept, class by class in the file's order: 1 → person, 2 → bicycle, " in printed
    assert "classes are called" not in printed
    assert tool(predicted).main(predicted[1:]) == 0
    page = json.loads(Path("predictions/predictions.json").read_text())
    assert [category["name"] for category in page["categories"]] == COCO
    assert tool(evaluated).main(evaluated[1:]) == 0
    assert "AP     IoU 0.50:0.95" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:Even though the:UserWarning")
@pytest.mark.usefixtures("workplace", "eagerly")
def test_a_published_configuration_is_fine_tuned_with_data_of_ones_own(capsys):
    (command,) = (command for command in readme("zoo/pipeline.config") if command[0] == "tools/train.py")
    assert tool(command).main([*command[1:], *options(*SMALL, *FIRST), "--no-progress"]) == 0
    printed = capsys.readouterr()
    assert (
        "train_config.from_detection_checkpoint: true\n      replaced by --set train.restore.type\n"
        in printed.err
    )
    assert "train_config.freeze_variables: " in printed.err and "      replaced by --freeze\n" in printed.err
    told = [line for line in printed.out.splitlines() if "fresh" in line or "restored" in line][:2]
    assert told == [
        "zoo/model.ckpt: Object Detection API, TF1 detector, 352 of 356 variables restored",
        "  box_classifier: 95 restored, 4 fresh (5 classes in the file, 3 in the model)",
    ]
    assert "model.num_classes" not in printed.out and "learning rate" not in printed.out
    assert re.search(r"box_classifier +99 .* part fresh\n", printed.out)
    assert "freeze box_classifier/tower: matches 95 variables" in printed.out
    assert re.search(r"proof: all \d+ frozen variables are bit-identical", printed.out)
    info = checkpoint.read_info("runs/pipeline-001/checkpoints/last")
    assert info.class_names == OWN


@pytest.mark.usefixtures("workplace")
def test_what_is_left_as_it_was_published_is_told(capsys):
    start = ["--pipeline-config", "zoo/pipeline.config", *options(*SMALL)]
    assert plan_tool.main(start) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(
        "error: PATH_TO_BE_CONFIGURED stands where paths of yours belong: set data.train.path, "
        "data.train.label_map, train.restore.path, each like --set data.train.path=FILE, or "
    )
    data = "data.train={path: train.record, label_map: label_map.pbtxt}"
    start += options(data, "train.restore.path=zoo/model.ckpt", "train.steps=1000")
    assert plan_tool.main([*start, "--freeze", "rpn"]) == 2
    assert "; set train.restore.type=full, which restores the RPN" in capsys.readouterr().err

    assert plan_tool.main([*start, *options("train.restore.type=full")]) == 0
    printed = capsys.readouterr()
    assert (
        "freeze_variables: [FirstStageFeatureExtractor/InceptionV2/Conv2d_1a_7x7]\n      honoured"
        in printed.err
    )
    assert (
        "model.num_classes is 5, and label_map.pbtxt ends at 3: classes 4 … 5 are predicted, and nothing is "
        "labelled with them; --set model.num_classes=3 leaves them out\n"
    ) in printed.out
    assert (
        "  predictor kept, class by class in the file's order: 1 → cat, 2 → dog, 3 → bird, 4 → (no"
        in printed.out
    )
    assert "learning rate: its warmup takes 2,000 steps, and the run ends at 1,000, with " in printed.out


def notes_of(capsys, *given):
    parser = argparse.ArgumentParser()
    command_line.add_config_options(parser)
    command_line.add_freeze_options(parser)
    config = command_line.load_config(parser.parse_args(["--pipeline-config", "pipeline.config", *given]))
    lines = [line.strip() for line in capsys.readouterr().err.splitlines()]
    return config, {lines[at].partition(":")[0]: lines[at + 1] for at in range(1, len(lines), 2)}


def test_a_note_says_which_option_took_the_place_of_what_it_is_about(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    trained = "update_trainable_variables: 'SecondStage'"
    Path("pipeline.config").write_text(PIPELINE.replace("freeze_variables:", f"{trained} freeze_variables:"))
    frozen, trained, restored = (
        f"train_config.{name}"
        for name in ("freeze_variables", "update_trainable_variables", "from_detection_checkpoint")
    )
    config, notes = notes_of(capsys)
    assert notes[frozen].startswith("honoured") and notes[trained].startswith("honoured")
    assert notes[restored].startswith("RPN and predictor start fresh, as in the API; ")
    assert config.freeze.train_only == ("api:SecondStage",)

    config, notes = notes_of(capsys, "--freeze", "rpn")
    assert notes[frozen] == "replaced by --freeze" and notes[trained].startswith("honoured")
    assert (config.freeze.freeze, config.freeze.train_only) == (("rpn",), ("api:SecondStage",))
    _, notes = notes_of(capsys, "--train-only", "rpn", *options("freeze.freeze=[rpn]"))
    assert notes[trained] == "replaced by --train-only"
    assert notes[frozen] == "replaced by --set freeze.freeze"
    # The same again replaces nothing.
    _, notes = notes_of(capsys, *options("train.restore={type: detection}", "freeze.allow_fresh=true"))
    assert notes[restored].startswith("RPN") and notes[frozen].startswith("honoured")

import math
import re
from pathlib import Path

import pytest

from detector import config, model_config
from detector.pipeline_config import (
    PipelineConfigError,
    format_notes,
    parse_pipeline_config,
    placeholders,
    read_pipeline_config,
)
from detector.schedule import learning_rate_schedule

ORACLE = Path(__file__).parents[2] / "shared" / "oracle" / "reference"

MODEL = """
model {
  faster_rcnn {
    num_classes: 3
    image_resizer { fixed_shape_resizer { height: 384 width: 512 } }
    feature_extractor { type: 'faster_rcnn_inception_v2' first_stage_features_stride: 16 }
    first_stage_anchor_generator {
      grid_anchor_generator { scales: [.5, 1, 2] aspect_ratios: 1.0 aspect_ratios: 2.0 }
    }
    first_stage_box_predictor_conv_hyperparams {
      op: CONV
      regularizer { l2_regularizer { weight: 1e-4 } }
      initializer { truncated_normal_initializer { stddev: 0.01 } }
    }
    first_stage_max_proposals: 100
    initial_crop_size: 17
    maxpool_kernel_size: 1
    maxpool_stride: 1
    second_stage_box_predictor {
      mask_rcnn_box_predictor {
        use_dropout: true
        dropout_keep_probability: 0.7
        fc_hyperparams {
          op: FC
          regularizer { l2_regularizer { weight: 0.0 } }
          initializer { variance_scaling_initializer { factor: 1.0 uniform: true mode: FAN_AVG } }
        }
      }
    }
    second_stage_post_processing {
      batch_non_max_suppression { iou_threshold: 0.5 max_total_detections: 50 }
      score_converter: SOFTMAX
    }
  }
}
"""
TRAIN = """
train_config: <
  batch_size: 2
  num_steps: 900;
  optimizer {
    momentum_optimizer {
      learning_rate: { constant_learning_rate { learning_rate: .003 } }
    }
    use_moving_average: false
  }
  data_augmentation_options { random_horizontal_flip {} }
>
"""
DATA = """
train_input_reader { label_map_path: "cells.pbtxt" tf_record_input_reader { input_path: "train-*.record" } }
eval_config {}
eval_input_reader: [{ tf_record_input_reader { input_path: ["a.record", "b.record"] } }]
"""
FULL = MODEL + TRAIN + DATA


def edited(*changes, text=FULL):
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def refused(text):
    """Return {field: consequence} of what would change results."""
    return {n.field: n.consequence for n in parse_pipeline_config(text).notes if n.changes_results}


def harmless(text):
    return {n.field: n.consequence for n in parse_pipeline_config(text).notes if not n.changes_results}


def values_of(text):
    """Return the values of a text that can be honoured, after this project's own check."""
    assert refused(text) == {}
    values = parse_pipeline_config(text).values
    config.validate(values, "test")
    return values


@pytest.mark.parametrize(
    "api_type", ["faster_rcnn_inception_resnet_v2", "faster_rcnn_inception_resnet_v2_keras"]
)
def test_inception_resnet_v2_is_mapped_at_stride_16_and_refused_at_8(api_type):
    text = edited(("faster_rcnn_inception_v2", api_type))
    assert values_of(text)["model"]["feature_extractor"] == {
        "type": "inception_resnet_v2",
        "depth_multiplier": 1.0,
        "min_depth": 16,
        "batch_norm_momentum": 0.9997,
        "batch_norm_epsilon": 0.001,
    }
    # The published "atrous" configurations.
    dense = edited(("features_stride: 16", "features_stride: 8"), text=text)
    assert list(refused(dense)) == ["model.faster_rcnn.feature_extractor.first_stage_features_stride"]


def test_what_is_absent_has_the_defaults_of_the_protos():
    values = values_of(FULL)
    assert values == {
        "model": {
            "feature_extractor": {
                "type": "inception_v2",
                "depth_multiplier": 1.0,
                "min_depth": 16,
                "batch_norm_momentum": 0.9997,
                "batch_norm_epsilon": 0.001,
            },
            "num_classes": 3,
            "resizer": {"kind": "fixed_shape", "height": 384, "width": 512},
            "anchors": {
                "base_size_hw": [256, 256],
                "stride_hw": [16, 16],
                "offset_hw": [0, 0],
                "scales": [0.5, 1.0, 2.0],
                "aspect_ratios": [1.0, 2.0],
            },
            "rpn": {
                "conv_depth": 512,
                "kernel_size": 3,
                "minibatch_size": 256,
                "positive_fraction": 0.5,
                "nms_score_threshold": 0.0,
                "nms_iou_threshold": 0.7,
                "max_proposals": 100,
                "clip_anchors": False,
                "box_loss_weight": 1.0,
                "objectness_loss_weight": 1.0,
                "l2": 1e-4,
            },
            "box_classifier": {
                "crop_size": 17,
                "pool_size": 1,
                "pool_stride": 1,
                "batch_size": 64,
                "positive_fraction": 0.25,
                "share_box_across_classes": False,
                "dropout_rate": 0.3,
                "box_loss_weight": 1.0,
                "class_loss_weight": 1.0,
                "l2": 0.0,
                "nms_score_threshold": 0.0,
                "nms_iou_threshold": 0.5,
                "max_detections_per_class": 100,
                "max_detections": 50,
            },
            "batch_norm": "fixed",
        },
        "evaluate": {"batch_size": 1},
        "data": {
            "train": {"format": "tfrecord", "path": ["train-*.record"], "label_map": "cells.pbtxt"},
            "evaluate": {"format": "tfrecord", "path": ["a.record", "b.record"]},
            "augment": [{"name": "HorizontalFlip", "p": 0.5}],
        },
        "train": {
            "batch_size": 2,
            "steps": 900,
            "optimizer": {"kind": "sgd", "momentum": 0.9},
            "learning_rate": {"schedule": "constant", "base": 0.003},
            "clip_norm": None,
        },
        "freeze": {"freeze": [], "train_only": []},
    }
    assert parse_pipeline_config(FULL).notes == ()


@pytest.mark.parametrize(
    ("new", "section", "expected"),
    [
        ("first_stage_box_predictor_depth: 64", "rpn", {"conv_depth": 64}),
        ("first_stage_box_predictor_kernel_size: 5", "rpn", {"kernel_size": 5}),
        ("first_stage_minibatch_size: 32", "rpn", {"minibatch_size": 32}),
        ("first_stage_positive_balance_fraction: 0.4", "rpn", {"positive_fraction": 0.4}),
        ("first_stage_nms_score_threshold: 0.1", "rpn", {"nms_score_threshold": 0.1}),
        ("first_stage_nms_iou_threshold: 0.8", "rpn", {"nms_iou_threshold": 0.8}),
        ("clip_anchors_to_image: true", "rpn", {"clip_anchors": True}),
        ("first_stage_localization_loss_weight: 2", "rpn", {"box_loss_weight": 2.0}),
        ("first_stage_objectness_loss_weight: 3", "rpn", {"objectness_loss_weight": 3.0}),
        ("second_stage_batch_size: 32", "box_classifier", {"batch_size": 32}),
        ("second_stage_balance_fraction: 0.3", "box_classifier", {"positive_fraction": 0.3}),
        ("second_stage_localization_loss_weight: 2", "box_classifier", {"box_loss_weight": 2.0}),
        ("second_stage_classification_loss_weight: 3", "box_classifier", {"class_loss_weight": 3.0}),
    ],
)
def test_each_setting_of_the_two_stages(new, section, expected):
    before = values_of(FULL)["model"]
    after = values_of(edited(("num_classes: 3", f"num_classes: 3 {new}")))["model"]
    assert after[section] == before[section] | expected
    assert after | {section: 0} == before | {section: 0}


def test_settings_of_nested_messages():
    model = values_of(
        edited(
            ("grid_anchor_generator {", "grid_anchor_generator { height: 64 width: 32 height_stride: 8"),
            ("aspect_ratios: 2.0", "aspect_ratios: 2.0 width_stride: 4 height_offset: 2 width_offset: 1"),
            ("use_dropout: true", "share_box_across_classes: true"),
            ("iou_threshold: 0.5", "score_threshold: 0.2 max_detections_per_class: 7"),
            ("l2_regularizer { weight: 0.0 }", "l2_regularizer {}"),
            ("first_stage_features_stride: 16", "batch_norm_trainable: true"),
        )
    )["model"]
    assert model["anchors"] == {
        "base_size_hw": [64, 32],
        "stride_hw": [8, 4],
        "offset_hw": [2, 1],
        "scales": [0.5, 1.0, 2.0],
        "aspect_ratios": [1.0, 2.0],
    }
    head = model["box_classifier"]
    assert (head["share_box_across_classes"], head["dropout_rate"]) == (True, 0.0)
    assert (head["nms_score_threshold"], head["nms_iou_threshold"]) == (0.2, 0.6)
    assert head["max_detections_per_class"] == 7
    assert head["l2"] == 1.0  # the proto's default of a regularizer that is there without a weight
    assert model["batch_norm"] == "update"


@pytest.mark.parametrize(
    ("api_type", "expected"),
    [
        *[(f"faster_rcnn_resnet{d}", {"type": f"resnet{d}", "topology": "slim"}) for d in (50, 101, 152)],
        *[
            (f"faster_rcnn_resnet{d}_keras", {"type": f"resnet{d}", "topology": "keras"})
            for d in (50, 101, 152)
        ],
    ],
)
def test_resnets(api_type, expected):
    model = values_of(edited(("faster_rcnn_inception_v2", api_type)))["model"]
    batch_norm = {"batch_norm_momentum": 0.997, "batch_norm_epsilon": 1e-5}
    assert model["feature_extractor"] == expected | batch_norm


def test_numbers_are_float32_as_files_that_were_written_from_protos_have_them():
    """The zoo's files say 0.00999999977648 for 0.01, and those of TF2 0.009999999776482582."""
    text = edited(
        ("stddev: 0.01", "stddev: 0.00999999977648"),
        ("num_classes: 3", "num_classes: 3 first_stage_nms_iou_threshold: 0.699999988079"),
        ("dropout_keep_probability: 0.7", "dropout_keep_probability: 0.699999988079071"),
        ("scales: [.5, 1, 2]", "scales: [0.10000000149011612, 1, 1e9]"),
        ("iou_threshold: 0.5", "iou_threshold: 0.123456789"),
    )
    model = values_of(text)["model"]
    assert model["rpn"]["nms_iou_threshold"] == 0.7
    assert model["box_classifier"]["dropout_rate"] == 0.3
    assert model["box_classifier"]["nms_iou_threshold"] == 0.12345679
    assert model["anchors"]["scales"] == [0.1, 1.0, 1e9]
    rates = learning_rate("constant_learning_rate { learning_rate: 1.99999994948e-05 }")
    assert rates(0) == 2e-5
    with pytest.raises(config.ConfigError, match=r"nms_iou_threshold: .*finite number, got inf"):
        values_of(edited(("iou_threshold: 0.5", "iou_threshold: 1e99")))


def test_defaults_that_the_other_tests_set():
    model = values_of(
        edited(
            ("first_stage_max_proposals: 100", ""),
            ("iou_threshold: 0.5 max_total_detections: 50", ""),
            ("dropout_keep_probability: 0.7", ""),
            ("regularizer { l2_regularizer { weight: 0.0 } }", "regularizer {}"),
            (
                "regularizer { l2_regularizer { weight: 1e-4 } }",
                "regularizer { l1_regularizer { weight: 0 } }",
            ),
        )
    )["model"]
    assert (model["rpn"]["max_proposals"], model["rpn"]["l2"]) == (300, 0.0)
    head = model["box_classifier"]
    assert (head["nms_iou_threshold"], head["max_detections"]) == (0.6, 100)
    assert (head["dropout_rate"], head["l2"]) == (0.5, 0.0)


def test_resizers():
    fixed = "fixed_shape_resizer { height: 384 width: 512 }"

    def resizer(text):
        return values_of(edited((fixed, text)))["model"]["resizer"]

    assert resizer("fixed_shape_resizer {}") == {"kind": "fixed_shape", "height": 300, "width": 300}
    keep = {"kind": "keep_aspect_ratio", "min_dimension": 600, "max_dimension": 1024, "pad": False}
    assert resizer("keep_aspect_ratio_resizer {}") == keep
    assert resizer(
        "keep_aspect_ratio_resizer { min_dimension: 640 max_dimension: 640 pad_to_max_dimension: true "
        "resize_method: BILINEAR per_channel_pad_value: [0, 0, 0] }"
    ) == {"kind": "keep_aspect_ratio", "min_dimension": 640, "max_dimension": 640, "pad": True}


def test_a_model_alone_and_its_bare_inside():
    whole = values_of(MODEL)
    assert set(whole) == {"model"}
    inside = MODEL.strip().removeprefix("model {").removesuffix("}")
    assert values_of(inside) == whole


@pytest.mark.parametrize("name", ["faster_rcnn_inception_v2", "faster_rcnn_resnet50_v1"])
def test_oracle_configurations(name):
    path = ORACLE / f"{name}.model.config"
    if not path.exists():
        pytest.skip("needs ../shared/oracle")
    read = read_pipeline_config(path)
    assert read.notes == ()
    model = config.validate(read.values, name).model
    assert model.num_classes == 90
    assert model.anchors == model_config.AnchorsConfig()
    assert model.box_classifier == model_config.BoxClassifierConfig(
        share_box_across_classes=name.endswith("resnet50_v1"),
        batch_size=300 if name.endswith("resnet50_v1") else 64,
    )
    if name.endswith("inception_v2"):
        assert model.rpn == model_config.RpnConfig()
        assert model.resizer == model_config.FixedShapeConfig(kind="fixed_shape", height=512, width=512)
        assert model.feature_extractor.type == "inception_v2"
    else:
        assert model.rpn == model_config.RpnConfig(minibatch_size=200000, clip_anchors=True)
        assert model.resizer == model_config.KeepAspectRatioConfig(
            kind="keep_aspect_ratio", min_dimension=640, max_dimension=640, pad=True
        )
        assert (model.feature_extractor.type, model.feature_extractor.topology) == ("resnet50", "keras")


# What to change in FULL, the (end of the) field that must be named, and a word of what is said about it.
STEM = "first_stage_box_predictor_conv_hyperparams"
FIXED, GRID = "fixed_shape_resizer { height: 384 width: 512 }", "grid_anchor_generator { scales: [.5, 1, 2] "
GRID += "aspect_ratios: 1.0 aspect_ratios: 2.0 }"
CONSTANT = "constant_learning_rate { learning_rate: .003 }"
LABELS = 'label_map_path: "cells.pbtxt"'
# fmt: off
REFUSED = [
    ("num_classes: 3", "", "faster_rcnn.num_classes", "1 or more"),
    ("initial_crop_size: 17", "", "initial_crop_size", "1 or more"),
    ("maxpool_stride: 1", "maxpool_stride: 0", "maxpool_stride", "1 or more"),
    ("num_classes: 3", "num_classes: 3 number_of_stages: 3", "number_of_stages", "masks"),
    ("num_classes: 3", "num_classes: 3 first_stage_only: true", "first_stage_only", "always built"),
    ("num_classes: 3", "num_classes: 3 first_stage_atrous_rate: 2", "first_stage_atrous_rate", "dilated"),
    ("num_classes: 3", "num_classes: 3 hard_example_miner {}", "hard_example_miner", "balanced draw"),
    ("num_classes: 3", "num_classes: 3 context_config {}", "context_config", "Context R-CNN"),
    ("num_classes: 3", "num_classes: 3 second_stage_classification_loss { weighted_sigmoid {} }",
     "second_stage_classification_loss.weighted_sigmoid", "cross entropy"),
    ("num_classes: 3",
     "num_classes: 3 second_stage_classification_loss { weighted_softmax { logit_scale: 2 } }",
     "weighted_softmax.logit_scale", "not scaled"),
    ("'faster_rcnn_inception_v2'", "'faster_rcnn_nas'", "feature_extractor.type",
     "faster_rcnn_resnet50_keras"),
    ("type: 'faster_rcnn_inception_v2'", "", "feature_extractor.type", "faster_rcnn_resnet101"),
    ("features_stride: 16", "features_stride: 8", "first_stage_features_stride", "stride 16"),
    ("first_stage_features_stride: 16", "fpn {}", "feature_extractor.fpn", "pyramid"),
    ("first_stage_features_stride: 16", "conv_hyperparams {}", "feature_extractor.conv_hyperparams",
     "extractor's own"),
    ("first_stage_features_stride: 16", "override_base_feature_extractor_hyperparams: true",
     "override_base_feature_extractor_hyperparams", "extractor's own"),
    (f"image_resizer {{ {FIXED} }}", "", "faster_rcnn.image_resizer", "no default"),
    (FIXED, "identity_resizer {}", "identity_resizer", "use fixed_shape_resizer"),
    (FIXED, "conditional_shape_resizer {}", "conditional_shape_resizer", "use fixed_shape_resizer"),
    (FIXED, "fixed_shape_resizer {} keep_aspect_ratio_resizer {}", "keep_aspect_ratio_resizer",
     "only one of"),
    (FIXED, "keep_aspect_ratio_resizer { per_channel_pad_value: [1, 0, 0] }", "per_channel_pad_value",
     "with 0"),
    ("width: 512", "resize_method: AREA", "fixed_shape_resizer.resize_method", "bilinear"),
    ("width: 512", "convert_to_grayscale: true", "fixed_shape_resizer.convert_to_grayscale",
     "three channels"),
    (GRID, "ssd_anchor_generator {}", "first_stage_anchor_generator.ssd_anchor_generator", "one grid"),
    (f"first_stage_anchor_generator {{\n      {GRID}\n    }}", "", "first_stage_anchor_generator",
     "no default"),
    ("scales: [.5, 1, 2]", "", "grid_anchor_generator.scales", "no anchors"),
    ("op: CONV", "op: FC", f"{STEM}.op", "expected CONV"),
    ("op: FC", "", "fc_hyperparams.op", "expected FC"),
    ("op: CONV", "op: CONV batch_norm {}", f"{STEM}.batch_norm", "no normalisation"),
    ("l2_regularizer { weight: 1e-4 }", "l1_regularizer {}", f"{STEM}.regularizer.l1_regularizer.weight",
     "no L1"),
    ("stddev: 0.01", "stddev: 0.03", "initializer.truncated_normal_initializer",
     r"_initializer \[0.0, 0.01\]"),
    ("initializer { truncated_normal_initializer { stddev: 0.01 } }", "",
     f"{STEM}.initializer.truncated_normal_initializer", "fresh kernels"),
    ("uniform: true", "", "fc_hyperparams.initializer.variance_scaling_initializer", "FAN_AVG"),
    ("factor: 1.0", "", "fc_hyperparams.initializer.variance_scaling_initializer", "FAN_AVG"),
    ("mode: FAN_AVG", "mode: FAN_IN", "fc_hyperparams.initializer.variance_scaling_initializer", "FAN_AVG"),
    ("truncated_normal_initializer { stddev: 0.01 }", "keras_initializer_by_name: 'he_normal'",
     "initializer.keras_initializer_by_name", "fresh kernels"),
    ("use_dropout: true", "predict_instance_masks: true", "predict_instance_masks", "no masks"),
    ("use_dropout: true", "predict_keypoints: true", "predict_keypoints", "no keypoints"),
    ("use_dropout: true", "box_code_size: 5", "mask_rcnn_box_predictor.box_code_size", "four numbers"),
    ("second_stage_box_predictor {", "second_stage_box_predictor { rfcn_box_predictor {}",
     "second_stage_box_predictor.rfcn_box_predictor", "use mask_rcnn_box_predictor"),
    ("score_converter: SOFTMAX", "", "second_stage_post_processing.score_converter", "expected SOFTMAX"),
    ("score_converter: SOFTMAX", "score_converter: SOFTMAX logit_scale: 2.0",
     "second_stage_post_processing.logit_scale", "not scaled"),
    ("score_converter: SOFTMAX", "score_converter: SOFTMAX calibration_config {}",
     "second_stage_post_processing.calibration_config", "not calibrated"),
    ("iou_threshold: 0.5", "soft_nms_sigma: 0.5", "batch_non_max_suppression.soft_nms_sigma", "dropped"),
    ("iou_threshold: 0.5", "use_class_agnostic_nms: true", "use_class_agnostic_nms", "by itself"),
    ("iou_threshold: 0.5", "change_coordinate_frame: false", "change_coordinate_frame",
     "relative to the image"),
    ("batch_size: 2", "merge_multiple_label_boxes: true", "merge_multiple_label_boxes", "one class"),
    ("batch_size: 2", "use_multiclass_scores: true", "use_multiclass_scores", "one class"),
    ("batch_size: 2", "bias_grad_multiplier: 2.0", "bias_grad_multiplier", "legacy/train.py"),
    ("batch_size: 2", "fine_tune_checkpoint: 'x' fine_tune_checkpoint_type: 'fine_tune'",
     "fine_tune_checkpoint_type", "expected classification, detection or full"),
    ("momentum_optimizer {", "rms_prop_optimizer {", "optimizer.rms_prop_optimizer", "AdamW"),
    (f"learning_rate: {{ {CONSTANT} }}", "", "learning_rate.constant_learning_rate",
     "expected a learning rate"),
    (f"momentum_optimizer {{\n      learning_rate: {{ {CONSTANT} }}\n    }}", "",
     "train_config.optimizer.momentum_optimizer", "expected an optimizer"),
    (CONSTANT, "cosine_decay_learning_rate { hold_base_rate_steps: 10 }", "hold_base_rate_steps",
     "right after"),
    (CONSTANT, "manual_step_learning_rate {}", "manual_step_learning_rate.schedule", "at least one"),
    (CONSTANT, "exponential_decay_learning_rate { decay_steps: 10 staircase: false }", "staircase",
     "in steps"),
    (f"num_steps: 900;\n  optimizer {{\n    momentum_optimizer {{\n      learning_rate: {{ {CONSTANT} }}",
     "num_steps: 10020 optimizer { momentum_optimizer { learning_rate { exponential_decay_learning_rate { "
     "decay_steps: 10 } }", "exponential_decay_learning_rate.decay_steps", "at most 1000"),
    ("random_horizontal_flip {}", "random_crop_image { min_area: 0.5 }",
     "data_augmentation_options.random_crop_image",
     "BBoxSafeRandomCrop.*set data.augment"),
    ("random_horizontal_flip {}", "random_adjust_hue { max_delta: 0.7 }", "random_adjust_hue.max_delta",
     "most 0.5"),
    ("random_horizontal_flip {}", "random_distort_color { color_ordering: 2 }", "color_ordering", "0 or 1"),
    (LABELS, "shuffle: false", "train_input_reader.shuffle", "always shuffled"),
    (LABELS, "num_epochs: 1", "train_input_reader.num_epochs", "train.steps"),
    (LABELS, "sample_1_of_n_examples: 2", "train_input_reader.sample_1_of_n_examples", "every example"),
    (LABELS, "num_additional_channels: 1", "train_input_reader.num_additional_channels", "three channels"),
    (LABELS, "expand_labels_hierarchy: true", "train_input_reader.expand_labels_hierarchy", "hierarchy"),
    (LABELS, "input_type: TF_SEQUENCE_EXAMPLE", "train_input_reader.input_type", "tf.train.Example"),
    (LABELS, "sample_from_datasets_weights: 2", "train_input_reader.sample_from_datasets_weights",
     "one data set"),
    ('tf_record_input_reader { input_path: "train-*.record" }', "external_input_reader {}",
     "train_input_reader.external_input_reader", "there is tf_record_input_reader only"),
    ('tf_record_input_reader { input_path: "train-*.record" }', "",
     "train_input_reader.tf_record_input_reader.input_path", "expected a path"),
    ("eval_input_reader: [{", "eval_input_reader: [{}, {", "eval_input_reader", "more than once; keep one"),
    ("eval_config {}", "eval_config { force_no_resize: true }", "eval_config.force_no_resize", "resized"),
    ("eval_config {}", "eval_config { skip_predictions_for_unlabeled_class: true }",
     "skip_predictions_for_unlabeled_class", "all detections"),
    ("eval_config {}", "graph_rewriter { quantization { delay: 1 } }", "graph_rewriter.quantization",
     "quantize"),
    ("  faster_rcnn {", "  ssd {", "model.ssd", "no other architecture"),
    # Unknown fields, and values of another type.
    ("batch_size: 2", "bacth_size: 2", "train_config.bacth_size", "no such field.*nearest: batch_size"),
    ("num_classes: 3", "num_classes: 3 zzz { a: 1 }", "faster_rcnn.zzz", "no such field is known here"),
    ("eval_config {}", "evaluation {}", "evaluation", "no such field"),
    ("stddev: 0.01", "stdev: 0.01", "truncated_normal_initializer.stdev", "nearest: stddev"),
    ("num_classes: 3", "num_classes: 3.5", "faster_rcnn.num_classes", "expected a whole number"),
    ("num_classes: 3", "num_classes: 3 num_classes: 4", "faster_rcnn.num_classes", "more than once"),
    ("use_dropout: true", "use_dropout: 2", "mask_rcnn_box_predictor.use_dropout", "expected true or false"),
    ("scales: [.5, 1, 2]", "scales: ['a', 1]", "grid_anchor_generator.scales", "expected a number"),
    ("'faster_rcnn_inception_v2'", "inception", "feature_extractor.type", "quoted string"),
    ("score_converter: SOFTMAX", "score_converter: 'SOFTMAX'", "score_converter", "expected one of IDENTITY"),
    ("op: CONV", "op: SOFT", f"{STEM}.op", "expected one of CONV"),
    ("width: 512", "resize_method: 'AREA'", "fixed_shape_resizer.resize_method", "BILINEAR"),
    ("batch_size: 2", "use_multiclass_scores: 'no'", "use_multiclass_scores", "expected true or false"),
    ("eval_config {}", "eval_config: 3", "eval_config", "expected a message"),
]
# fmt: on


@pytest.mark.parametrize(("old", "new", "field", "consequence"), REFUSED)
def test_what_would_change_results_is_refused(tmp_path, old, new, field, consequence):
    path = tmp_path / "pipeline.config"
    path.write_text(edited((old, new)))
    with pytest.raises(PipelineConfigError) as caught:
        read_pipeline_config(path)
    notes = [note for note in caught.value.notes if f".{note.field}".endswith(f".{field}")]
    assert any(re.search(consequence, note.consequence) for note in notes), str(caught.value)
    assert len(caught.value.notes) <= 3  # what is wrong, and at most what is missing because of it
    for note in caught.value.notes:
        assert f"{note.field}: {note.value}\n      {note.consequence}" in str(caught.value)


def test_another_kind_is_refused_once():
    assert set(refused(edited(("momentum_optimizer {", "rms_prop_optimizer {")))) == {
        "train_config.optimizer.rms_prop_optimizer"
    }
    assert set(refused(edited(("  faster_rcnn {", "  ssd {")))) == {"model.ssd"}


def test_one_error_lists_everything(tmp_path):
    path = tmp_path / "pipeline.config"
    path.write_text(
        edited(
            ("features_stride: 16", "features_stride: 8"),
            ("random_horizontal_flip {}", "random_jitter_boxes {}"),
            ("batch_size: 2", "bacth_size: 2"),
        )
    )
    with pytest.raises(PipelineConfigError) as caught:
        read_pipeline_config(path)
    assert str(caught.value).splitlines() == [
        f"{path}: cannot be honoured, and would change results (3); change or delete:",
        "  model.faster_rcnn.feature_extractor.first_stage_features_stride: 8",
        "      features have stride 16 here",
        "  train_config.data_augmentation_options.random_jitter_boxes: {}",
        "      albumentations has no transform that does this; set data.augment and delete this",
        "  train_config.bacth_size: 2",
        "      no such field is known here; nearest: batch_size",
    ]
    with pytest.raises(PipelineConfigError, match=r"results \(1\)") as caught:
        read_pipeline_config(path, training=False)
    assert [note.field for note in caught.value.notes] == [
        "model.faster_rcnn.feature_extractor.first_stage_features_stride"
    ]


def test_without_training_what_concerns_only_training_is_a_note(tmp_path):
    path = tmp_path / "pipeline.config"
    path.write_text(
        edited(
            ("random_horizontal_flip {}", "ssd_random_crop {}"),
            ('label_map_path: "cells.pbtxt"', "num_epochs: 1"),
            ("batch_size: 2", "freeze_variables: 'Mixed_3.*'"),
            ("eval_config {}", "eval_config { num_examples: 10 }"),
        )
    )
    fields = {note.field for note in read_pipeline_config(path, training=False).notes}
    assert fields == {
        "train_config.data_augmentation_options.ssd_random_crop",
        "train_input_reader.num_epochs",
        "eval_config.num_examples",
    }


# fmt: off
IGNORED = [
    ("num_classes: 3", "num_classes: 3 second_stage_classification_loss { weighted_softmax { "
     "anchorwise_output: true } }", "weighted_softmax.anchorwise_output"),
    ("num_classes: 3", "num_classes: 3 use_matmul_crop_and_resize: true", "use_matmul_crop_and_resize"),
    ("num_classes: 3", "num_classes: 3 use_static_balanced_label_sampler: true",
     "use_static_balanced_label_sampler"),
    ("num_classes: 3", "num_classes: 3 resize_masks: true", "faster_rcnn.resize_masks"),
    ("first_stage_features_stride: 16", "pad_to_multiple: 32", "feature_extractor.pad_to_multiple"),
    ("op: CONV", "activation: RELU_6", f"{STEM}.activation"),
    ("use_dropout: true", "mask_height: 7", "mask_rcnn_box_predictor.mask_height"),
    ("iou_threshold: 0.5", "use_combined_nms: true", "batch_non_max_suppression.use_combined_nms"),
    ("batch_size: 2", "keep_checkpoint_every_n_hours: 1.5", "train_config.keep_checkpoint_every_n_hours"),
    ("random_horizontal_flip {}", "random_rotation90 { keypoint_rot_permutation: 1 }",
     "random_rotation90.keypoint_rot_permutation"),
    ("batch_size: 2", "replicas_to_aggregate: 8", "train_config.replicas_to_aggregate"),
    ("batch_size: 2", "use_bfloat16: true", "train_config.use_bfloat16"),
    ("batch_size: 2", "fine_tune_checkpoint_version: V2", "train_config.fine_tune_checkpoint_version"),
    ("batch_size: 2", "gradient_clipping_by_norm: 1", "train_config.gradient_clipping_by_norm"),
    ("num_steps: 900;", "", "train_config.num_steps"),
    ("random_horizontal_flip {}", "random_vertical_flip { keypoint_flip_permutation: [1, 0] }",
     "random_vertical_flip.keypoint_flip_permutation"),
    (LABELS, "num_readers: 8", "train_input_reader.num_readers"),
    (LABELS, "queue_capacity: 8", "train_input_reader.queue_capacity"),
    (LABELS, "mask_type: PNG_MASKS", "train_input_reader.mask_type"),
    ("eval_input_reader: [{", "eval_input_reader: [{ num_epochs: 1", "eval_input_reader.num_epochs"),
    ("eval_input_reader: [{", "eval_input_reader: [{ shuffle: true", "eval_input_reader.shuffle"),
    ("eval_config {}", "eval_config { num_examples: 10 }", "eval_config.num_examples"),
    ("eval_config {}", "eval_config { skip_labels: true }", "eval_config.skip_labels"),
    ("eval_config {}", "eval_config { metrics_set: 'pascal_voc_detection_metrics' }",
     "eval_config.metrics_set"),
]
# fmt: on


@pytest.mark.parametrize(("old", "new", "field"), IGNORED)
def test_what_changes_no_result_is_noted(tmp_path, old, new, field):
    path = tmp_path / "pipeline.config"
    path.write_text(edited((old, new)))
    notes = [note for note in read_pipeline_config(path).notes if f".{note.field}".endswith(f".{field}")]
    assert len(notes) == 1 and notes[0].consequence
    assert field in str(notes[0]) and field in format_notes(notes)


def test_settings_at_the_only_value_they_have_here_are_not_mentioned():
    text = edited(
        ("num_classes: 3", "num_classes: 3 number_of_stages: 2 first_stage_atrous_rate: 1"),
        ("op: CONV", "op: CONV regularizer { l1_regularizer { weight: 0 } }"),
        ("      regularizer { l2_regularizer { weight: 1e-4 } }\n", ""),
        (
            "eval_config {}",
            "eval_config { metrics_set: 'coco_detection_metrics' use_moving_averages: false }",
        ),
        ("batch_size: 2", "batch_size: 2 bias_grad_multiplier: 0 merge_multiple_label_boxes: f"),
        ("maxpool_stride: 1", "maxpool_stride: 1 use_static_shapes: false"),
        ("iou_threshold: 0.5", "iou_threshold: 0.5 soft_nms_sigma: 0.0 change_coordinate_frame: True"),
        ("momentum_optimizer {", "momentum_optimizer { momentum_optimizer_value: 0.9"),
        (LABELS, "shuffle: t num_epochs: 0 input_type: INPUT_DEFAULT"),
    )
    assert parse_pipeline_config(text).notes == ()


def learning_rate(text):
    rates = config.validate(values_of(edited((CONSTANT, text))), "test").train.learning_rate
    return learning_rate_schedule(rates, steps=900)


def test_constant_learning_rate():
    assert learning_rate("constant_learning_rate {}")(5) == 0.002


def test_cosine_learning_rate():
    rate = learning_rate(
        "cosine_decay_learning_rate { learning_rate_base: .04 total_steps: 110 warmup_learning_rate: .01 "
        "warmup_steps: 10 }"
    )
    assert [rate(0), rate(5), rate(10), rate(60), rate(110), rate(500)] == pytest.approx(
        [0.01, 0.025, 0.04, 0.02, 0.0, 0.0]
    )
    without_hold = "cosine_decay_learning_rate { hold_base_rate_steps: 0 }"
    assert values_of(edited((CONSTANT, without_hold)))["train"]["learning_rate"] == {
        "schedule": "cosine",
        "base": 0.002,
        "warmup_steps": 10000,
        "warmup_start": 0.0002,
        "total_steps": 4000000,
    }


def test_manual_step_learning_rate():
    steps = "schedule { step: 10 learning_rate: .2 } schedule { step: 20 learning_rate: .03 }"
    rate = learning_rate(f"manual_step_learning_rate {{ initial_learning_rate: .1 {steps} }}")
    assert [rate(0), rate(9), rate(10), rate(19), rate(20), rate(899)] == [0.1, 0.1, 0.2, 0.2, 0.03, 0.03]
    # As manual_stepping does it: from the initial rate at step 0 in a line to the first of the schedule.
    rate = learning_rate(f"manual_step_learning_rate {{ initial_learning_rate: .1 {steps} warmup: true }}")
    assert [rate(0), rate(5), rate(10), rate(20)] == pytest.approx([0.1, 0.15, 0.2, 0.03])
    # Configurations of 2017 begin with step 0, which is also what an absent step is.
    from_zero = "manual_step_learning_rate { schedule { learning_rate: .3 } schedule { step: 7 } }"
    rate = learning_rate(from_zero)
    assert [rate(0), rate(6), rate(7)] == [0.3, 0.3, 0.002]
    # Their first rate is the base, so that setting another one is not in vain.
    assert values_of(edited((CONSTANT, from_zero)))["train"]["learning_rate"]["base"] == 0.3
    rate = learning_rate("manual_step_learning_rate { schedule { step: 7 learning_rate: .4 } }")
    assert [rate(6), rate(7)] == [0.002, 0.4]


def test_exponential_learning_rate():
    assert learning_rate("exponential_decay_learning_rate { initial_learning_rate: .1 }")(899) == 0.1

    def original(step, base, every, factor, burnin_rate, burnin, least):
        rate = base * factor ** math.floor((step - burnin) / every)
        return max(burnin_rate if step < burnin else rate, least)

    rate = learning_rate(
        "exponential_decay_learning_rate { initial_learning_rate: .1 decay_steps: 100 decay_factor: .5 "
        "burnin_learning_rate: .01 burnin_steps: 50 min_learning_rate: .02 }"
    )
    for step in (0, 49, 50, 149, 150, 249, 250, 251, 449, 899):
        assert rate(step) == pytest.approx(original(step, 0.1, 100, 0.5, 0.01, 50, 0.02)), step
    rate = learning_rate("exponential_decay_learning_rate { decay_steps: 300 }")
    for step in (0, 299, 300, 899):
        assert rate(step) == pytest.approx(original(step, 0.002, 300, 0.95, 0.002, 0, 0.0)), step
    rate = learning_rate(
        "exponential_decay_learning_rate { burnin_steps: 1 decay_steps: 1 decay_factor: .999 }"
    )
    for step in (0, 1, 2, 899):
        assert rate(step) == pytest.approx(original(step, 0.002, 1, 0.999, 0.002, 1, 0.0)), step


def test_optimizers():
    def optimizer(*changes):
        return values_of(edited(*changes))["train"]["optimizer"]

    given = "momentum_optimizer {"
    assert optimizer((given, given + "momentum_optimizer_value: 0.5")) == {"kind": "sgd", "momentum": 0.5}
    adam = {"kind": "adamw", "beta_1": 0.9, "beta_2": 0.999, "weight_decay": 0.0}
    assert optimizer((given, "adam_optimizer {")) == adam | {"epsilon": 1e-8}
    assert optimizer((given, "adam_optimizer { epsilon: 1e-3")) == adam | {"epsilon": 1e-3}


def test_moving_averages_are_refused_only_where_they_are_read():
    averages = ("use_moving_average: false", "moving_average_decay: 0.99")
    read = ("eval_config {}", "eval_config { use_moving_averages: true }")
    field = "train_config.optimizer.use_moving_average"
    assert set(harmless(edited(averages))) == {"train_config.optimizer.moving_average_decay"}
    given = ("use_moving_average: false", "use_moving_average: true")
    assert set(harmless(edited(given))) == {field}
    assert refused(edited(averages)) == refused(edited(given)) == {}
    assert set(refused(edited(averages, read))) == {field}
    assert refused(edited(read)) == {}
    assert refused(edited(averages, text=MODEL + TRAIN)) == {}


def test_no_regularization_loss():
    model = values_of(edited(("batch_size: 2", "add_regularization_loss: false")))["model"]
    assert model["rpn"]["l2"] == model["box_classifier"]["l2"] == 0
    model = values_of(edited(("batch_size: 2", "add_regularization_loss: true")))["model"]
    assert model["rpn"]["l2"] == 1e-4


def test_train_defaults_and_clipping():
    train = values_of(edited(("batch_size: 2", "gradient_clipping_by_norm: 0.5")))["train"]
    assert (train["batch_size"], train["clip_norm"]) == (32, 0.5)
    text = edited(("num_steps: 900;", ""))
    assert "steps" not in values_of(text)["train"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ("", "classification"),
        ("from_detection_checkpoint: true", "detection"),
        ("from_detection_checkpoint: true load_all_detection_checkpoint_vars: true", "full"),
        ("fine_tune_checkpoint_type: 'classification' from_detection_checkpoint: true", "classification"),
        ("fine_tune_checkpoint_type: 'detection'", "detection"),
        ("fine_tune_checkpoint_type: 'full'", "full"),
    ],
)
def test_restore(fields, expected):
    text = edited(("batch_size: 2", f"fine_tune_checkpoint: 'zoo/model.ckpt' {fields}"))
    assert values_of(text)["train"]["restore"] == {"path": "zoo/model.ckpt", "type": expected}
    without = edited(("batch_size: 2", fields))
    assert "restore" not in values_of(without)["train"]
    # What it leaves fresh, and what does not, is noted at the field that says so.
    notes = parse_pipeline_config(text).notes
    assert [note.key for note in notes] == (["train.restore.type"] if expected == "detection" else [])
    for note in notes:
        field, _, value = fields.replace("'", "").partition(": ")
        assert (note.field, note.value) == (f"train_config.{field}", value)
        assert note.consequence.startswith("RPN and predictor start fresh, as in the API; ")
        assert "--set train.restore.type=full restores them" in note.consequence
    assert parse_pipeline_config(without).notes == ()


def test_freezing():
    text = edited(
        (
            "batch_size: 2",
            "freeze_variables: 'FirstStage.*/Conv2d_1a' freeze_variables: 'Mixed_3.*' "
            "freeze_vars: ['BatchNorm'] update_trainable_variables: 'FirstStage'",
        )
    )
    assert values_of(text)["freeze"] == {
        "freeze": ["api:FirstStage.*/Conv2d_1a", "api:Mixed_3.*", "api:BatchNorm"],
        "train_only": ["api:FirstStage"],
    }
    notes = harmless(text)
    assert "freeze_variables" in notes["train_config.freeze_vars"]
    assert "model_main_tf2.py" in notes["train_config.freeze_variables"]
    assert "model_main_tf2.py" in notes["train_config.update_trainable_variables"]
    assert {note.key: note.field for note in parse_pipeline_config(text).notes if note.key} == {
        "freeze.freeze": "train_config.freeze_variables",
        "freeze.train_only": "train_config.update_trainable_variables",
    }


def test_paths_that_a_published_file_leaves_open():
    text = edited(('["a.record", "b.record"]', '["a.record", "PATH_TO_BE_CONFIGURED/b.record"]'))
    text = text.replace("cells.pbtxt", "PATH_TO_BE_CONFIGURED/label_map.txt")
    assert list(placeholders(parse_pipeline_config(text).values)) == [
        "data.train.label_map",
        "data.evaluate.path",
    ]
    assert list(placeholders(parse_pipeline_config(FULL).values)) == []


def test_one_of_several_options_is_named_by_its_number():
    flip = "data_augmentation_options { random_horizontal_flip {} }"
    text = edited((flip, flip + " data_augmentation_options { random_jitter_boxes {} }"))
    assert set(refused(text)) == {"train_config.data_augmentation_options[1].random_jitter_boxes"}


def test_values_read_like_the_file():
    text = edited(
        ("use_dropout: true", "predict_keypoints: true"),
        ("random_horizontal_flip {}", "random_jitter_boxes { ratio: 0.1 }"),
    )
    assert [note.value for note in parse_pipeline_config(text).notes] == ["true", "{ … }"]


def test_evaluation_batch_size():
    assert values_of(edited(("eval_config {}", "eval_config { batch_size: 4 }")))["evaluate"] == {
        "batch_size": 4
    }


def test_a_text_that_is_none_and_a_file_that_is_not_there(tmp_path):
    with pytest.raises(PipelineConfigError, match=r"x\.config:1:9: expected the name of a field or '}'"):
        parse_pipeline_config("model { ", "x.config")
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.config"):
        read_pipeline_config(tmp_path / "none.config")
    (tmp_path / "binary.config").write_bytes(b"\x0a\xff")
    with pytest.raises(
        PipelineConfigError, match=r"binary\.config: expected UTF-8 text, got other bytes at 1"
    ):
        read_pipeline_config(tmp_path / "binary.config")
    assert refused("") == {"faster_rcnn": "expected a faster_rcnn { … }"}

import pytest
from pipeline_texts import FULL, MODEL, edited, learning_rate, refused, values_of

from detector import config
from detector.pipeline_config import parse_pipeline_config


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

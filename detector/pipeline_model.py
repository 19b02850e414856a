"""The `faster_rcnn { … }` message of the Object Detection API, as this project's `model` section.

Fields and defaults: `protos/faster_rcnn.proto` and those it names; meanings: `builders/model_builder.py`.
"""

from typing import Any

from detector.pipeline_fields import Fields

_NO_DEFAULT = "expected a message; the Object Detection API has no default for it"
_SAME_OPERATION = "another implementation of the same operation; the native one is used"
_NO_MASKS = "no masks or keypoints here, so it has no effect"
_EXTRA_OUTPUT = "the extra output is not made; detections are the same"

# Fields that concern nothing but masks, and ways to suppress that end in the same boxes.
_OF_MASKS: tuple[str, ...] = (
    *("conv_hyperparams", "mask_prediction_conv_depth", "mask_prediction_num_conv_layers"),
    *("mask_height", "mask_width", "masks_are_class_agnostic", "convolve_then_upsample_masks"),
)
_NMS_KERNELS = ("use_static_shapes", "use_partitioned_nms", "use_combined_nms", "use_hard_nms", "use_cpu_nms")

# Our name and, for ResNet, the topology: slim's (stride in the last unit of a block) or that of Keras.
_EXTRACTORS: dict[str, tuple[str, str | None]] = {
    "faster_rcnn_inception_v2": ("inception_v2", None),
    "faster_rcnn_inception_resnet_v2": ("inception_resnet_v2", None),
    "faster_rcnn_inception_resnet_v2_keras": ("inception_resnet_v2", None),
    **{f"faster_rcnn_resnet{depth}": (f"resnet{depth}", "slim") for depth in (50, 101, 152)},
    **{f"faster_rcnn_resnet{depth}_keras": (f"resnet{depth}", "keras") for depth in (50, 101, 152)},
}

# (decay, epsilon) of the BatchNorm of the API's feature extractors, which no field sets:
# `models/faster_rcnn_inception_v2_feature_extractor.py` and, with the same values, slim's
# `inception_resnet_v2_arg_scope` and `models/keras_models/inception_resnet_v2.py`; slim's `resnet_arg_scope`
# and, with the same values, `models/keras_models/resnet_v1.py`.
_INCEPTION_BATCH_NORM = (0.9997, 0.001)
_RESNET_BATCH_NORM = (0.997, 1e-5)


def read_model(frcnn: Fields) -> dict[str, Any]:
    """Return the `model` section for a `faster_rcnn` message."""
    frcnn.only("number_of_stages", 2, "one stage has no box classifier, three predict masks: neither is here")
    frcnn.only("first_stage_only", False, "a box classifier is always built")  # until 2018
    frcnn.only("first_stage_atrous_rate", 1, "the RPN's convolution is not dilated here")
    frcnn.refuse("hard_example_miner", consequence="the second stage trains on a random balanced draw here")
    frcnn.refuse("context_config", consequence="this project has no Context R-CNN")
    _softmax_loss(frcnn.message("second_stage_classification_loss"))
    frcnn.ignore(
        {
            "second_stage_mask_prediction_loss_weight": _NO_MASKS,
            "resize_masks": _NO_MASKS,
            "inplace_batchnorm_update": "statistics are always updated with the step",
            "use_matmul_crop_and_resize": _SAME_OPERATION,
            "use_matmul_gather_in_matcher": _SAME_OPERATION,
            "use_static_balanced_label_sampler": "the draw has the same sizes, by another random procedure",
            "use_static_shapes": "shapes are always static here",
            "use_static_shapes_for_eval": "shapes are always static here",
            "use_partitioned_nms_in_first_stage": _SAME_OPERATION,
            "use_combined_nms_in_first_stage": _SAME_OPERATION,
            "return_raw_detections_during_predict": _EXTRA_OUTPUT,
            "output_final_box_features": _EXTRA_OUTPUT,
            "output_final_box_rpn_features": _EXTRA_OUTPUT,
        }
    )
    extractor, batch_norm = _feature_extractor(_required(frcnn, "feature_extractor"))
    return {
        "feature_extractor": extractor,
        "num_classes": frcnn.required_integer("num_classes"),
        "resizer": _resizer(_required(frcnn, "image_resizer")),
        "anchors": _anchors(_required(frcnn, "first_stage_anchor_generator")),
        "rpn": _rpn(frcnn),
        "box_classifier": _box_classifier(frcnn),
        "batch_norm": batch_norm,
    }


def _required(fields: Fields, name: str) -> Fields:
    if not fields.has(name):
        fields.note(name, "absent", _NO_DEFAULT, changes_results=True)
    return fields.message(name)


def _feature_extractor(fields: Fields) -> tuple[dict[str, Any], str]:
    """Return the section and its neighbour `batch_norm`."""
    api_type = fields.text("type")
    if api_type not in _EXTRACTORS:
        fields.note("type", api_type or "absent", f"expected one of {', '.join(_EXTRACTORS)}", True)
    kind, topology = _EXTRACTORS.get(api_type, ("", None))
    fields.only("first_stage_features_stride", 16, "features have stride 16 here")
    fields.only("override_base_feature_extractor_hyperparams", False, "the extractor's own settings are used")
    fields.refuse("conv_hyperparams", consequence="the extractor's own convolution settings are used")
    fields.refuse("fpn", consequence="this project has no feature pyramid")
    fields.ignore({"pad_to_multiple": "no extractor of this project's reads it"})
    momentum, epsilon = _INCEPTION_BATCH_NORM if topology is None else _RESNET_BATCH_NORM
    section = {
        "type": kind,
        **({"depth_multiplier": 1.0, "min_depth": 16} if topology is None else {"topology": topology}),
        "batch_norm_momentum": momentum,
        "batch_norm_epsilon": epsilon,
    }
    return section, "update" if fields.boolean("batch_norm_trainable", False) else "fixed"


def _resizer(fields: Fields) -> dict[str, Any]:
    chosen = fields.one_of("fixed_shape_resizer", "keep_aspect_ratio_resizer")
    fields.refuse(
        *("identity_resizer", "conditional_shape_resizer", "pad_to_multiple_resizer"),
        consequence="use fixed_shape_resizer or keep_aspect_ratio_resizer",
    )
    if chosen is None:
        return {}
    resizer = fields.message(chosen)
    resizer.only("resize_method", "BILINEAR", "images are resized bilinearly here")
    resizer.only("convert_to_grayscale", False, "images keep their three channels here")
    if chosen == "fixed_shape_resizer":
        return {
            "kind": "fixed_shape",
            "height": resizer.integer("height", 300),
            "width": resizer.integer("width", 300),
        }
    padding = resizer.numbers("per_channel_pad_value")
    if any(padding):
        resizer.note("per_channel_pad_value", padding, "images are padded with 0 here", changes_results=True)
    return {
        "kind": "keep_aspect_ratio",
        "min_dimension": resizer.integer("min_dimension", 600),
        "max_dimension": resizer.integer("max_dimension", 1024),
        "pad": resizer.boolean("pad_to_max_dimension", False),
    }


def _anchors(fields: Fields) -> dict[str, Any]:
    others = fields.refuse(
        *("ssd_anchor_generator", "multiscale_anchor_generator", "flexible_grid_anchor_generator"),
        consequence="anchors lie on one grid here; use grid_anchor_generator",
    )
    if others and not fields.has("grid_anchor_generator"):
        return {}
    grid = fields.message("grid_anchor_generator")
    section = {
        "base_size_hw": [grid.integer("height", 256), grid.integer("width", 256)],
        "stride_hw": [grid.integer("height_stride", 16), grid.integer("width_stride", 16)],
        "offset_hw": [grid.integer("height_offset", 0), grid.integer("width_offset", 0)],
        "scales": grid.numbers("scales"),
        "aspect_ratios": grid.numbers("aspect_ratios"),
    }
    for name in ("scales", "aspect_ratios"):
        if not section[name]:
            grid.note(name, "absent", "expected at least one; there would be no anchors", True)
    return section


def _rpn(frcnn: Fields) -> dict[str, Any]:
    hyperparams = frcnn.message("first_stage_box_predictor_conv_hyperparams")
    return {
        "conv_depth": frcnn.integer("first_stage_box_predictor_depth", 512),
        "kernel_size": frcnn.integer("first_stage_box_predictor_kernel_size", 3),
        "minibatch_size": frcnn.integer("first_stage_minibatch_size", 256),
        "positive_fraction": frcnn.number("first_stage_positive_balance_fraction", 0.5),
        "nms_score_threshold": frcnn.number("first_stage_nms_score_threshold", 0.0),
        "nms_iou_threshold": frcnn.number("first_stage_nms_iou_threshold", 0.7),
        "max_proposals": frcnn.integer("first_stage_max_proposals", 300),
        "clip_anchors": frcnn.boolean("clip_anchors_to_image", False),
        "box_loss_weight": frcnn.number("first_stage_localization_loss_weight", 1.0),
        "objectness_loss_weight": frcnn.number("first_stage_objectness_loss_weight", 1.0),
        "l2": _hyperparams(hyperparams, "CONV", {"truncated_normal_initializer": (0.0, 0.01)}),
    }


def _box_classifier(frcnn: Fields) -> dict[str, Any]:
    predictor = _required(frcnn, "second_stage_box_predictor")
    predictor.refuse(
        "rfcn_box_predictor",
        "convolutional_box_predictor",
        "weight_shared_convolutional_box_predictor",
        consequence="the box classifier has fully connected predictors; use mask_rcnn_box_predictor",
    )
    head = predictor.message("mask_rcnn_box_predictor")
    head.only("box_code_size", 4, "a box has four numbers here")
    head.only("predict_instance_masks", False, "this project predicts no masks")
    head.only("predict_keypoints", False, "this project predicts no keypoints")
    head.ignore(dict.fromkeys(_OF_MASKS, _NO_MASKS))
    keep = head.number("dropout_keep_probability", 0.5)
    uses_dropout = head.boolean("use_dropout", False)
    return {
        "crop_size": frcnn.required_integer("initial_crop_size"),
        "pool_size": frcnn.required_integer("maxpool_kernel_size"),
        "pool_stride": frcnn.required_integer("maxpool_stride"),
        "batch_size": frcnn.integer("second_stage_batch_size", 64),
        "positive_fraction": frcnn.number("second_stage_balance_fraction", 0.25),
        "share_box_across_classes": head.boolean("share_box_across_classes", False),
        "dropout_rate": round(1.0 - keep, 6) if uses_dropout else 0.0,
        "box_loss_weight": frcnn.number("second_stage_localization_loss_weight", 1.0),
        "class_loss_weight": frcnn.number("second_stage_classification_loss_weight", 1.0),
        "l2": _hyperparams(
            _required(head, "fc_hyperparams"),
            "FC",
            {"variance_scaling_initializer": (1.0, True, "FAN_AVG"), None: ()},
        ),
        **_post_processing(frcnn.message("second_stage_post_processing")),
    }


def _post_processing(fields: Fields) -> dict[str, Any]:
    # The proto's default is IDENTITY, which would hand out logits as scores.
    converter = fields.word("score_converter", "IDENTITY", ("IDENTITY", "SIGMOID", "SOFTMAX"))
    if converter != "SOFTMAX":
        fields.note("score_converter", converter, "scores are a softmax here; expected SOFTMAX", True)
    fields.only("logit_scale", 1.0, "logits are not scaled here")
    fields.refuse("calibration_config", consequence="scores are not calibrated here")
    nms = fields.message("batch_non_max_suppression")
    nms.only("use_class_agnostic_nms", False, "every class is suppressed by itself here")
    nms.only("soft_nms_sigma", 0.0, "suppressed boxes are dropped here, not given lower scores")
    nms.only("change_coordinate_frame", True, "detections are relative to the image here")
    nms.ignore(
        {
            "max_classes_per_detection": "has effect with use_class_agnostic_nms only",
            **dict.fromkeys(_NMS_KERNELS, _SAME_OPERATION),
        }
    )
    return {
        "nms_score_threshold": nms.number("score_threshold", 0.0),
        "nms_iou_threshold": nms.number("iou_threshold", 0.6),
        "max_detections_per_class": nms.integer("max_detections_per_class", 100),
        "max_detections": nms.integer("max_total_detections", 100),
    }


def _softmax_loss(fields: Fields) -> None:
    fields.refuse(
        *("weighted_sigmoid", "weighted_logits_softmax", "bootstrapped_sigmoid", "weighted_sigmoid_focal"),
        *("penalty_reduced_logistic_focal_loss", "weighted_dice_classification_loss"),
        consequence="the class loss is a softmax cross entropy here; use weighted_softmax",
    )
    softmax = fields.message("weighted_softmax")
    softmax.only("logit_scale", 1.0, "logits are not scaled here")
    softmax.ignore({"anchorwise_output": "deprecated; it has no effect"})


def _hyperparams(fields: Fields, op: str, initializers: dict[str | None, tuple[Any, ...]]) -> float:
    """Return the weight of the L2 loss, which is weight · ½‖kernel‖², as `hyperparams_builder.py` builds it.

    `op` is the operation that the settings must be for; `initializers` the ones that this project's layers
    have, {name in the proto: its values in the proto's order}, None for an absent one (Glorot uniform).
    """
    read_op = fields.word("op", "CONV", ("CONV", "FC"))
    if read_op != op:
        fields.note("op", read_op, f"expected {op}: the settings do not reach the layer", True)
    fields.ignore(
        {
            "activation": "the RPN's convolution has ReLU6 and the predictors have none, as in the API",
            "regularize_depthwise": "there is no depthwise convolution to regularize",
            "force_use_bias": "the layer has a bias in any case",
        }
    )
    fields.refuse(
        *("batch_norm", "sync_batch_norm", "group_norm"), consequence="this layer has no normalisation here"
    )
    _check_initializer(fields.message("initializer"), initializers)
    regularizer = fields.message("regularizer")
    chosen = regularizer.one_of("l1_regularizer", "l2_regularizer")
    if chosen == "l1_regularizer":
        l1 = regularizer.message("l1_regularizer")
        weight = l1.number("weight", 1.0)
        if weight:
            l1.note("weight", weight, "there is L2 regularization here, and no L1", changes_results=True)
        return 0.0
    return regularizer.message(chosen).number("weight", 1.0) if chosen else 0.0


def _check_initializer(fields: Fields, expected: dict[str | None, tuple[Any, ...]]) -> None:
    chosen = fields.one_of(
        *("truncated_normal_initializer", "variance_scaling_initializer", "random_normal_initializer"),
        "keras_initializer_by_name",
    )
    values: tuple[Any, ...] = ()
    if chosen == "keras_initializer_by_name":
        values = (fields.text(chosen),)
    elif chosen == "variance_scaling_initializer":
        scaling = fields.message(chosen)
        values = (
            scaling.number("factor", 2.0),
            scaling.boolean("uniform", False),
            scaling.word("mode", "FAN_IN", ("FAN_IN", "FAN_OUT", "FAN_AVG")),
        )
    elif chosen:
        normal = fields.message(chosen)
        values = (normal.number("mean", 0.0), normal.number("stddev", 1.0))
    if expected.get(chosen) != values:
        name, wanted = next(iter(expected.items()))
        fields.note(
            chosen or "truncated_normal_initializer",
            list(values) or "absent",
            f"fresh kernels start from {name} {list(wanted)} here",
            changes_results=True,
        )

import re

import pytest
from pipeline_texts import CONSTANT, edited, refused

from detector.pipeline_config import (
    PipelineConfigError,
    format_notes,
    parse_pipeline_config,
    read_pipeline_config,
)

# What to change in FULL, the (end of the) field that must be named, and a word of what is said about it.
STEM = "first_stage_box_predictor_conv_hyperparams"
FIXED, GRID = "fixed_shape_resizer { height: 384 width: 512 }", "grid_anchor_generator { scales: [.5, 1, 2] "
GRID += "aspect_ratios: 1.0 aspect_ratios: 2.0 }"
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

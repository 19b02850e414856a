"""A pipeline.config in parts, and what is read out of it."""

from detector import config
from detector.pipeline_config import parse_pipeline_config
from detector.schedule import learning_rate_schedule

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
CONSTANT = "constant_learning_rate { learning_rate: .003 }"


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


def learning_rate(text):
    """Return the schedule that `text` in the place of the constant rate is read as."""
    rates = config.validate(values_of(edited((CONSTANT, text))), "test").train.learning_rate
    return learning_rate_schedule(rates, steps=900)

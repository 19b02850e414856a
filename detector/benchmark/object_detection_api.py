"""The worker for the Object Detection API's own Faster R-CNN with Inception v2, the original of this one.

It runs where that project's packages `object_detection` and `nets` can be imported and TensorFlow still runs
graphs of version 1, which may be another environment than this package's: of this package it needs NumPy and
TensorFlow alone.

The settings are those of the published `faster_rcnn_inception_v2_coco` (`pipeline.config` of 2018_01_28), on
the canvas that is asked for; the optimizer and the clipping are its training's, without summaries and the
input queue.
"""

import sys
from collections.abc import Mapping
from itertools import cycle
from typing import Any

import numpy as np
import tensorflow as tf

from detector.benchmark.random_examples import LEARNING_RATE, random_examples
from detector.benchmark.worker import Prepared, Start, serve

_MOMENTUM, _CLIP_NORM = 0.9, 10.0

_MODEL = """
faster_rcnn {{
  num_classes: {classes}
  image_resizer {{ fixed_shape_resizer {{ height: {height} width: {width} }} }}
  feature_extractor {{ type: "faster_rcnn_inception_v2" first_stage_features_stride: 16 }}
  first_stage_anchor_generator {{
    grid_anchor_generator {{
      scales: [0.25, 0.5, 1.0, 2.0] aspect_ratios: [0.5, 1.0, 2.0] height_stride: 16 width_stride: 16
    }}
  }}
  first_stage_box_predictor_conv_hyperparams {{
    op: CONV
    regularizer {{ l2_regularizer {{ weight: 0.0 }} }}
    initializer {{ truncated_normal_initializer {{ stddev: 0.01 }} }}
  }}
  first_stage_nms_score_threshold: 0.0
  first_stage_nms_iou_threshold: 0.7
  first_stage_max_proposals: 300
  first_stage_localization_loss_weight: 2.0
  first_stage_objectness_loss_weight: 1.0
  initial_crop_size: 14
  maxpool_kernel_size: 2
  maxpool_stride: 2
  second_stage_box_predictor {{
    mask_rcnn_box_predictor {{
      use_dropout: false
      fc_hyperparams {{
        op: FC
        regularizer {{ l2_regularizer {{ weight: 0.0 }} }}
        initializer {{ variance_scaling_initializer {{ factor: 1.0 uniform: true mode: FAN_AVG }} }}
      }}
    }}
  }}
  second_stage_post_processing {{
    batch_non_max_suppression {{
      score_threshold: 0.0 iou_threshold: 0.6 max_detections_per_class: 100 max_total_detections: 300
    }}
    score_converter: SOFTMAX
  }}
  second_stage_localization_loss_weight: 2.0
  second_stage_classification_loss_weight: 1.0
}}
"""


def prepare(spec: Mapping[str, Any]) -> Start:
    """Return what starts a training step or an inference of `spec`.

    Raises:
        ValueError: the Object Detection API cannot be imported here.
    """
    # Before its modules are imported, some of which ask for the version.
    tf.compat.v1.disable_v2_behavior()
    try:
        from google.protobuf import text_format
        from object_detection.builders import model_builder
        from object_detection.protos import model_pb2
    except ImportError as error:
        raise ValueError(
            f"the Object Detection API cannot be imported by {sys.executable} ({error}); name an interpreter "
            "that can: --against 'object_detection_api=PYTHON -m detector.benchmark.object_detection_api'"
        ) from error
    text = _MODEL.format(**{key: spec[key] for key in ("classes", "height", "width")})
    config = text_format.Parse(text, model_pb2.DetectionModel())
    start = {"train": _training, "infer": _inference}[spec["kind"]]
    shape = [spec[key] for key in ("batch_size", "height", "width", "classes", "boxes")]
    examples = random_examples(*shape)

    def start_model() -> Prepared:
        model = model_builder.build(config, is_training=spec["kind"] == "train", add_summaries=False)
        return start(model, examples, spec["classes"])

    return start_model


def _training(model: Any, examples: list[dict[str, np.ndarray]], classes: int) -> Prepared:
    v1 = tf.compat.v1
    batch_size, height, width, _ = examples[0]["image"].shape
    image = v1.placeholder(tf.float32, examples[0]["image"].shape)
    boxes = v1.placeholder(tf.float32, examples[0]["boxes_yxyx"].shape)
    labels = v1.placeholder(tf.int32, examples[0]["classes"].shape)
    model.provide_groundtruth(tf.unstack(boxes), tf.unstack(tf.one_hot(labels, classes)))
    preprocessed, true_shapes = model.preprocess(image)
    losses = model.loss(model.predict(preprocessed, true_shapes), true_shapes)
    loss = tf.add_n(list(losses.values()))
    optimizer = v1.train.MomentumOptimizer(LEARNING_RATE, _MOMENTUM)
    gradients, variables = zip(*optimizer.compute_gradients(loss), strict=True)
    clipped, _ = tf.clip_by_global_norm(gradients, _CLIP_NORM)
    updates = v1.get_collection(v1.GraphKeys.UPDATE_OPS)
    with tf.control_dependencies(updates):
        move = optimizer.apply_gradients(zip(clipped, variables, strict=True))
    session = _session()
    size = np.array([height, width] * 2, np.float32)
    feeds = cycle(
        {
            image: example["image"].astype(np.float32),
            boxes: example["boxes_yxyx"] / size,
            labels: example["classes"],
        }
        for example in examples
    )

    def repeat() -> None:
        value, _ = session.run([loss, move], next(feeds))
        if not np.isfinite(value):
            raise ValueError(f"the loss is not finite, so its time means nothing: {value}")

    return Prepared(repeat, batch_size)


def _inference(model: Any, examples: list[dict[str, np.ndarray]], classes: int) -> Prepared:
    image = tf.compat.v1.placeholder(tf.float32, examples[0]["image"].shape)
    preprocessed, true_shapes = model.preprocess(image)
    found = model.postprocess(model.predict(preprocessed, true_shapes), true_shapes)
    names = ("detection_boxes", "detection_scores", "detection_classes", "num_detections")
    fetched = {name: found[name] for name in names}
    session = _session()
    feeds = cycle({image: example["image"].astype(np.float32)} for example in examples)

    def repeat() -> None:
        session.run(fetched, next(feeds))

    return Prepared(repeat, examples[0]["image"].shape[0])


def _session() -> Any:
    session = tf.compat.v1.Session()
    session.run(tf.compat.v1.global_variables_initializer())
    return session


if __name__ == "__main__":
    serve(prepare)

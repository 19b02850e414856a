"""The worker for Model Garden's Faster R-CNN, ResNet-50-FPN: its own model, losses, labels and settings.

The settings are those of its experiment `fasterrcnn_resnetfpn_coco`, less what is for several machines:
statistics of BatchNorm that are synchronised between replicas, which on one machine only cost time.
"""

from collections.abc import Mapping
from itertools import cycle
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from official.vision.configs import maskrcnn as configs
from official.vision.dataloaders.maskrcnn_input import Parser
from official.vision.tasks.maskrcnn import MaskRCNNTask

from detector.benchmark.random_examples import LEARNING_RATE, random_examples
from detector.benchmark.worker import Prepared, Start, serve


def prepare(spec: Mapping[str, Any]) -> Start:
    """Return what starts a training step or an inference of `spec`."""
    config = configs.fasterrcnn_resnetfpn_coco().task
    config.init_checkpoint = None
    config.model.num_classes = spec["classes"] + 1  # the background is one of them
    config.model.input_size = [spec["height"], spec["width"], 3]
    config.model.norm_activation.use_sync_bn = False
    task = MaskRCNNTask(config)
    start = {"train": _training, "infer": _inference}[spec["kind"]]
    batches = _batches(config, spec)
    return lambda: start(task, batches)


def _training(task: MaskRCNNTask, batches: list[Any]) -> Prepared:
    model = task.build_model()
    optimizer = tf_keras.optimizers.SGD(LEARNING_RATE, momentum=0.9)

    @tf.function
    def step(images: tf.Tensor, labels: dict[str, Any]) -> tf.Tensor:
        return task.train_step((images, labels), model, optimizer)[task.loss]

    source = cycle(batches)

    def repeat() -> None:
        loss = float(step(*next(source)))
        if not tf.math.is_finite(loss):
            raise ValueError(f"the loss is not finite, so its time means nothing: {loss}")

    return Prepared(repeat, batches[0][0].shape[0])


def _inference(task: MaskRCNNTask, batches: list[Any]) -> Prepared:
    model = task.build_model()

    @tf.function
    def detect(images: tf.Tensor, labels: dict[str, Any]) -> dict[str, tf.Tensor]:
        # As its validation step calls it; what is not asked for is not computed.
        outputs = model(
            images,
            anchor_boxes=labels["anchor_boxes"],
            image_shape=labels["image_info"][:, 1, :],
            training=False,
        )
        names = ("detection_boxes", "detection_scores", "detection_classes", "num_detections")
        return {name: outputs[name] for name in names}

    source = cycle(batches)

    def repeat() -> None:
        detect(*next(source))["num_detections"].numpy()

    return Prepared(repeat, batches[0][0].shape[0])


def _batches(config: configs.MaskRCNNTask, spec: Mapping[str, Any]) -> list[Any]:
    """Return the random images and their labels as its own parser makes them, without augmentation."""
    model, settings = config.model, config.train_data.parser
    parser = Parser(
        output_size=model.input_size[:2],
        min_level=model.min_level,
        max_level=model.max_level,
        num_scales=model.anchor.num_scales,
        aspect_ratios=model.anchor.aspect_ratios,
        anchor_size=model.anchor.anchor_size,
        rpn_match_threshold=settings.rpn_match_threshold,
        rpn_unmatched_threshold=settings.rpn_unmatched_threshold,
        rpn_batch_size_per_im=settings.rpn_batch_size_per_im,
        rpn_fg_fraction=settings.rpn_fg_fraction,
        max_num_instances=settings.max_num_instances,
    )
    shape = [spec[key] for key in ("batch_size", "height", "width", "classes", "boxes")]
    size = tf.constant([spec["height"], spec["width"]] * 2, tf.float32)

    def as_decoded(batch: Mapping[str, np.ndarray]) -> dict[str, tf.Tensor]:
        return {
            "image": batch["image"],
            "groundtruth_boxes": batch["boxes_yxyx"] / size,
            "groundtruth_classes": tf.cast(batch["classes"], tf.int64) + 1,
            "groundtruth_is_crowd": tf.zeros(batch["classes"].shape, tf.bool),
        }

    parse = parser.parse_fn(is_training=True)
    return [
        next(iter(tf.data.Dataset.from_tensor_slices(as_decoded(batch)).map(parse).batch(spec["batch_size"])))
        for batch in random_examples(*shape)
    ]


if __name__ == "__main__":
    serve(prepare)

"""Non-maximum suppression as the Object Detection API does it: suppress first, then clip to the image."""

from typing import NamedTuple

import tensorflow as tf

from detector import boxes


class Suppressed(NamedTuple):
    """K boxes an image that survived, best first, zeros behind the last.

    `boxes_yxyx` float32 [B, K, 4], clipped to the image; `scores` float32 [B, K]; `classes` int32 [B, K];
    `count` int32 [B].
    """

    boxes_yxyx: tf.Tensor
    scores: tf.Tensor
    classes: tf.Tensor
    count: tf.Tensor


def suppress_and_clip(
    boxes_yxyx: tf.Tensor,
    scores: tf.Tensor,
    image_size_hw: tf.Tensor,
    *,
    max_per_class: int,
    max_total: int,
    score_threshold: float,
    iou_threshold: float,
) -> Suppressed:
    """Suppress class by class, keep the best over all classes, clip them, and drop what lies outside.

    Overlaps are those of the boxes before clipping, so two survivors may overlap by more than
    `iou_threshold` once clipped, and dropped boxes are not made up for: so the original has it
    (`core/post_processing.py`, `multiclass_non_max_suppression`).

    Args:
        boxes_yxyx: float32 [B, A, C, 4] in pixels, or [B, A, 1, 4] where the classes share their box.
        scores: float32 [B, A, C]; negative ones never survive.
        image_size_hw: int32 [B, 2], the part of the canvas to clip to.
        max_per_class: most survivors of one class.
        max_total: K.
        score_threshold: drops boxes with this score or less.
        iou_threshold: drops boxes that overlap a better one of their class by more.
    """
    kept = tf.image.combined_non_max_suppression(
        boxes_yxyx,
        scores,
        max_output_size_per_class=max_per_class,
        max_total_size=max_total,
        iou_threshold=iou_threshold,
        score_threshold=score_threshold,
        clip_boxes=False,
    )
    clipped = boxes.clip_to_window(kept.nmsed_boxes, image_size_hw[:, tf.newaxis, :])
    is_inside = (tf.range(max_total) < kept.valid_detections[:, tf.newaxis]) & (boxes.area(clipped) > 0.0)
    # What is left moves up over the gaps, in its order.
    order = tf.argsort(tf.cast(~is_inside, tf.int32), axis=1, stable=True)
    is_inside = tf.gather(is_inside, order, batch_dims=1)

    def moved_up(values: tf.Tensor) -> tf.Tensor:
        return tf.gather(values, order, batch_dims=1)

    return Suppressed(
        tf.where(is_inside[..., tf.newaxis], moved_up(clipped), 0.0),
        tf.where(is_inside, moved_up(kept.nmsed_scores), 0.0),
        tf.where(is_inside, tf.cast(moved_up(kept.nmsed_classes), tf.int32), 0),
        tf.reduce_sum(tf.cast(is_inside, tf.int32), axis=1),
    )

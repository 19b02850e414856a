"""Non-maximum suppression as the Object Detection API does it: suppress first, then clip to the image.

Overlaps are those of the boxes before clipping, so two survivors may overlap by more than the threshold once
clipped, and dropped boxes are not made up for by their class: so the original has it
(`core/post_processing.py`, `multiclass_non_max_suppression`).
"""

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
    """Suppress class by class, clip, drop what lies outside, and keep the best over all classes.

    Args:
        boxes_yxyx: float32 [B, A, C, 4] in pixels, or [B, A, 1, 4] where the classes share their box.
        scores: float32 [B, A, C]; negative ones never survive.
        image_size_hw: int32 [B, 2], the part of the canvas to clip to.
        max_per_class: most survivors of one class, before clipping.
        max_total: K.
        score_threshold: drops boxes with this score or less.
        iou_threshold: drops boxes that overlap a better one of their class by more.
    """
    # The best over all classes are chosen after clipping: every class's survivors must be there.
    most = max(max_total, scores.shape[2] * min(max_per_class, scores.shape[1] or max_per_class))
    kept = tf.image.combined_non_max_suppression(
        boxes_yxyx,
        scores,
        max_output_size_per_class=max_per_class,
        max_total_size=most,
        iou_threshold=iou_threshold,
        score_threshold=score_threshold,
        clip_boxes=False,
    )
    return _clip(
        kept.nmsed_boxes,
        kept.nmsed_scores,
        tf.cast(kept.nmsed_classes, tf.int32),
        kept.valid_detections,
        image_size_hw,
        max_total,
    )


def suppress_and_clip_one_class(
    boxes_yxyx: tf.Tensor,
    scores: tf.Tensor,
    image_size_hw: tf.Tensor,
    *,
    max_total: int,
    score_threshold: float,
    iou_threshold: float,
) -> Suppressed:
    """Do what `suppress_and_clip` does for boxes of one class, and break ties as the original does.

    Of equal scores the first row comes first.  Anchors over the uniform padding of an image have equal
    scores by the dozen, and `combined_non_max_suppression` takes those as they come; the operation used
    here is that of the original, and twice as slow.

    Args:
        boxes_yxyx: float32 [B, A, 4] in pixels.
        scores: float32 [B, A]; negative ones never survive.
        image_size_hw: int32 [B, 2], the part of the canvas to clip to.
        max_total: K.
        score_threshold: drops boxes with this score or less.
        iou_threshold: drops boxes that overlap a better one by more.
    """

    def suppress(image: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        kept = tf.raw_ops.NonMaxSuppressionV5(
            boxes=image[0],
            scores=image[1],
            max_output_size=max_total,
            iou_threshold=iou_threshold,
            score_threshold=score_threshold,
            soft_nms_sigma=0.0,
            pad_to_max_output_size=True,
        )
        return kept.selected_indices, kept.valid_outputs

    rows, count = tf.map_fn(suppress, (boxes_yxyx, scores), fn_output_signature=(tf.int32, tf.int32))
    rows.set_shape([None, max_total])
    return _clip(
        tf.gather(boxes_yxyx, rows, batch_dims=1),
        tf.gather(scores, rows, batch_dims=1),
        tf.zeros_like(rows),
        count,
        image_size_hw,
        max_total,
    )


def _clip(
    boxes_yxyx: tf.Tensor,
    scores: tf.Tensor,
    classes: tf.Tensor,
    count: tf.Tensor,
    image_size_hw: tf.Tensor,
    max_total: int,
) -> Suppressed:
    """Clip the first `count` [B] of the boxes [B, M, 4], drop those outside, keep `max_total` in order."""
    clipped = boxes.clip_to_window(boxes_yxyx, image_size_hw[:, tf.newaxis, :])
    is_inside = (tf.range(scores.shape[1]) < count[:, tf.newaxis]) & (boxes.area(clipped) > 0.0)
    # What is left moves up over the gaps: of equal values, top_k takes those that come first.
    is_inside, order = tf.math.top_k(tf.cast(is_inside, tf.int32), max_total)
    clipped, scores, classes = (
        tf.gather(values, order, batch_dims=1) for values in (clipped, scores, classes)
    )
    return Suppressed(
        tf.where(is_inside[..., tf.newaxis] > 0, clipped, 0.0),
        tf.where(is_inside > 0, scores, 0.0),
        classes * is_inside,
        tf.reduce_sum(is_inside, axis=1),
    )

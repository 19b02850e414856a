"""Which boxes learn from which object: matching to the ground truth, and drawing a balanced minibatch.

The rules are the Object Detection API's (`ArgMaxMatcher`, `BalancedPositiveNegativeSampler`).  The draw is
stateless: it is a function of the seed it is given, so that a resumed run draws what an unbroken one would.
"""

from collections.abc import Mapping
from typing import NamedTuple

import tensorflow as tf

from detector import boxes

BACKGROUND = -1
IGNORED = -2
# A box that lies for more than half in a crowd region may well be an object: it is no negative example.
CROWD_OVERLAP = 0.5


class GroundTruth(NamedTuple):
    """The objects of a batch.

    `boxes_yxyx` float32 [B, N, 4] in canvas pixels; `classes` int32 [B, N], 0 … C-1; `is_object` and
    `is_crowd` bool [B, N], both false on padding.  A crowd region is no object.
    """

    boxes_yxyx: tf.Tensor
    classes: tf.Tensor
    is_object: tf.Tensor
    is_crowd: tf.Tensor

    @classmethod
    def of(cls, batch: Mapping[str, tf.Tensor]) -> "GroundTruth":
        """Read the objects off a training batch."""
        is_row, is_crowd = batch["classes"] >= 0, batch["is_crowd"]
        return cls(batch["boxes_yxyx"], batch["classes"], is_row & ~is_crowd, is_row & is_crowd)


class Draw(NamedTuple):
    """A minibatch of S rows out of A: `indices` int32 [B, S], ascending, and `is_drawn` bool [B, S].

    Where fewer than S rows could be drawn the rest has index 0 and `is_drawn` false, at the end.
    """

    indices: tf.Tensor
    is_drawn: tf.Tensor


def match(
    candidates_yxyx: tf.Tensor,
    truth: GroundTruth,
    *,
    matched_iou: float,
    unmatched_iou: float,
    force_match: bool,
    is_usable: tf.Tensor | None = None,
) -> tf.Tensor:
    """Match every candidate box to a ground-truth object, to the background, or to nothing.

    Args:
        candidates_yxyx: float32 [B, A, 4] or [1, A, 4] (anchors shared by the batch), pixels.
        truth: the objects.
        matched_iou: a candidate with at least this IoU takes the object it overlaps most.
        unmatched_iou: a candidate with less than this IoU with every object is background.
        force_match: give every object its best candidate, whatever their IoU.
        is_usable: bool [A], the candidates that may take part; the others are `IGNORED`.  None: all may.

    Returns:
        int32 [B, A]: the row of the object in `truth`, `BACKGROUND` or `IGNORED`.
    """
    may_match = truth.is_object[..., tf.newaxis]
    if is_usable is not None:
        may_match &= is_usable
    shared = boxes.intersection(truth.boxes_yxyx, candidates_yxyx)  # [B, N, A]
    overlaps = tf.where(may_match, boxes.iou(truth.boxes_yxyx, candidates_yxyx, shared), -1.0)
    best_iou = tf.reduce_max(overlaps, axis=1)  # [B, A]
    best_object = tf.argmax(overlaps, axis=1, output_type=tf.int32)
    matches = tf.where(
        best_iou >= matched_iou, best_object, tf.where(best_iou < unmatched_iou, BACKGROUND, IGNORED)
    )
    in_crowd = shared > CROWD_OVERLAP * tf.maximum(boxes.area(candidates_yxyx)[:, tf.newaxis, :], 1e-6)
    touches_crowd = tf.reduce_any(in_crowd & truth.is_crowd[..., tf.newaxis], axis=1)
    matches = tf.where(touches_crowd & (matches == BACKGROUND), IGNORED, matches)
    if is_usable is not None:
        matches = tf.where(is_usable, matches, IGNORED)
    if not force_match:
        return matches
    # Of several objects that share their best candidate, the first takes it.
    is_best = tf.one_hot(
        tf.argmax(overlaps, axis=2, output_type=tf.int32),
        tf.shape(overlaps)[2],
        on_value=True,
        off_value=False,
        dtype=tf.bool,
    )  # [B, N, A]
    # Of usable candidates that it overlaps alike, be it not at all, an object takes the first, as in the
    # original.  Where none is usable, and on padding, all IoUs are -1, and the argmax means none.
    is_best &= may_match
    first_object = tf.argmax(tf.cast(is_best, tf.uint8), axis=1, output_type=tf.int32)
    return tf.where(tf.reduce_any(is_best, axis=1), first_object, matches)


def draw_balanced(
    is_candidate: tf.Tensor, is_positive: tf.Tensor, size: int, positive_fraction: float, seed: tf.Tensor
) -> Draw:
    """Draw `size` rows at random: at most `positive_fraction` positive, the rest negative.

    Args:
        is_candidate: bool [B, A], the rows that may be drawn.
        is_positive: bool [B, A].
        size: rows to draw an image; negatives fill up for missing positives, not the other way round.
        positive_fraction: the largest part that may be positive.
        seed: int32 [2], the key of the draw.

    Returns:
        A `Draw` of S = min(size, A) rows.
    """
    rows = is_candidate.shape[1] or tf.shape(is_candidate)[1]
    size = tf.minimum(size, rows) if tf.is_tensor(rows) else min(size, rows)
    most_positives = tf.cast(positive_fraction * tf.cast(size, tf.float32), tf.int32)
    most_positives = tf.minimum(most_positives, size)

    order = 1.0 + tf.random.stateless_uniform(
        tf.shape(is_candidate), seed
    )  # in [1, 2), so that 0 marks "never"
    positive_key, positive_rows = tf.math.top_k(
        tf.where(is_candidate & is_positive, order, 0.0), most_positives
    )
    positive_drawn = positive_key > 0.0
    positives = tf.reduce_sum(tf.cast(positive_drawn, tf.int32), axis=1, keepdims=True)  # [B, 1]
    negative_key, negative_rows = tf.math.top_k(tf.where(is_candidate & ~is_positive, order, 0.0), size)
    negative_drawn = (negative_key > 0.0) & (tf.range(size) < size - positives)

    drawn = tf.concat([positive_drawn, negative_drawn], axis=1)
    # The smallest row numbers, ascending: the rows that are not drawn come last and are cut off.
    backwards = tf.where(drawn, -tf.concat([positive_rows, negative_rows], axis=1), -tf.int32.max)
    indices = -tf.math.top_k(backwards, size).values
    is_drawn = indices < tf.int32.max
    return Draw(tf.where(is_drawn, indices, 0), is_drawn)


def gather_rows(values: tf.Tensor, indices: tf.Tensor) -> tf.Tensor:
    """Return the rows `indices` int32 [B, S] of `values` [B, A, ...], image by image: [B, S, ...].

    As `tf.gather` with `batch_dims=1`, whose gradient is a hundred operations that every start has to trace.
    """
    rows = values.shape[1] or tf.shape(values)[1]
    first_rows = rows * tf.range(tf.shape(values)[0])[:, tf.newaxis]
    return tf.gather(tf.reshape(values, [-1, *values.shape[2:]]), first_rows + indices)

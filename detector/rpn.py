"""The region proposal network: objectness and box encodings for every anchor, proposals, and their losses."""

from collections.abc import Iterator
from typing import NamedTuple

import tensorflow as tf
import tf_keras

from detector import boxes, sampling
from detector.component import Component, build_inner
from detector.sampling import GroundTruth
from detector.sparse_convolution import SparselyTrainedConv2D
from detector.suppression import suppress_and_clip_one_class

# Anchors are positive from the first IoU on and negative below the second (Ren et al., section 3.1.2).
MATCHED_IOU, UNMATCHED_IOU = 0.7, 0.3


class RpnOutputs(NamedTuple):
    """What the network says of A anchors.

    `hidden` [B, h, w, conv_depth]: the 3x3 convolution's output; `box_encodings` float32 [B, A, 4];
    `objectness` float32 [B, A, 2]: logits of background and object.
    """

    hidden: tf.Tensor
    box_encodings: tf.Tensor
    objectness: tf.Tensor


class Proposals(NamedTuple):
    """P proposals an image, best first, zeros behind the last.

    `boxes_yxyx` float32 [B, P, 4] in canvas pixels; `scores` float32 [B, P]; `count` int32 [B].
    """

    boxes_yxyx: tf.Tensor
    scores: tf.Tensor
    count: tf.Tensor

    @property
    def is_proposal(self) -> tf.Tensor:
        """Which rows are proposals, bool [B, P]: those behind an image's last one are not."""
        # A static number where it is known: exported outputs have shapes by it.
        rows = self.boxes_yxyx.shape[1] or tf.shape(self.boxes_yxyx)[1]
        return tf.range(rows) < self.count[:, tf.newaxis]


class Rpn(Component):
    """A 3x3 convolution with ReLU6 and two 1x1 heads on the stride-16 features."""

    def __init__(
        self, anchors_per_cell: int, conv_depth: int = 512, kernel_size: int = 3, winograd: bool = True
    ):
        """`winograd` is whether `detector.winograd_large` may compute the 3x3 convolution where that pays."""
        super().__init__(name="rpn")

        def normal() -> tf_keras.initializers.Initializer:
            return tf_keras.initializers.TruncatedNormal(stddev=0.01)

        self.conv = SparselyTrainedConv2D(
            conv_depth, kernel_size, winograd, activation=tf.nn.relu6, kernel_initializer=normal()
        )
        self.objectness = tf_keras.layers.Conv2D(2 * anchors_per_cell, 1, kernel_initializer=normal())
        self.box_encodings = tf_keras.layers.Conv2D(4 * anchors_per_cell, 1, kernel_initializer=normal())

    def build(self, input_shape: tf.TensorShape) -> None:
        """Make the variables for features of `input_shape`, [B, h, w, depth]."""
        build_inner(self, input_shape)
        self.built = True

    def inner_layers(
        self, input_shape: tf.TensorShape
    ) -> Iterator[tuple[tf_keras.layers.Layer, tf.TensorShape]]:
        """Yield the 3x3 convolution, which runs on `input_shape`, and the heads with what it makes of it."""
        yield self.conv, input_shape
        hidden = self.conv.compute_output_shape(input_shape)
        yield self.box_encodings, hidden
        yield self.objectness, hidden

    def call(self, features: tf.Tensor, training: bool = False) -> RpnOutputs:
        """Return the outputs for the anchors of `features` [B, h, w, depth]; A = h * w * anchors_per_cell."""
        hidden = self.conv(features)
        batch = tf.shape(features)[0]

        def per_anchor(head: tf_keras.layers.Layer, width: int) -> tf.Tensor:
            values = tf.cast(head(hidden), tf.float32)
            # A static number of anchors where the canvas is static: NMS and sampling are compiled for it.
            static = values.shape[1:].num_elements()
            return tf.reshape(values, [batch, -1 if static is None else static // width, width])

        return RpnOutputs(hidden, per_anchor(self.box_encodings, 4), per_anchor(self.objectness, 2))


def propose(
    outputs: RpnOutputs,
    anchors_yxyx: tf.Tensor,
    is_usable: tf.Tensor | None,
    image_size_hw: tf.Tensor,
    *,
    max_proposals: int,
    nms_score_threshold: float,
    nms_iou_threshold: float,
) -> Proposals:
    """Turn the outputs into proposals: decode, suppress, clip to the image.

    Proposals are constants to the second stage: no gradient flows through them, as in the paper's
    approximate joint training (section 3.2) and in the original.

    Args:
        outputs: of `Rpn`.
        anchors_yxyx: float32 [A, 4], pixels.
        is_usable: bool [A], the anchors that may propose, or None for all of them.
        image_size_hw: int32 [B, 2], the part of the canvas to clip to.
        max_proposals: P.
        nms_score_threshold: drops proposals with this objectness probability or less.
        nms_iou_threshold: drops proposals that overlap a better one by more.
    """
    decoded = boxes.decode(tf.stop_gradient(outputs.box_encodings), anchors_yxyx)
    probability = tf.nn.softmax(tf.stop_gradient(outputs.objectness))[..., 1]
    if is_usable is not None:
        probability = tf.where(is_usable, probability, -1.0)
    best = suppress_and_clip_one_class(
        decoded,
        probability,
        image_size_hw,
        max_total=max_proposals,
        score_threshold=nms_score_threshold,
        iou_threshold=nms_iou_threshold,
    )
    return Proposals(best.boxes_yxyx, best.scores, best.count)


def rpn_losses(
    outputs: RpnOutputs,
    anchors_yxyx: tf.Tensor,
    is_usable: tf.Tensor | None,
    truth: GroundTruth,
    seed: tf.Tensor,
    *,
    minibatch_size: int,
    positive_fraction: float,
) -> dict[str, tf.Tensor]:
    """Return the unweighted losses `rpn_box` (smooth L1) and `rpn_objectness` (softmax cross entropy).

    Both are summed over a balanced minibatch of anchors, divided by its size, and averaged over the batch.

    Args:
        outputs: of `Rpn`.
        anchors_yxyx: float32 [A, 4], pixels.
        is_usable: bool [A], the anchors that may take part, or None for all of them.
        truth: the objects.
        seed: int32 [2], the key of the draw of anchors.
        minibatch_size: anchors drawn an image.
        positive_fraction: the largest part of them that may be positive.
    """
    matches = sampling.match(
        anchors_yxyx[tf.newaxis],
        truth,
        is_usable=is_usable,
        matched_iou=MATCHED_IOU,
        unmatched_iou=UNMATCHED_IOU,
        force_match=True,
    )
    is_candidate = matches != sampling.IGNORED
    draw = sampling.draw_balanced(is_candidate, matches >= 0, minibatch_size, positive_fraction, seed)

    drawn_match = tf.gather(matches, draw.indices, batch_dims=1)  # [B, S]
    is_positive = draw.is_drawn & (drawn_match >= 0)
    targets = boxes.encode(
        tf.gather(truth.boxes_yxyx, tf.maximum(drawn_match, 0), batch_dims=1),
        tf.gather(anchors_yxyx, draw.indices),
    )
    encodings = sampling.gather_rows(outputs.box_encodings, draw.indices)
    box_loss = tf.where(is_positive, smooth_l1(encodings, targets), 0.0)
    objectness = sampling.gather_rows(outputs.objectness, draw.indices)
    objectness_loss = tf.nn.sparse_softmax_cross_entropy_with_logits(
        tf.reshape(tf.cast(is_positive, tf.int32), [-1]), tf.reshape(objectness, [-1, 2])
    )
    objectness_loss = tf.where(draw.is_drawn, tf.reshape(objectness_loss, tf.shape(is_positive)), 0.0)
    size = tf.maximum(tf.reduce_sum(tf.cast(draw.is_drawn, tf.float32), axis=1), 1.0)
    return {
        "rpn_box": tf.reduce_mean(tf.reduce_sum(box_loss, axis=1) / size),
        "rpn_objectness": tf.reduce_mean(tf.reduce_sum(objectness_loss, axis=1) / size),
    }


def smooth_l1(encodings: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    """Return the smooth L1 loss [...] of encodings [..., 4], summed over the four coordinates.

    Girshick, "Fast R-CNN", eq. 3.
    """
    difference = tf.abs(encodings - targets)
    quadratic = tf.minimum(difference, 1.0)
    return tf.reduce_sum(0.5 * quadratic**2 + difference - quadratic, axis=-1)

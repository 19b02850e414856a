"""The box classifier: a tower on each crop of the features, and two dense layers for class and box."""

from collections.abc import Iterator
from typing import NamedTuple

import tensorflow as tf
import tf_keras

from detector import boxes, sampling
from detector.component import Component, build_inner
from detector.feature_extractors.convolution import Conv, Shape, in_series
from detector.rpn import Proposals, smooth_l1
from detector.sampling import GroundTruth
from detector.suppression import Suppressed, suppress_and_clip

# A proposal is positive from this IoU on and negative below it (the published configurations' 0.5).
MATCHED_IOU = 0.5

# Cropped at a time in groups.  On a CPU groups of 16 to 64 are as quick as all boxes at once.
_BOXES_IN_A_GROUP = 32


class BoxPredictions(NamedTuple):
    """What the predictor says of K crops.

    `class_logits` float32 [K, C + 1], background first; `box_encodings` float32 [K, C, 4], one box a class,
    or [K, 1, 4] where the classes share theirs.
    """

    class_logits: tf.Tensor
    box_encodings: tf.Tensor


class Predictor(tf_keras.layers.Layer):
    """The two dense layers on the averaged tower features: class scores and box refinement."""

    def __init__(self, num_classes: int, share_box_across_classes: bool = False, dropout_rate: float = 0.0):
        super().__init__(name="predictor")
        self._dropout_rate = dropout_rate
        # The published configurations: variance scaling, factor 1, uniform, fan average (Glorot).
        self.class_scores = tf_keras.layers.Dense(num_classes + 1, kernel_initializer="glorot_uniform")
        self.box_refinement = tf_keras.layers.Dense(
            4 * (1 if share_box_across_classes else num_classes), kernel_initializer="glorot_uniform"
        )

    def build(self, input_shape: tf.TensorShape) -> None:
        """Make the variables for features of `input_shape`, [K, h, w, depth]."""
        build_inner(self, input_shape)
        super().build(input_shape)

    def inner_layers(self, input_shape: Shape) -> Iterator[tuple[tf_keras.layers.Layer, Shape]]:
        """Yield both dense layers; they run on means over `input_shape`, [K, h, w, depth]."""
        pooled = [input_shape[0], input_shape[-1]]
        yield self.class_scores, pooled
        yield self.box_refinement, pooled

    def call(
        self, features: tf.Tensor, training: bool = False, seed: tf.Tensor | None = None
    ) -> BoxPredictions:
        """Return the predictions for tower features [K, h, w, depth]; `seed` int32 [2] keys the dropout."""
        # In float32: a mean of bfloat16 values has more digits than they do.
        pooled = tf.reduce_mean(tf.cast(features, tf.float32), axis=[1, 2])
        if training and self._dropout_rate:
            pooled = tf.nn.experimental.stateless_dropout(pooled, rate=self._dropout_rate, seed=seed)
        return BoxPredictions(
            tf.cast(self.class_scores(pooled), tf.float32),
            tf.reshape(
                tf.cast(self.box_refinement(pooled), tf.float32), [-1, self.box_refinement.units // 4, 4]
            ),
        )


class BoxClassifier(Component):
    """`tower` (the feature extractor's last block, on each crop) and `predictor`."""

    def __init__(self, tower: Component, predictor: Predictor, winograd: bool = True):
        """`winograd` is whether `detector.winograd` may compute the tower's convolutions."""
        super().__init__(name="box_classifier")
        self.tower = tower
        self.predictor = predictor
        self.winograd = winograd

    @property
    def winograd(self) -> bool:
        """Whether the tower's convolutions are computed by `detector.winograd` where that pays.

        To be set before the first trace.
        """
        return self._winograd

    @winograd.setter
    def winograd(self, value: bool) -> None:
        self._winograd = value
        for layer in self.tower.submodules:
            if isinstance(layer, Conv):
                layer.winograd = value

    def build(self, input_shape: tf.TensorShape) -> None:
        """Make the variables for crops of `input_shape`, [K, h, w, depth]."""
        build_inner(self, input_shape)
        self.built = True

    def inner_layers(self, input_shape: Shape) -> Iterator[tuple[tf_keras.layers.Layer, Shape]]:
        """Yield the tower, which runs on `input_shape`, and the predictor with what it makes of it."""
        return in_series([self.tower, self.predictor], input_shape)

    def call(self, crops: tf.Tensor, training: bool = False, seed: tf.Tensor | None = None) -> BoxPredictions:
        """Return the predictions for pooled crops [K, h, w, depth]."""
        return self.predictor(self.tower(crops, training=training), training=training, seed=seed)


def crop_features(
    features: tf.Tensor,
    boxes_yxyx: tf.Tensor,
    canvas_hw: tf.Tensor,
    crop_size: int,
    *,
    pool_size: int = 1,
    pool_stride: int = 1,
    training: bool = False,
) -> tf.Tensor:
    """Crop boxes out of the features, bilinearly, and pool the crops by maximum.

    Crops before pooling are large, and are not kept: of the few hundred boxes of a detection some are cropped
    after the others; in training all are cropped at once, and again when the gradient is due.

    Args:
        features: [B, h, w, depth].
        boxes_yxyx: float32 [B, P, 4] in canvas pixels.
        canvas_hw: the canvas the features were computed from, [2].
        crop_size: cells a side before pooling.
        pool_size: cells a side of a pool.
        pool_stride: cells from a pool to the next.
        training: whether a gradient is to come; the values are the same.

    Returns:
        float32 [B * P, side, side, depth]; see `pooled_side`.
    """
    normalized = tf.reshape(
        boxes_yxyx / tf.cast(tf.concat([canvas_hw, canvas_hw], axis=0), tf.float32), [-1, 4]
    )
    batch, per_image = tf.shape(boxes_yxyx)[0], tf.shape(boxes_yxyx)[1]
    image_of_box = tf.range(batch * per_image) // per_image
    # It takes no bfloat16, and gives float32 whatever it takes.
    features = tf.cast(features, tf.float32)

    def pooled(features: tf.Tensor, boxes: tf.Tensor, image_of_box: tf.Tensor) -> tf.Tensor:
        crops = tf.image.crop_and_resize(features, boxes, image_of_box, [crop_size, crop_size])
        return tf.nn.max_pool2d(crops, pool_size, pool_stride, "VALID")

    if training:
        return tf.recompute_grad(lambda features: pooled(features, normalized, image_of_box))(features)
    side = pooled_side(crop_size, pool_size, pool_stride)
    groups = -(-tf.shape(normalized)[0] // _BOXES_IN_A_GROUP)
    found = tf.TensorArray(
        tf.float32, groups, infer_shape=False, element_shape=[None, side, side, features.shape[-1]]
    )

    def add_group(index: tf.Tensor, found: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
        group = slice(index * _BOXES_IN_A_GROUP, (index + 1) * _BOXES_IN_A_GROUP)
        return index + 1, found.write(index, pooled(features, normalized[group], image_of_box[group]))

    _, found = tf.while_loop(
        lambda index, _: index < groups, add_group, [tf.constant(0), found], parallel_iterations=1
    )
    return tf.ensure_shape(found.concat(), [*normalized.shape[:1], side, side, features.shape[-1]])


def pooled_side(crop_size: int, pool_size: int, pool_stride: int) -> int:
    """Return the cells a side of a pooled crop: how many pools fit in."""
    return (crop_size - pool_size) // pool_stride + 1


def draw_proposals(
    proposals: Proposals,
    truth: GroundTruth,
    seed: tf.Tensor,
    *,
    batch_size: int,
    positive_fraction: float,
) -> tuple[Proposals, sampling.Draw]:
    """Draw the balanced minibatch of proposals that the second stage trains on, in their order.

    The ground-truth boxes are not among the candidates: neither are they in the original.

    Returns:
        The S drawn proposals, and which rows of `proposals` they are.
    """
    matches = _match_proposals(proposals, truth)
    is_candidate = proposals.is_proposal & (matches != sampling.IGNORED)
    draw = sampling.draw_balanced(is_candidate, matches >= 0, batch_size, positive_fraction, seed)
    drawn = tf.where(
        draw.is_drawn[..., tf.newaxis], tf.gather(proposals.boxes_yxyx, draw.indices, batch_dims=1), 0.0
    )
    scores = tf.where(draw.is_drawn, tf.gather(proposals.scores, draw.indices, batch_dims=1), 0.0)
    return Proposals(drawn, scores, tf.reduce_sum(tf.cast(draw.is_drawn, tf.int32), axis=1)), draw


def box_classifier_losses(
    predictions: BoxPredictions,
    proposals: Proposals,
    truth: GroundTruth,
) -> dict[str, tf.Tensor]:
    """Return the unweighted losses `box` (smooth L1) and `class` (softmax cross entropy).

    Both are summed over an image's proposals, divided by their number, and averaged over the batch.

    Args:
        predictions: for the B * S proposals.
        proposals: the drawn ones, [B, S, 4].
        truth: the objects.
    """
    shape = tf.shape(proposals.boxes_yxyx)[:2]
    matches = _match_proposals(proposals, truth)  # [B, S]
    is_real = proposals.is_proposal
    is_positive = is_real & (matches >= 0)
    matched_row = tf.maximum(matches, 0)
    target_class = tf.where(is_positive, tf.gather(truth.classes, matched_row, batch_dims=1) + 1, 0)

    class_loss = tf.nn.sparse_softmax_cross_entropy_with_logits(
        tf.reshape(target_class, [-1]), predictions.class_logits
    )
    class_loss = tf.where(is_real & (matches != sampling.IGNORED), tf.reshape(class_loss, shape), 0.0)

    if predictions.box_encodings.shape[1] == 1:
        encodings = predictions.box_encodings[:, 0]
    else:
        row = tf.maximum(tf.reshape(target_class, [-1, 1]) - 1, 0)
        encodings = sampling.gather_rows(predictions.box_encodings, row)
    targets = boxes.encode(tf.gather(truth.boxes_yxyx, matched_row, batch_dims=1), proposals.boxes_yxyx)
    box_loss = smooth_l1(tf.reshape(encodings, tf.shape(targets)), targets)
    box_loss = tf.where(is_positive, box_loss, 0.0)

    normalizer = tf.cast(tf.maximum(proposals.count, 1), tf.float32)
    return {
        "box": tf.reduce_mean(tf.reduce_sum(box_loss, axis=1) / normalizer),
        "class": tf.reduce_mean(tf.reduce_sum(class_loss, axis=1) / normalizer),
    }


def detections(
    predictions: BoxPredictions,
    proposals: Proposals,
    image_size_hw: tf.Tensor,
    *,
    max_detections_per_class: int,
    max_detections: int,
    nms_score_threshold: float,
    nms_iou_threshold: float,
) -> Suppressed:
    """Turn the predictions for B * P proposals into detections: decode, suppress class by class, clip.

    Args:
        predictions: for the B * P proposals.
        proposals: [B, P, 4].
        image_size_hw: int32 [B, 2], the part of the canvas to clip to.
        max_detections_per_class: kept of one class.
        max_detections: D, kept over all classes.
        nms_score_threshold: drops detections with this probability or less.
        nms_iou_threshold: drops detections that overlap a better one of their class by more.
    """
    batch, per_image = tf.shape(proposals.boxes_yxyx)[0], tf.shape(proposals.boxes_yxyx)[1]
    boxes_per_proposal = predictions.box_encodings.shape[1]
    encodings = tf.reshape(predictions.box_encodings, [batch, per_image, boxes_per_proposal, 4])
    decoded = boxes.decode(encodings, proposals.boxes_yxyx[:, :, tf.newaxis, :])
    num_classes = predictions.class_logits.shape[-1] - 1
    probability = tf.nn.softmax(predictions.class_logits)[:, 1:]
    probability = tf.reshape(probability, [batch, per_image, num_classes])
    return suppress_and_clip(
        decoded,
        tf.where(proposals.is_proposal[..., tf.newaxis], probability, -1.0),
        image_size_hw,
        max_per_class=max_detections_per_class,
        max_total=max_detections,
        score_threshold=nms_score_threshold,
        iou_threshold=nms_iou_threshold,
    )


def _match_proposals(proposals: Proposals, truth: GroundTruth) -> tf.Tensor:
    return sampling.match(
        proposals.boxes_yxyx,
        truth,
        matched_iou=MATCHED_IOU,
        unmatched_iou=MATCHED_IOU,
        force_match=False,
    )

"""Faster R-CNN: a feature extractor, an RPN and a box classifier, wired together.

Training and inference share every step but two: training leaves out the anchors that cross the edge of
the canvas, and runs the second stage on a balanced draw of the proposals instead of all of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import tensorflow as tf
import tf_keras

from detector import rpn as rpn_stage
from detector.anchors import AnchorGrid, inside_window
from detector.box_classifier import (
    BoxClassifier,
    BoxPredictions,
    box_classifier_losses,
    crop_features,
    detections,
    draw_proposals,
)
from detector.component import Component, named_variables
from detector.rpn import Proposals, Rpn, RpnOutputs
from detector.sampling import Draw, GroundTruth
from detector.suppression import Suppressed

COMPONENTS = ("feature_extractor", "rpn", "box_classifier")


@dataclass(frozen=True)
class RpnSettings:
    """How proposals are made and trained; the defaults are those of the published configurations."""

    minibatch_size: int = 256
    positive_fraction: float = 0.5
    nms_score_threshold: float = 0.0
    nms_iou_threshold: float = 0.7
    max_proposals: int = 300
    clip_anchors: bool = False
    box_loss_weight: float = 2.0
    objectness_loss_weight: float = 1.0


@dataclass(frozen=True)
class BoxClassifierSettings:
    """How proposals are cropped, sampled and turned into detections; defaults as published."""

    crop_size: int = 14
    pool_size: int = 2
    pool_stride: int = 2
    batch_size: int = 64
    positive_fraction: float = 0.25
    box_loss_weight: float = 2.0
    class_loss_weight: float = 1.0
    nms_score_threshold: float = 0.0
    nms_iou_threshold: float = 0.6
    max_detections_per_class: int = 100
    max_detections: int = 300


@dataclass(frozen=True)
class FirstStage:
    """What the first stage computes: features [B, h, w, depth], the RPN's outputs, and its A anchors."""

    features: tf.Tensor
    outputs: RpnOutputs
    anchors_yxyx: tf.Tensor
    is_usable: tf.Tensor | None = field(default=None)  # bool [A], or None where all anchors take part


class Inference(NamedTuple):
    """What a forward pass at inference computes: P proposals an image, predictions for all, D detections."""

    proposals: Proposals
    predictions: BoxPredictions
    detections: Suppressed


class FasterRCNN(tf_keras.Model):
    """The detector.  Its three components are its only layers, and every variable lives in one of them."""

    def __init__(
        self,
        feature_extractor: Component,
        rpn: Rpn,
        box_classifier: BoxClassifier,
        *,
        preprocess: Callable[[tf.Tensor], tf.Tensor],
        class_names: Sequence[str],
        anchor_grid: AnchorGrid,
        rpn_settings: RpnSettings,
        box_classifier_settings: BoxClassifierSettings,
    ):
        super().__init__(name="faster_rcnn")
        self.feature_extractor = feature_extractor
        self.rpn = rpn
        self.box_classifier = box_classifier
        self.preprocess = preprocess
        self.class_names = tuple(class_names)
        self.anchor_grid = anchor_grid
        self.rpn_settings = rpn_settings
        self.box_classifier_settings = box_classifier_settings

    @property
    def components(self) -> dict[str, Component]:
        """The three components by name, in the order of the forward pass."""
        return {name: getattr(self, name) for name in COMPONENTS}

    @property
    def variables_by_path(self) -> dict[str, tf.Variable]:
        """Every variable by its path, in the order of the forward pass."""
        return named_variables(self.components)

    def call(self, image: tf.Tensor, training: bool = False) -> Suppressed:
        """Detect on a batch whose whole canvas is image; see `detect`."""
        size_hw = tf.shape(image)[1:3]
        return self.detect(image, tf.repeat(size_hw[tf.newaxis], tf.shape(image)[0], axis=0))

    def first_stage(self, image: tf.Tensor, training: bool = False) -> FirstStage:
        """Run the feature extractor and the RPN on `image` uint8 or float32 [B, H, W, 3], values 0 … 255."""
        features = self.feature_extractor(self.preprocess(tf.cast(image, tf.float32)), training=training)
        return self.first_stage_of_features(features, height_and_width(image), training)

    def first_stage_of_features(
        self, features: tf.Tensor, canvas_hw: Sequence[int | tf.Tensor], training: bool = False
    ) -> FirstStage:
        """Run the RPN on features [B, h, w, depth] of a canvas of `canvas_hw` pixels."""
        outputs = self.rpn(features, training=training)
        return self.first_stage_of_outputs(
            features, outputs, height_and_width(features), canvas_hw, training=training
        )

    def first_stage_of_outputs(
        self,
        features: tf.Tensor,
        outputs: RpnOutputs,
        grid_hw: Sequence[int | tf.Tensor],
        canvas_hw: Sequence[int | tf.Tensor],
        training: bool = False,
    ) -> FirstStage:
        """Lay the anchors of `grid_hw` cells beside the RPN's outputs for them."""
        anchors = self.anchor_grid(grid_hw)
        if training and not self.rpn_settings.clip_anchors:
            # The paper (section 3.3) and the original ignore cross-boundary anchors in training only.
            return FirstStage(features, outputs, anchors, inside_window(anchors, canvas_hw))
        window = tf.cast(tf.stack(canvas_hw), tf.float32)
        anchors = tf.clip_by_value(anchors, 0.0, tf.concat([window, window], axis=0))
        return FirstStage(features, outputs, anchors)

    def propose(self, first: FirstStage, image_size_hw: tf.Tensor) -> Proposals:
        """Return the RPN's proposals; see `rpn.propose`."""
        settings = self.rpn_settings
        return rpn_stage.propose(
            first.outputs,
            first.anchors_yxyx,
            first.is_usable,
            image_size_hw,
            max_proposals=settings.max_proposals,
            nms_score_threshold=settings.nms_score_threshold,
            nms_iou_threshold=settings.nms_iou_threshold,
        )

    def crops(
        self,
        features: tf.Tensor,
        proposals: Proposals,
        canvas_hw: Sequence[int | tf.Tensor],
        training: bool = False,
    ) -> tf.Tensor:
        """Return the pooled crops [B * P, h, w, depth] that the tower sees; see `crop_features`."""
        settings = self.box_classifier_settings
        return crop_features(
            features,
            proposals.boxes_yxyx,
            tf.cast(tf.stack(canvas_hw), tf.float32),
            settings.crop_size,
            pool_size=settings.pool_size,
            pool_stride=settings.pool_stride,
            training=training,
        )

    def second_stage(
        self,
        features: tf.Tensor,
        proposals: Proposals,
        canvas_hw: Sequence[int | tf.Tensor],
        training: bool = False,
        seed: tf.Tensor | None = None,
    ) -> BoxPredictions:
        """Return the box classifier's predictions for the B * P proposals."""
        crops = self.crops(features, proposals, canvas_hw, training)
        return self.box_classifier(crops, training=training, seed=seed)

    def detect(self, image: tf.Tensor, image_size_hw: tf.Tensor) -> Suppressed:
        """Detect objects; takes what `infer` does."""
        return self.infer(image, image_size_hw).detections

    def infer(self, image: tf.Tensor, image_size_hw: tf.Tensor) -> Inference:
        """Run both stages at inference.

        Args:
            image: uint8 or float32 [B, H, W, 3], RGB values 0 … 255 on the canvas.
            image_size_hw: int32 [B, 2], the part of the canvas that is image.
        """
        first = self.first_stage(image)
        proposals = self.propose(first, image_size_hw)
        predictions = self.second_stage(first.features, proposals, height_and_width(image))
        return Inference(proposals, predictions, self.detections(predictions, proposals, image_size_hw))

    def detections(
        self, predictions: BoxPredictions, proposals: Proposals, image_size_hw: tf.Tensor
    ) -> Suppressed:
        """Turn predictions into detections; see `box_classifier.detections`."""
        settings = self.box_classifier_settings
        return detections(
            predictions,
            proposals,
            image_size_hw,
            max_detections_per_class=settings.max_detections_per_class,
            max_detections=settings.max_detections,
            nms_score_threshold=settings.nms_score_threshold,
            nms_iou_threshold=settings.nms_iou_threshold,
        )

    def named_losses(
        self,
        batch: Mapping[str, tf.Tensor],
        seed: tf.Tensor,
        training: bool = True,
        proposals: Proposals | None = None,
    ) -> dict[str, tf.Tensor]:
        """Return the four weighted losses of a training batch, scalars.

        Args:
            batch: the training batch (`image`, `image_size_hw`, `boxes_yxyx`, `classes`, `is_crowd`).
            seed: int32 [2], the key of every random choice inside: run seed and step.
            training: whether layers that behave differently in training do (BatchNorm, dropout).
            proposals: what the second stage draws from, instead of the RPN's own proposals.

        Returns:
            `rpn_box`, `rpn_objectness`, `box` and `class`.
        """
        canvas = height_and_width(batch["image"])
        features = self.feature_extractor(
            self.preprocess(tf.cast(batch["image"], tf.float32)), training=training
        )
        first = self.first_stage_of_features(features, canvas, training=True)
        if proposals is None:
            proposals = self.propose(first, batch["image_size_hw"])

        def predict(drawn: Proposals, rows: Draw, dropout_seed: tf.Tensor) -> BoxPredictions:
            return self.second_stage(features, drawn, canvas, training=training, seed=dropout_seed)

        return self.losses_of(first, proposals, predict, batch, seed)

    def losses_of(
        self,
        first: FirstStage,
        proposals: Proposals,
        predict: Callable[[Proposals, Draw, tf.Tensor], BoxPredictions],
        batch: Mapping[str, tf.Tensor],
        seed: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        """Return the losses of `named_losses` from what its first stage computed.

        Args:
            first: as for training; its features are not looked at.
            proposals: what the second stage draws from.
            predict: from the drawn proposals, their rows in `proposals` and the key of the dropout to the
                second stage's predictions for them.
            batch: for its labels.
            seed: as in `named_losses`.
        """
        truth = GroundTruth.of(batch)
        anchor_seed, proposal_seed, dropout_seed = (
            tf.random.experimental.stateless_fold_in(seed, choice) for choice in range(3)
        )
        drawn, rows = draw_proposals(
            proposals,
            truth,
            proposal_seed,
            batch_size=self.box_classifier_settings.batch_size,
            positive_fraction=self.box_classifier_settings.positive_fraction,
        )
        predictions = predict(drawn, rows, dropout_seed)
        losses = rpn_stage.rpn_losses(
            first.outputs,
            first.anchors_yxyx,
            first.is_usable,
            truth,
            anchor_seed,
            minibatch_size=self.rpn_settings.minibatch_size,
            positive_fraction=self.rpn_settings.positive_fraction,
        ) | box_classifier_losses(predictions, drawn, truth)
        weights = {
            "rpn_box": self.rpn_settings.box_loss_weight,
            "rpn_objectness": self.rpn_settings.objectness_loss_weight,
            "box": self.box_classifier_settings.box_loss_weight,
            "class": self.box_classifier_settings.class_loss_weight,
        }
        return {name: weights[name] * loss for name, loss in losses.items()}


def height_and_width(image: tf.Tensor) -> list[int | tf.Tensor]:
    """Return the height and width of [B, H, W, …]: integers where they are static, else scalar tensors."""
    return [tf.shape(image)[axis] if image.shape[axis] is None else image.shape[axis] for axis in (1, 2)]

"""The frozen prefix: what of the model comes before everything that moves, and training from its outputs.

Where a plan freezes all from the image up to some point, what is computed there is a pure function of the
example.  `Cut` says where that point is, and `FrozenPrefix` computes the two halves: what comes before it, to
be kept, and losses and detections from what was kept.  What is kept of an example, by how far the cut is:

    in the feature extractor     `features` [h, w, depth] behind its last frozen stage
    behind the RPN               the features, and `rpn_box_encodings` [A, 4], `rpn_objectness` [A, 2],
                                 `proposal_boxes_yxyx` [P, 4], `proposal_scores` [P], `proposal_count` []
    behind the tower             the same with `crop_features` [P, depth], each crop's average, for `features`

and in any case `grid_hw` and `canvas_hw` int32 [2], the features' and the canvas's size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import tensorflow as tf

from detector.box_classifier import BoxPredictions
from detector.faster_rcnn import FasterRCNN, FirstStage, height_and_width
from detector.feature_extractors.convolution import StageChain
from detector.freeze import FreezePlan
from detector.rpn import Proposals, RpnOutputs
from detector.sampling import Draw
from detector.suppression import Suppressed


@dataclass(frozen=True)
class Cut:
    """Where a frozen prefix ends: after `stages` of the feature extractor, or with all of them further on.

    `paths` are those of the parts inside, stages or components.
    """

    stages: tuple[str, ...]
    rpn: bool = False
    tower: bool = False

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of what lies before the cut."""
        rest = ("rpn",) * self.rpn + ("box_classifier/tower",) * self.tower
        return tuple(f"feature_extractor/{stage}" for stage in self.stages) + rest

    def __str__(self) -> str:
        return f"after {self.paths[-1]}"


def find_cut(model: FasterRCNN, plan: FreezePlan) -> Cut | None:
    """Return where the plan's frozen prefix of `model` ends; None if something moves from the start."""
    stages = list(model.feature_extractor.stages)
    order = [f"feature_extractor/{stage}" for stage in stages] + ["rpn", "box_classifier/tower"]
    frozen = plan.frozen_prefix(order)
    # Without variables there is nothing to save: a pooling alone, or preprocessing.
    if not any(path.startswith(f"{part}/") for part in frozen for path in plan.frozen):
        return None
    count = min(len(frozen), len(stages))
    return Cut(tuple(stages[:count]), rpn=len(frozen) > len(stages), tower=len(frozen) == len(order))


class Sizes(NamedTuple):
    """The canvas's and the features' height and width, integers: where all examples have the same."""

    canvas_hw: Sequence[int]
    grid_hw: Sequence[int]


class FrozenPrefix:
    """The two halves of a model at a cut."""

    def __init__(self, model: FasterRCNN, cut: Cut):
        """Cut `model`, whose feature extractor is a chain of stages.

        Raises:
            TypeError: it is not.
        """
        if not isinstance(model.feature_extractor, StageChain):
            raise TypeError(
                f"a {type(model.feature_extractor).__name__} cannot be cut: expected a StageChain"
            )
        self._model = model
        self._extractor = model.feature_extractor
        self.cut = cut

    @cached_property
    def variables(self) -> dict[str, tf.Variable]:
        """Every variable before the cut, by path: with the example, all that the outputs depend on."""
        return {
            path: variable
            for path, variable in self._model.variables_by_path.items()
            if any(path.startswith(f"{part}/") for part in self.cut.paths)
        }

    def outputs(
        self, image: tf.Tensor, image_size_hw: tf.Tensor, training: bool = True
    ) -> dict[str, tf.Tensor]:
        """Compute what is to be kept of a batch; see the top of this file.

        Args:
            image: uint8 or float32 [B, H, W, 3], RGB values 0 … 255 on the canvas.
            image_size_hw: int32 [B, 2], the part of the canvas that is image.
            training: whether the proposals are for training, where anchors across the edge make none.
        """
        model, cut = self._model, self.cut
        canvas = height_and_width(image)
        features = self._extractor(model.preprocess(tf.cast(image, tf.float32)), through=cut.stages[-1])
        found = {
            "canvas_hw": tf.repeat(tf.stack(canvas)[tf.newaxis], tf.shape(image)[0], axis=0),
            "grid_hw": tf.repeat(tf.shape(features)[tf.newaxis, 1:3], tf.shape(image)[0], axis=0),
        }
        if not cut.tower:
            found["features"] = features
        if not cut.rpn:
            return found
        first = model.first_stage_of_features(features, canvas, training=training)
        proposals = model.propose(first, image_size_hw)
        found |= {
            "rpn_box_encodings": first.outputs.box_encodings,
            "rpn_objectness": first.outputs.objectness,
            "proposal_boxes_yxyx": proposals.boxes_yxyx,
            "proposal_scores": proposals.scores,
            "proposal_count": proposals.count,
        }
        if cut.tower:
            crops = model.box_classifier.tower(model.crops(features, proposals, canvas))
            pooled = tf.reduce_mean(tf.cast(crops, tf.float32), axis=[1, 2])
            found["crop_features"] = tf.reshape(
                pooled, [tf.shape(image)[0], tf.shape(proposals.boxes_yxyx)[1], pooled.shape[-1]]
            )
        return found

    def named_losses(
        self, batch: Mapping[str, tf.Tensor], seed: tf.Tensor, sizes: Sizes | None = None
    ) -> dict[str, tf.Tensor]:
        """Return what `FasterRCNN.named_losses` does for training, from kept outputs.

        Args:
            batch: labels, and `outputs` for training.
            seed: int32 [2], run seed and step.
            sizes: static ones; read off the batch otherwise.
        """
        canvas, grid = sizes or _sizes_of(batch)
        features, first = self._first_stage(batch, canvas, grid, training=True)
        proposals = self._proposals(first, batch)

        def predict(drawn: Proposals, rows: Draw, dropout_seed: tf.Tensor) -> BoxPredictions:
            if not self.cut.tower:
                return self._model.second_stage(features, drawn, canvas, training=True, seed=dropout_seed)
            pooled = tf.gather(batch["crop_features"], rows.indices, batch_dims=1)
            return self._predict(pooled, training=True, seed=dropout_seed)

        return self._model.losses_of(first, proposals, predict, batch, seed)

    def detect(self, batch: Mapping[str, tf.Tensor], sizes: Sizes | None = None) -> Suppressed:
        """Return what `FasterRCNN.detect` does, from `outputs` kept with `training` false."""
        canvas, grid = sizes or _sizes_of(batch)
        features, first = self._first_stage(batch, canvas, grid, training=False)
        proposals = self._proposals(first, batch)
        if self.cut.tower:
            predictions = self._predict(batch["crop_features"])
        else:
            predictions = self._model.second_stage(features, proposals, canvas)
        return self._model.detections(predictions, proposals, batch["image_size_hw"])

    def _first_stage(
        self,
        batch: Mapping[str, tf.Tensor],
        canvas_hw: Sequence[int | tf.Tensor],
        grid_hw: Sequence[int | tf.Tensor],
        training: bool,
    ) -> tuple[tf.Tensor, FirstStage]:
        model, cut = self._model, self.cut
        if not cut.rpn:
            features = self._extractor(batch["features"], training=training, after=cut.stages[-1])
            return features, model.first_stage_of_features(features, canvas_hw, training=training)
        features = batch["crop_features" if cut.tower else "features"]
        outputs = RpnOutputs(None, batch["rpn_box_encodings"], batch["rpn_objectness"])
        return features, model.first_stage_of_outputs(
            features, outputs, grid_hw, canvas_hw, training=training
        )

    def _proposals(self, first: FirstStage, batch: Mapping[str, tf.Tensor]) -> Proposals:
        if not self.cut.rpn:
            return self._model.propose(first, batch["image_size_hw"])
        return Proposals(batch["proposal_boxes_yxyx"], batch["proposal_scores"], batch["proposal_count"])

    def _predict(
        self, crop_features: tf.Tensor, training: bool = False, seed: tf.Tensor | None = None
    ) -> BoxPredictions:
        """Run the predictor on crop features [B, S, depth]; it averages over what is one cell here."""
        flat = tf.reshape(crop_features, [-1, 1, 1, crop_features.shape[-1]])
        return self._model.box_classifier.predictor(flat, training=training, seed=seed)


def _sizes_of(batch: Mapping[str, tf.Tensor]) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    return tf.unstack(batch["canvas_hw"][0]), tf.unstack(batch["grid_hw"][0])

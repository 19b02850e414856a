"""What a training step costs, predicted: operations by stage of the model, and what a plan saves of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import tensorflow as tf
import tf_keras

from detector.box_classifier import pooled_side
from detector.faster_rcnn import FasterRCNN
from detector.feature_extractors.convolution import Shape
from detector.freeze import FreezePlan
from detector.selectors import under
from detector.sparse_convolution import differentiated_part


@dataclass(frozen=True)
class StageCost:
    """One stage of the forward pass, by path, and its floating-point operations for one image.

    `gradient_part` is what each of its gradients, towards its variables and towards its input, takes of them.
    """

    path: str
    flops: int
    gradient_part: float = 1.0


def stage_costs(model: FasterRCNN, canvas_hw: tuple[int, int]) -> list[StageCost]:
    """Return the cost of every stage for one image of `canvas_hw` pixels, in the order of the forward pass.

    Convolutions and matrix products are counted, by their definition and a multiplication and an addition as
    two, as is usual, even where `detector.winograd` takes fewer.  The second stage is counted for the crops
    of a training step.
    """
    costs = []
    shape: Shape = [1, *canvas_hw, 3]
    for name, stage in model.feature_extractor.stages.items():
        costs.append(StageCost(f"feature_extractor/{name}", _flops(stage, shape)))
        shape = stage.compute_output_shape(shape)
    _, height, width, depth = tf.TensorShape(shape).as_list()
    part = differentiated_part(height * width, model.rpn_settings.minibatch_size)
    costs.append(StageCost("rpn", _flops(model.rpn, shape), part))
    settings = model.box_classifier_settings
    side = pooled_side(settings.crop_size, settings.pool_size, settings.pool_stride)
    shape = [settings.batch_size, side, side, depth]
    for name, stage in model.box_classifier.tower.stages.items():
        costs.append(StageCost(f"box_classifier/tower/{name}", _flops(stage, shape)))
        shape = stage.compute_output_shape(shape)
    costs.append(StageCost("box_classifier/predictor", _flops(model.box_classifier.predictor, shape)))
    return costs


def _flops(layer: tf_keras.layers.Layer, shape: Shape) -> int:
    """Return the operations of a layer, those inside it included, on inputs of `shape`."""
    if isinstance(layer, tf_keras.layers.SeparableConv2D):
        *cells, _ = layer.compute_output_shape(shape)
        of_a_cell = layer.depthwise_kernel.shape.num_elements() + layer.pointwise_kernel.shape.num_elements()
        return 2 * math.prod(cells) * of_a_cell
    if isinstance(layer, tf_keras.layers.Conv2D | tf_keras.layers.Dense):
        *cells, _ = layer.compute_output_shape(shape)
        return 2 * math.prod(cells) * layer.kernel.shape.num_elements()
    if hasattr(layer, "inner_layers"):
        return sum(_flops(*inner) for inner in layer.inner_layers(shape))
    return 0  # a pool


def predicted_saving(costs: list[StageCost], plan: FreezePlan) -> float:
    """Return the part of a full training step's operations that `plan` does not have to do, 0 … 1.

    A stage's forward pass counts once.  Its gradient towards its variables counts once more if it trains,
    and the gradient towards its input once more if anything before it trains; the RPN's gradients count for
    the cells alone of which its losses draw anchors.
    """
    return 1.0 - training_flops(costs, plan) / training_flops(costs, None)


def inference_flops(model: FasterRCNN, canvas_hw: tuple[int, int]) -> float:
    """Return the operations of detection on one image: the forward passes, the second stage's for all crops.

    See `stage_costs` for what is counted.
    """
    crops = model.rpn_settings.max_proposals / model.box_classifier_settings.batch_size
    return sum(
        cost.flops * (crops if cost.path.startswith("box_classifier") else 1)
        for cost in stage_costs(model, canvas_hw)
    )


def training_flops(costs: list[StageCost], plan: FreezePlan | None, kept: Sequence[str] = ()) -> float:
    """Return the operations of a training step on one image under `plan`; None is that nothing is frozen.

    `kept` are the paths of parts whose outputs come from a cache, at no cost.  See `predicted_saving` for
    what is counted.
    """
    trains = {cost.path: plan is None or _trains(cost.path, plan) for cost in costs}
    total = 0.0
    for index, cost in enumerate(costs):
        if any(under(part, cost.path) for part in kept):
            continue
        # Box classifier stages reach back into the feature extractor through the crops, not through the RPN:
        # proposals are constants.
        before = [
            earlier.path
            for earlier in costs[:index]
            if not (earlier.path == "rpn" and cost.path.startswith("box_classifier"))
        ]
        gradients = trains[cost.path] + any(trains[path] for path in before)
        total += (1 + gradients * cost.gradient_part) * cost.flops
    return total


def _trains(path: str, plan: FreezePlan) -> bool:
    return plan.summary(path).trained_variables > 0

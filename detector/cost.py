"""What a training step costs, predicted: operations by stage of the model, and what a plan saves of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import tensorflow as tf
import tf_keras

from detector.faster_rcnn import FasterRCNN
from detector.freeze import FreezePlan
from detector.rpn import Proposals
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

    Counted by TensorFlow's profiler on each stage's own graph.  The second stage is counted for the crops of
    a training step, and its convolutions by their definition, as is usual, even where `detector.winograd`
    takes fewer operations.  What has no variables (NMS, cropping, losses) is not counted.
    """
    winograd, model.box_classifier.winograd = model.box_classifier.winograd, False
    try:
        return _count(model, canvas_hw)
    finally:
        model.box_classifier.winograd = winograd


def _count(model: FasterRCNN, canvas_hw: tuple[int, int]) -> list[StageCost]:
    costs = []

    def add(
        path: str, stage: tf_keras.layers.Layer, shape: list[int], gradient_part: float = 1.0
    ) -> list[int]:
        graph = tf.function(lambda x: stage(x), autograph=False).get_concrete_function(
            tf.TensorSpec(shape, tf.float32)
        )
        costs.append(StageCost(path, _flops(graph.graph), gradient_part))
        outputs = graph.structured_outputs
        return outputs.shape.as_list() if isinstance(outputs, tf.TensorSpec | tf.Tensor) else shape

    shape = [1, *canvas_hw, 3]
    for name, stage in model.feature_extractor.stages.items():
        shape = add(f"feature_extractor/{name}", stage, shape)
    _, height, width, _ = shape
    add("rpn", model.rpn, shape, differentiated_part(height * width, model.rpn_settings.minibatch_size))
    settings = model.box_classifier_settings
    whole = tf.constant([[[0.0, 0.0, *canvas_hw]]])  # any one box: what counts is the crop's shape
    crop = model.crops(tf.zeros(shape), Proposals(whole, tf.ones([1, 1]), tf.ones([1], tf.int32)), canvas_hw)
    shape = [settings.batch_size, *crop.shape[1:]]
    for name, stage in model.box_classifier.tower.stages.items():
        shape = add(f"box_classifier/tower/{name}", stage, shape)
    add("box_classifier/predictor", model.box_classifier.predictor, shape)
    return costs


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


def _flops(graph: tf.Graph) -> int:
    options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
    options["output"] = "none"
    return tf.compat.v1.profiler.profile(graph, options=options).total_float_ops

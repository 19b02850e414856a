"""Which parts of a restored detector fit a data set, measured without training.

Forward and backward passes at the restored weights, which stay as they are.  Per stage:

    relative gradient    ‖gradient‖ / ‖weight‖ over the stage's variables: how much the loss wants it to move
    shift                how far the inputs of its BatchNorm layers lie from the statistics they were trained
                         with: the domain gap as this stage sees it, what earlier stages pass on included

and for the whole detector where the loss comes from, and how many objects the proposals find.
`detector.freeze_suggestion` makes a freeze of it.
"""

import statistics
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from detector import boxes
from detector.batch_norm import unfolded
from detector.component import walk_layers
from detector.determinism import enable_determinism
from detector.faster_rcnn import FasterRCNN
from detector.freeze import rows_of
from detector.sampling import GroundTruth
from detector.selectors import stage_of

Batch = Mapping[str, tf.Tensor]

RECALL_IOUS = (0.5, 0.75)


@dataclass(frozen=True)
class StageDiagnosis:
    """One stage, by path.

    `parameters`: how many numbers gradients could move.  `fresh`: whether any variable's value came from an
    initializer.  `relative_gradient`: the mean over the batches of ‖gradient‖ / ‖weight‖.  The last two are
    means over the stage's BatchNorm layers of means over their channels, or None where it has none:
    `mean_shift` of |mean - moving mean| in moving standard deviations, `variance_shift` of
    |log(variance / moving variance)|.
    """

    path: str
    parameters: int
    fresh: bool
    relative_gradient: float
    mean_shift: float | None
    variance_shift: float | None

    @property
    def shift(self) -> float | None:
        """Both shifts in one: `mean_shift` and half of `variance_shift` (the log of standard deviations)."""
        if self.mean_shift is None or self.variance_shift is None:
            return None
        return self.mean_shift + self.variance_shift / 2


@dataclass(frozen=True)
class Diagnosis:
    """What was measured.

    `stages` in the order of the forward pass.  `losses`: the four weighted losses, means over the batches.
    `recall`: {IoU: the part of the objects that a proposal overlaps by at least that}, None without objects.
    """

    images: int
    batches: int
    objects: int
    stages: tuple[StageDiagnosis, ...]
    losses: dict[str, float]
    recall: dict[float, float | None]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON values of `diagnose.json`."""
        return {
            **asdict(self),
            "stages": [{**asdict(stage), "shift": stage.shift} for stage in self.stages],
            "recall": {f"{iou:.2f}": part for iou, part in self.recall.items()},
        }


def diagnose(
    model: FasterRCNN, batches: Iterable[Batch], *, restored: Collection[str], seed: int = 0
) -> Diagnosis:
    """Measure `model` on batches of training data; no variable changes.

    Layers run as at inference: BatchNorm normalises with its stored statistics, and nothing drops out.  The
    statistics of BatchNorm inputs are those of all batches together, so that small batches add no noise.

    On a CPU the same batches give the same bits: deterministic operations are switched on, for the whole
    process.

    Args:
        model: with the weights to look at.
        batches: a finite set, of the design's section 4.
        restored: the paths of the variables whose values came from a checkpoint.
        seed: the key of the draws of anchors and proposals.

    Raises:
        ValueError: there are no batches, or a loss is not finite.
    """
    enable_determinism()
    rows = rows_of(model.components, restored)
    variables = model.variables_by_path
    weights = {row.path: variables[row.path] for row in rows if not row.statistic}
    norms = batch_norms(model)
    measure = _measurement(model, weights, norms)

    losses: dict[str, list[float]] = defaultdict(list)
    gradients: list[dict[str, float]] = []  # of each batch: {stage: norm}
    moments = {path: _Moments() for path in norms}
    images, objects, found = 0, 0, np.zeros(len(RECALL_IOUS), np.int64)
    for number, batch in enumerate(batches):
        measured = measure(batch, tf.constant([seed, number], tf.int32))
        values = {name: float(loss) for name, loss in measured["losses"].items()}
        if not np.isfinite(list(values.values())).all():
            raise ValueError(f"batch {number}: a loss is not finite ({values}); the weights are of no use")
        for name, value in values.items():
            losses[name].append(value)
        gradients.append(_stage_norms(zip(weights, measured["squared_gradients"].numpy(), strict=True)))
        for path, (mean, variance, count) in measured["moments"].items():
            moments[path].add(mean.numpy(), variance.numpy(), int(count))
        images += len(batch["image"])
        objects += int(measured["objects"])
        found += measured["found"].numpy()
    if not gradients:
        raise ValueError("there are no batches to diagnose on; give at least one")

    weight_norms = _stage_norms((path, tf.reduce_sum(tf.square(value))) for path, value in weights.items())
    shifts: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for path, layer in norms.items():
        shifts[stage_of(path)].append(moments[path].shift(layer))

    def of_stage(path: str) -> StageDiagnosis:
        members = [row for row in rows if row.stage == path]
        gradient = statistics.fmean(of_batch[path] for of_batch in gradients)
        mean_shifts = [mean for mean, _ in shifts.get(path, ())]
        variance_shifts = [variance for _, variance in shifts.get(path, ())]
        return StageDiagnosis(
            path=path,
            parameters=sum(row.size for row in members if not row.statistic),
            fresh=not all(row.restored for row in members),
            relative_gradient=gradient / max(weight_norms[path], 1e-12),
            mean_shift=statistics.fmean(mean_shifts) if mean_shifts else None,
            variance_shift=statistics.fmean(variance_shifts) if variance_shifts else None,
        )

    return Diagnosis(
        images=images,
        batches=len(gradients),
        objects=objects,
        stages=tuple(of_stage(path) for path in weight_norms),
        losses={name: statistics.fmean(values) for name, values in losses.items()},
        recall={
            iou: int(count) / objects if objects else None
            for iou, count in zip(RECALL_IOUS, found, strict=True)
        },
    )


def batch_norms(model: FasterRCNN) -> dict[str, tf_keras.layers.BatchNormalization]:
    """Return the model's BatchNorm layers by path, in the order of the forward pass."""
    return {
        path: layer
        for name, component in model.components.items()
        for path, layer in walk_layers(component, name)
        if isinstance(layer, tf_keras.layers.BatchNormalization)
    }


@contextmanager
def recorded_inputs(layers: Mapping[str, tf_keras.layers.Layer]) -> Iterator[dict[str, tf.Tensor]]:
    """Within it, every call of one of `layers` also puts its input into the yielded dict, under its name.

    Each layer's `call` is covered by an attribute of the instance, which is deleted at the end: the class,
    and other models, are never touched.  Within a `tf.function` the inputs are tensors of its graph, so they
    have to be used there.  A layer that is called twice keeps its last input.
    """
    inputs: dict[str, tf.Tensor] = {}

    def recording(name: str, layer: tf_keras.layers.Layer) -> Any:
        original = layer.call

        @tf.autograph.experimental.do_not_convert
        def call(tensor: tf.Tensor, training: bool = False) -> tf.Tensor:
            inputs[name] = tensor
            return original(tensor, training=training)

        return call

    for name, layer in layers.items():
        layer.call = recording(name, layer)
    try:
        with unfolded():
            yield inputs
    finally:
        for layer in layers.values():
            del layer.call


def _measurement(
    model: FasterRCNN,
    weights: Mapping[str, tf.Variable],
    norms: Mapping[str, tf_keras.layers.BatchNormalization],
) -> Callable[[Batch, tf.Tensor], dict[str, Any]]:
    """Return a `tf.function` of (batch, seed int32 [2]) to what one batch shows.

    `losses`: the four; `squared_gradients` float32 [V], by variable; `moments`: {path: (mean, variance,
    count)} of BatchNorm inputs; `objects` and `found` int32 [IoUs]: how many there are and have proposals.
    """

    @tf.function(reduce_retracing=True, autograph=False)
    def measure(batch: Batch, seed: tf.Tensor) -> dict[str, Any]:
        variables = list(weights.values())
        with recorded_inputs(norms) as inputs, tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            losses = model.named_losses(batch, seed, training=False)
            loss = tf.add_n(list(losses.values()))
        gradients = tape.gradient(loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        objects, found = _found_by_proposals(model, batch)
        return {
            "losses": losses,
            "squared_gradients": tf.stack([tf.reduce_sum(tf.square(gradient)) for gradient in gradients]),
            "moments": {path: _channel_moments(tensor) for path, tensor in inputs.items()},
            "objects": objects,
            "found": found,
        }

    return measure


def _found_by_proposals(model: FasterRCNN, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
    """Return how many objects there are, and how many the proposals of inference find at each of the IoUs."""
    proposals = model.propose(model.first_stage(batch["image"]), batch["image_size_hw"])
    truth = GroundTruth.of(batch)
    overlaps = boxes.iou(truth.boxes_yxyx, proposals.boxes_yxyx)  # [B, N, P]
    best = tf.reduce_max(tf.where(proposals.is_proposal[:, tf.newaxis], overlaps, 0.0), axis=2)  # [B, N]
    found = [tf.math.count_nonzero(truth.is_object & (best >= iou)) for iou in RECALL_IOUS]
    return tf.math.count_nonzero(truth.is_object), tf.stack(found)


def _channel_moments(tensor: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return mean and variance by channel of [..., depth], and over how many values each is."""
    mean, variance = tf.nn.moments(tf.cast(tensor, tf.float32), axes=list(range(tensor.shape.rank - 1)))
    return mean, variance, tf.size(tensor) // tf.shape(tensor)[-1]


class _Moments:
    """Mean and variance by channel over several batches."""

    def __init__(self) -> None:
        self._count = 0
        self._sum: Any = 0.0
        self._squares: Any = 0.0

    def add(self, mean: np.ndarray, variance: np.ndarray, count: int) -> None:
        mean, variance = mean.astype(np.float64), variance.astype(np.float64)
        self._count += count
        self._sum += count * mean
        self._squares += count * (variance + mean**2)

    def shift(self, layer: tf_keras.layers.BatchNormalization) -> tuple[float, float]:
        """Return `layer`'s mean shift and variance shift; see `StageDiagnosis`."""
        mean = self._sum / self._count
        variance = np.maximum(self._squares / self._count - mean**2, 0.0) + layer.epsilon
        stored = layer.moving_variance.numpy().astype(np.float64) + layer.epsilon
        mean_shift = np.abs(mean - layer.moving_mean.numpy()) / np.sqrt(stored)
        return float(mean_shift.mean()), float(np.abs(np.log(variance / stored)).mean())


def _stage_norms(squared_norms: Iterable[tuple[str, Any]]) -> dict[str, float]:
    """Return {stage: joint norm} of (path, squared norm) pairs."""
    totals: dict[str, float] = defaultdict(float)
    for path, squared in squared_norms:
        totals[stage_of(path)] += float(squared)
    return {stage: total**0.5 for stage, total in totals.items()}

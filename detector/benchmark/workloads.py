"""What this package's own workers repeat: a training step, an inference, and the machine's matrix product."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from detector.benchmark.random_examples import LEARNING_RATE, random_examples
from detector.benchmark.worker import Prepared
from detector.builder import build_model, build_resizer
from detector.config import Config
from detector.cost import inference_flops, stage_costs, training_flops
from detector.determinism import enable_determinism
from detector.experiment import prepare
from detector.export import IMAGES_SIGNATURE
from detector.feature_cache import FeatureCache
from detector.frozen_prefix import find_cut
from detector.optimizer import GroupedOptimizer
from detector.recomputation import recompute
from detector.training_step import Batch, Step, make_step

# Sides of the matrices whose product is timed; the best of them counts.
_MATRIX_SIDES = (1024, 2048, 3072)
_TOO_LONG_SECONDS = 1.0  # for one product: a precision that the CPU only imitates stops here


class TrainingStep(NamedTuple):
    """A step, the endless batches it takes, and what counts the operations of one of its steps."""

    step: Step
    batches: Iterator[Batch]
    flops: Callable[[], float]


def random_batches(
    batch_size: int, height: int, width: int, classes: int, boxes: int, seed: int = 0
) -> list[Batch]:
    """Return `random_examples` as training batches of the design's section 4."""
    whole = tf.constant([[height, width]] * batch_size, tf.int32)
    return [
        {
            **{name: tf.constant(values) for name, values in example.items()},
            "image_size_hw": whole,
            "is_crowd": tf.zeros([batch_size, boxes], tf.bool),
            "image_id": tf.range(batch_size, dtype=tf.int64),
            "original_size_hw": whole,
        }
        for example in random_examples(batch_size, height, width, classes, boxes, seed)
    ]


def training_step(
    config: Config,
    class_names: Sequence[str],
    batches: Iterable[Batch],
    cache: FeatureCache | None = None,
    images: int | None = None,
) -> TrainingStep:
    """Return the step that a run of `config` begins with, as `detector.train.fit` makes it.

    Args:
        config: of the run.
        class_names: of the data.
        batches: endless; not looked at where there is a cache.
        cache: what the step takes its batches from, if it is given; it is filled first.
        images: of the training set, where a later freeze stage starts at an epoch.

    Raises:
        ValueError: of the import's or the freeze plan's, or the cache cannot hold what the plan freezes.
    """
    experiment = prepare(config, class_names, images)
    model, plan = experiment.model, experiment.plan
    plan.apply(model.components)
    recompute(model.components, plan.rows, config.train.recompute)
    variables = model.variables_by_path
    trained = {path: variables[path] for path in plan.trained}
    kept = None
    if cache is not None:
        notes: list[str] = []
        kept = cache.open(model, plan, notes.append)
        if kept is None:
            raise ValueError(f"train.cache: features has nothing to measure: {notes[-1]}")
        batches = kept.batches(config.train.batch_size)
    step = make_step(
        model,
        trained,
        GroupedOptimizer(config.train.optimizer, trained),
        clip_norm=config.train.clip_norm,
        l2={"rpn": config.model.rpn.l2, "box_classifier/predictor": config.model.box_classifier.l2},
        named_losses=kept.named_losses if kept is not None else None,
    )

    def flops() -> float:
        cut = find_cut(model, plan) if kept is not None else None
        costs = stage_costs(model, build_resizer(config.model).nominal_hw)
        return config.train.batch_size * training_flops(costs, plan, cut.paths if cut is not None else ())

    return TrainingStep(step, iter(batches), flops)


def training(
    config: Config,
    class_names: Sequence[str],
    batches: Iterable[Batch],
    cache: FeatureCache | None = None,
    images: int | None = None,
) -> Prepared:
    """Build the model and repeat its training step; takes and raises as `training_step`.

    With `train.deterministic` TensorFlow's deterministic operations are switched on, except on a GPU.
    """
    if config.train.deterministic:
        enable_determinism()
    step, source, flops = training_step(config, class_names, batches, cache, images)
    seed = tf.constant([config.train.seed, 0], tf.int32)
    rate = tf.constant(LEARNING_RATE, tf.float32)

    def repeat() -> None:
        losses = {name: float(value) for name, value in step(next(source), seed, rate).items()}
        if not math.isfinite(losses["loss"]):
            raise ValueError(f"the loss is not finite, so its time means nothing: {losses}")

    return Prepared(repeat, config.train.batch_size, flops)


def inference(config: Config, class_names: Sequence[str], batches: Sequence[Batch]) -> Prepared:
    """Build the model and repeat its detection."""
    model = build_model(config.model, class_names, seed=config.train.seed)
    detect = tf.function(model.detect, reduce_retracing=True, autograph=False)
    source = cycle(batches)

    def repeat() -> None:
        batch = next(source)
        detect(batch["image"], batch["image_size_hw"]).count.numpy()

    batch_size, height, width, _ = batches[0]["image"].shape
    return Prepared(repeat, batch_size, lambda: batch_size * inference_flops(model, (height, width)))


def saved_model_inference(
    folder: Path, config: Config, class_names: Sequence[str], batches: Sequence[Batch]
) -> Prepared:
    """Load the SavedModel of `config` and repeat its detection, the resizing inside it included."""
    serve = tf.saved_model.load(str(folder)).signatures[IMAGES_SIGNATURE]
    source = cycle(batches)

    def repeat() -> None:
        serve(input_tensor=next(source)["image"])["num_detections"].numpy()

    batch_size, height, width, _ = batches[0]["image"].shape

    def flops() -> float:
        return batch_size * inference_flops(build_model(config.model, class_names), (height, width))

    return Prepared(repeat, batch_size, flops)


def matrix_product(precision: str) -> Prepared:
    """Repeat the product of two square matrices, of the side at which the machine is fastest."""
    rates = {}
    for side in _MATRIX_SIDES:
        product = _product(precision, side)
        product()  # traced
        product()
        seconds = min(_seconds(product) for _ in range(5))
        rates[side] = side**3 / seconds
        if seconds > _TOO_LONG_SECONDS:
            break
    best = max(rates, key=rates.__getitem__)
    return Prepared(_product(precision, best), 0, lambda: 2.0 * best**3)


def _product(precision: str, side: int) -> Callable[[], None]:
    rng = np.random.default_rng(0)
    left, right = (
        tf.cast(tf.constant(rng.standard_normal([side, side]), tf.float32), precision) for _ in range(2)
    )
    # Arguments, not constants: TensorFlow would fold their product.  A corner is enough to wait for.
    function = tf.function(lambda a, b: tf.linalg.matmul(a, b)[:1, :1])

    def multiply() -> None:
        function(left, right).numpy()

    return multiply


def _seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began

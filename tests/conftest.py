"""A small detector and small batches that every head learns from, for tests that need a whole model."""

import launch  # isort: skip  # sets what TensorFlow reads when it is imported

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import detector.builder
from data.shapes import IMAGE_COUNTS
from detector import export_check
from detector.batch_norm import BatchNorm
from detector.builder import build_model
from detector.component import walk_layers
from detector.config import Config, override
from detector.faster_rcnn import FasterRCNN
from detector.freeze import rows_of
from detector.graph_rewriting import leave_out_what_does_not_pay
from detector.recomputation import recompute

# As every command does; here, so that no test depends on which ran before.
launch.settle_process()
# A run asks for it, and it cannot be undone: here for the same reason.
tf.config.experimental.enable_op_determinism()
# TensorFlow rewrites a graph before its first run, for a second and more; most graphs of tests run thrice.
# A module whose numbers may depend on that asks for `rewritten_graphs`.
tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})

CLASS_NAMES = ("circle", "square", "star")

TINY = {
    "model": {
        "feature_extractor": {"depth_multiplier": 0.1, "min_depth": 4, "batch_norm_momentum": 0.9},
        "resizer": {"kind": "fixed_shape", "height": 64, "width": 64},
        "anchors": {"base_size_hw": [32, 32], "scales": [0.5, 1.0]},
        "rpn": {"conv_depth": 8, "minibatch_size": 16, "max_proposals": 16},
        "box_classifier": {"crop_size": 8, "batch_size": 8, "max_detections": 20},
    },
    "train": {
        "steps": 3,
        "batch_size": 2,
        "learning_rate": {"schedule": "constant", "base": 0.05},
        "checkpoint_every": 2,
        "log_every": 1,
    },
}


@contextmanager
def rewriting_graphs() -> Iterator[None]:
    """Have TensorFlow rewrite graphs, as it does for the commands."""
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False})
    leave_out_what_does_not_pay()
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})


@contextmanager
def running_eagerly() -> Iterator[None]:
    """Run functions without tracing them: sooner, where it is for a few steps."""
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="module")
def rewritten_graphs() -> Iterator[None]:
    """Have TensorFlow rewrite graphs in a whole module."""
    with rewriting_graphs():
        yield


@pytest.fixture(scope="module")
def few_shapes() -> Iterator[None]:
    """Let the embedded data set have 8 images a split: to draw and to detect on all takes many seconds."""
    with pytest.MonkeyPatch.context() as patch:
        for split in IMAGE_COUNTS:
            patch.setitem(IMAGE_COUNTS, split, 8)
        yield


def building_once() -> Callable[..., FasterRCNN]:
    """Return a `build_model` that builds a detector once, for what restores it whole or does not run it."""
    build = cache(detector.builder.build_model)
    # What moves the statistics is none of the builder's business.
    return lambda settings, class_names, seed: build(
        settings.model_copy(update={"batch_norm": "auto"}), tuple(class_names), seed
    )


@pytest.fixture(scope="module")
def built_once() -> Iterator[None]:
    """Build a detector once for all commands of a module that restore it whole, or do not run it."""
    build = building_once()
    with pytest.MonkeyPatch.context() as patch:
        for module in ("experiment", "auto_freeze"):
            patch.setattr(f"detector.{module}.build_model", build)
        yield


@pytest.fixture
def eagerly() -> Iterator[None]:
    """Run functions without tracing them, in a whole test."""
    with running_eagerly():
        yield


@pytest.fixture(scope="module")
def loaded_once() -> Iterator[None]:
    """Load a SavedModel once for all that a module does with it: it takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tf.saved_model, "load", cache(tf.saved_model.load))
        yield


@pytest.fixture
def reloaded_here(monkeypatch) -> None:
    """Run a SavedModel in this process, which saves the time of another one; `test_export.py` takes it."""

    def run_here(saved_model, feeds):
        loaded = tf.saved_model.load(str(saved_model))
        return {
            f"{key}:{name}": output.numpy()
            for key, value in feeds.items()
            for name, output in loaded.signatures[key.split(":")[0]](tf.constant(value)).items()
        }

    monkeypatch.setattr(export_check, "_run_alone", run_here)


@pytest.fixture(scope="session")
def exported_run(tmp_path_factory):
    """Return a run and its SavedModel, made once for all workers."""
    from exported_run import exported_in  # it imports this module

    own = tmp_path_factory.getbasetemp()
    return exported_in(own.parent if "PYTEST_XDIST_WORKER" in os.environ else own)


@pytest.fixture
def tiny_config() -> Callable[..., Config]:
    """Return a function from `key=value` overrides to the tiny configuration."""
    return lambda *overrides: override(TINY, overrides, "tiny")


class Models:
    """Tiny detectors of seed 0, lent to one test at a time, as good as new: to build one takes a second."""

    def __init__(self) -> None:
        self._idle: list[FasterRCNN] = []
        self._lent: list[FasterRCNN] = []
        self._new: dict[str, np.ndarray] = {}

    def lend(self) -> FasterRCNN:
        """Return a detector that no other part of the running test has."""
        if self._idle:
            model = self._idle.pop()
            tf_keras.utils.set_random_seed(0)  # as building one does
        else:
            model = build_model(override(TINY, (), "tiny").model, CLASS_NAMES, seed=0)
            self._new = self._new or values_of(model.variables_by_path)
        self._lent.append(model)
        return model

    def take_back(self) -> None:
        """Make what was lent as good as new; what a test built on to is dropped."""
        for model in self._lent:
            variables = model.variables_by_path
            if variables.keys() != self._new.keys():
                continue
            for path, variable in variables.items():
                if variable.numpy().tobytes() != self._new[path].tobytes():  # to assign takes longer
                    variable.assign(self._new[path])
            for component in model.components.values():
                component.trainable = True
                for _, layer in walk_layers(component):
                    if isinstance(layer, BatchNorm):
                        layer.fixed_statistics = False
            recompute(model.components, rows_of(model.components, restored=()), [])
            self._idle.append(model)
        self._lent.clear()


@pytest.fixture(scope="session")
def models() -> Models:
    return Models()


@pytest.fixture
def tiny_model(models, tiny_config) -> Iterator[Callable[..., FasterRCNN]]:
    """Return a function that gives a tiny detector; one seed always gives the same weights."""

    def make(seed: int = 0, class_names: Sequence[str] = CLASS_NAMES) -> FasterRCNN:
        if seed == 0 and class_names == CLASS_NAMES:
            return models.lend()
        return build_model(tiny_config().model, class_names, seed=seed)

    yield make
    models.take_back()


def tiny_batch(step: int, batch_size: int = 2, side: int = 64) -> dict[str, tf.Tensor]:
    """Return batch `step` of an endless set: bright rectangles, classed by colour, and a row of padding."""
    rng = np.random.default_rng([7, step])
    image = rng.integers(0, 60, [batch_size, side, side, 3], np.uint8)
    boxes = np.zeros([batch_size, 4, 4], np.float32)
    classes = np.full([batch_size, 4], -1, np.int32)
    for row in range(batch_size):
        for slot, (top, left) in enumerate([(4, 4), (4, 36), (36, 4)]):
            height, width = rng.integers(16, 26, 2)
            boxes[row, slot] = top, left, top + height, left + width
            classes[row, slot] = rng.integers(0, 3)
            image[row, top : top + height, left : left + width, classes[row, slot]] += 180
    return {
        "image": tf.constant(image),
        "image_size_hw": tf.constant([[side, side]] * batch_size, tf.int32),
        "boxes_yxyx": tf.constant(boxes),
        "classes": tf.constant(classes),
        "is_crowd": tf.zeros([batch_size, 4], tf.bool),
        "image_id": tf.range(batch_size, dtype=tf.int64) + step * batch_size,
        "original_size_hw": tf.constant([[side, side]] * batch_size, tf.int32),
    }


@pytest.fixture
def make_batch() -> Callable[..., dict[str, tf.Tensor]]:
    """Return `tiny_batch`."""
    return tiny_batch


@pytest.fixture
def five(tmp_path, tiny_config) -> Any:
    """Return five examples whose features are kept in `tmp_path`; see `five_examples.py`."""
    from five_examples import FiveExamples

    return FiveExamples(tmp_path / "features", tiny_config().model.model_dump(mode="json"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of real data and reference values beside the checkout; skip the test without it."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the reference data in {folder.name}/ beside the checkout")
    return folder


def values_of(variables: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return a copy of every variable's value."""
    return {path: variable.numpy().copy() for path, variable in variables.items()}

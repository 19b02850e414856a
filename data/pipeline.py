"""The input pipeline: examples in a reproducible order, decoded, augmented, resized, batched.

Shape letters: B batch, H W canvas pixels, N ground-truth slots.  A batch is a dict:

    image             uint8 [B, H, W, 3]     RGB on the canvas, padded at bottom and right
    image_size_hw     int32 [B, 2]           the part of the canvas that is image
    boxes_yxyx        float32 [B, N, 4]      canvas pixels; padding rows are 0
    classes           int32 [B, N]           0 … C-1; -1 marks padding
    is_crowd          bool [B, N]
    image_id          int64 [B]              the COCO image id; -1 marks a copy that fills up a batch
    original_size_hw  int32 [B, 2]           size of the file's image
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from data.augment import AugmentationError
from data.dataset import DetectionDataset, LabelError

Resize = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
"""uint8 [h, w, 3] -> (canvas uint8 [H, W, 3], int32 [2] height and width of the part that is image)

Of TensorFlow's operations: AutoGraph, which takes a fifth of a second to find nothing here, does not see it.
"""

Augment = Callable[
    [np.ndarray, np.ndarray, np.ndarray, np.ndarray, int],
    tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
]
"""(image, boxes_yxyx, classes, is_crowd, seed) -> the first four; see `data.augment.Augmentation`"""


@dataclass(frozen=True)
class View:
    """Which example, and how it is augmented."""

    index: int
    augmentation_seed: int | None
    """None leaves it as it is."""


class LoadedExample(NamedTuple):
    """One decoded, augmented example with n boxes."""

    image: np.ndarray
    """uint8 [h, w, 3], RGB"""
    boxes_yxyx: np.ndarray
    """float32 [n, 4], pixels of `image`"""
    classes: np.ndarray
    """int32 [n]"""
    is_crowd: np.ndarray
    """bool [n]"""


def training_batches(
    dataset: DetectionDataset,
    *,
    batch_size: int,
    resize: Resize,
    augment: Augment | None = None,
    seed: int,
    start_step: int = 0,
    views: int | None = None,
    max_boxes: int | None = None,
) -> tf.data.Dataset:
    """Return endless batches: every epoch all images in a new order; a batch may reach over its end.

    Batch k is a pure function of (seed, k), so that starting at `start_step` gives the batches that an
    uninterrupted run would have seen from there on.

    Args:
        dataset: the examples.
        batch_size: B.
        resize: puts an image on its canvas.  Canvases of different sizes are padded to the batch's largest.
        augment: changes image and boxes by chance, or None.
        seed: from 0.
        start_step: batches already seen.
        views: augmentations of an image, shown in turn from epoch to epoch; None makes a new one each time.
        max_boxes: N; None takes the data set's own.

    Raises:
        ValueError: an argument out of range, or an image has more than `max_boxes` boxes.
    """
    if seed < 0 or start_step < 0:
        raise ValueError(f"expected seed and start_step from 0, got {seed} and {start_step}")
    if views is not None and views < 1:
        raise ValueError(f"expected at least 1 of the views of an image, got {views}")

    def view(position: int) -> View:
        return training_view(position, len(dataset), seed, views)

    return example_batches(
        dataset,
        tf.data.Dataset.counter(start_step * batch_size),
        view,
        batch_size=batch_size,
        resize=resize,
        augment=augment,
        max_boxes=max_boxes,
    )


def evaluation_batches(
    dataset: DetectionDataset, *, batch_size: int, resize: Resize, max_boxes: int | None = None
) -> tf.data.Dataset:
    """Return every image once, in order; the last batch is filled up with copies, whose `image_id` is -1."""
    return _each_once(
        dataset,
        len(dataset),
        lambda entry: View(entry, None),
        batch_size=batch_size,
        resize=resize,
        max_boxes=max_boxes,
    )


def view_batches(
    dataset: DetectionDataset,
    *,
    views: int,
    batch_size: int,
    resize: Resize,
    augment: Augment | None = None,
    max_boxes: int | None = None,
) -> tf.data.Dataset:
    """Return each of the `views` of every image once, by `training_entry`; filled up as for evaluation."""
    return _each_once(
        dataset,
        len(dataset) * views,
        lambda entry: _view_of_entry(entry, views),
        batch_size=batch_size,
        resize=resize,
        augment=augment,
        max_boxes=max_boxes,
    )


def _each_once(
    dataset: DetectionDataset, entries: int, view: Callable[[int], View], *, batch_size: int, **how: Any
) -> tf.data.Dataset:
    batches = -(-entries // max(batch_size, 1))

    @tf.autograph.experimental.do_not_convert
    def mark_copies(number: tf.Tensor, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        positions = number * batch_size + tf.range(batch_size, dtype=tf.int64)
        return {**batch, "image_id": tf.where(positions < entries, batch["image_id"], -1)}

    return (
        example_batches(
            dataset,
            tf.data.Dataset.range(batches * batch_size),
            lambda position: view(min(position, entries - 1)),
            batch_size=batch_size,
            **how,
        )
        .enumerate()
        .map(mark_copies)
    )


def training_view(position: int, images: int, seed: int, views: int | None = None) -> View:
    """Return what training looks at as its `position`-th example: a pure function of its arguments."""
    if views is not None:
        return _view_of_entry(training_entry(position, images, seed, views), views)
    epoch, place = divmod(position, images)
    index = _epoch_order(seed, epoch, images)[place]
    augmentation_seed = np.random.SeedSequence([seed, 1, position]).generate_state(1)[0]
    return View(int(index), int(augmentation_seed))


def training_entry(position: int, images: int, seed: int, views: int) -> int:
    """Return the number, below images * `views`, of the view that is training's `position`-th example.

    The views are the same whatever the seed, which says in which order they are shown.
    """
    epoch, place = divmod(position, images)
    return int(_epoch_order(seed, epoch, images)[place]) * views + epoch % views


def _view_of_entry(entry: int, views: int) -> View:
    index, number = divmod(entry, views)
    return View(index, int(np.random.SeedSequence([2, index, number]).generate_state(1)[0]))


@lru_cache(maxsize=4)  # the threads that load are in one epoch, or in two at its end
def _epoch_order(seed: int, epoch: int, images: int) -> np.ndarray:
    return np.random.default_rng([seed, 0, epoch]).permutation(images)


def load_example(dataset: DetectionDataset, view: View, augment: Augment | None = None) -> LoadedExample:
    """Read, decode and augment one example: a pure function of its arguments.

    Raises:
        LabelError: the image cannot be read or decoded; the message names the file.
        AugmentationError: `augment` cannot be applied to it; the message names the file.
    """
    example = dataset.examples[view.index]
    try:
        # The exported model decodes by this operation too, so that both see the same pixels.
        image = tf.io.decode_image(
            dataset.encoded_image(view.index), channels=3, expand_animations=False
        ).numpy()
    except (OSError, tf.errors.OpError) as error:
        reason = error.message if isinstance(error, tf.errors.OpError) else str(error)
        # Without what TensorFlow says of its own insides.
        reason = re.sub(r"\{\{.*?\}\}|\[Op:.*?\]", "", reason.splitlines()[0]).strip()
        raise LabelError(f"{example.source}: the image cannot be decoded: {reason}") from error
    if image.shape != (example.height, example.width, 3):
        raise LabelError(
            f"{example.source}: the image is {image.shape[1]}x{image.shape[0]} but was "
            f"{example.width}x{example.height} when its labels were read"
        )
    loaded = LoadedExample(image, example.boxes_yxyx, example.classes, example.is_crowd)
    if augment is None or view.augmentation_seed is None:
        return loaded
    try:
        return LoadedExample(*augment(*loaded, view.augmentation_seed))
    except AugmentationError as error:
        raise AugmentationError(f"{example.source}: {error}") from error


def example_batches(
    dataset: DetectionDataset,
    positions: tf.data.Dataset,
    view: Callable[[int], View],
    *,
    batch_size: int,
    resize: Resize,
    augment: Augment | None = None,
    max_boxes: int | None = None,
) -> tf.data.Dataset:
    """Return batches of the examples `view(position)` for the `positions` (int64 scalars), in their order.

    `view` and `augment` are called from several threads.  Positions too few for a last batch are left out.
    """
    slots = _slots(dataset, max_boxes)
    if batch_size < 1:
        raise ValueError(f"expected a batch_size of at least 1, got {batch_size}")

    def load(position: np.ndarray) -> tuple[np.ndarray, ...]:
        at = view(int(position))
        example = dataset.examples[at.index]
        image, boxes_yxyx, classes, is_crowd = load_example(dataset, at, augment)
        padding = slots - len(classes)
        return (
            image,
            np.pad(boxes_yxyx, ((0, padding), (0, 0))),
            np.pad(classes, (0, padding), constant_values=-1),
            np.pad(is_crowd, (0, padding)),
            np.int64(example.image_id),
            np.array([example.height, example.width], np.int32),
        )

    @tf.autograph.experimental.do_not_convert
    def to_canvas(position: tf.Tensor) -> dict[str, tf.Tensor]:
        # Declared stateless, which it is: with deterministic operations on, tf.data would call it in turn.
        image, boxes_yxyx, classes, is_crowd, image_id, original_size_hw = tf.numpy_function(
            load, [position], [tf.uint8, tf.float32, tf.int32, tf.bool, tf.int64, tf.int32], stateful=False
        )
        image.set_shape([None, None, 3])
        canvas, size_hw = resize(image)
        scale_hw = tf.cast(size_hw, tf.float32) / tf.cast(tf.shape(image)[:2], tf.float32)
        return {
            "image": canvas,
            "image_size_hw": tf.ensure_shape(size_hw, [2]),
            "boxes_yxyx": tf.ensure_shape(boxes_yxyx, [slots, 4]) * tf.tile(scale_hw, [2]),
            "classes": tf.ensure_shape(classes, [slots]),
            "is_crowd": tf.ensure_shape(is_crowd, [slots]),
            "image_id": tf.ensure_shape(image_id, []),
            "original_size_hw": tf.ensure_shape(original_size_hw, [2]),
        }

    return (
        positions.map(to_canvas, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .padded_batch(batch_size, drop_remainder=True)
        .prefetch(tf.data.AUTOTUNE)
    )


def _slots(dataset: DetectionDataset, max_boxes: int | None) -> int:
    if max_boxes is None:
        return max(dataset.max_boxes, 1)
    if max_boxes < max(dataset.max_boxes, 1):
        fullest = max(dataset.examples, key=lambda example: len(example.boxes_yxyx))
        raise ValueError(
            f"max_boxes is {max_boxes}, but {fullest.source} has {dataset.max_boxes} boxes, of which "
            f"none may be left out: set it to {max(dataset.max_boxes, 1)} or more"
        )
    return max_boxes


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Turn what iterating over batches raises back into the error that `load_example` raised.

    TensorFlow wraps an error of a Python function, traceback and all, into the text of its own.
    """
    try:
        yield
    except tf.errors.OpError as error:
        found = re.search(r"\b(LabelError|AugmentationError): (.*)", error.message)
        if not found:
            raise
        kind = LabelError if found[1] == "LabelError" else AugmentationError
        raise kind(found[2]) from None

"""Frozen features, computed once per example and kept on disk, and batches of them to train or detect from.

A cache is named after the digest of all that its contents depend on: the frozen variables' values, the
model's configuration, where the prefix is cut, the examples and their augmentation, and the storage.  So a
stale one cannot be used: it has another name.  Beside others in their folder (`detector/cache_folder.py`) it
is a folder with

    cache.json   the fields with their dtypes, and what the cache was made of
    NAME.bin     one field's values, example after example, and
    NAME.npy     where each begins; see `detector/array_file.py`
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import tensorflow as tf

from detector.array_file import ArrayFile, ArrayWriter
from detector.cache_folder import PAGE, CacheFolder, CacheTooLargeError, MakeRoom, gigabytes
from detector.digest import digests
from detector.faster_rcnn import FasterRCNN
from detector.freeze import FreezePlan
from detector.frozen_prefix import FrozenPrefix, Sizes, find_cut
from detector.owned_folder import bytes_in
from detector.suppression import Suppressed

_FORMAT = 1
# Kept at the precision asked for; all else (boxes, logits, labels) as it is.
_FEATURES = ("features", "crop_features")
# A batch's entries that are kept beside the outputs.  Not the image: it is what the outputs stand for.
_LABELS = ("image_size_hw", "boxes_yxyx", "classes", "is_crowd", "image_id", "original_size_hw")

Batch = Mapping[str, tf.Tensor]


class CacheStopped(RuntimeError):  # noqa: N818 - it is no error: it was asked for
    """Computing features was stopped; nothing is kept of what was half done."""


@dataclass(frozen=True)
class ExampleViews:
    """The fixed set of examples that a cache is made of: every image in each of its augmentations.

    `batches()` yields every entry once, in order, in batches of the design's section 4, of which rows with a
    negative `image_id` fill up the last; `entries` is their number; `key` is a digest of images, labels,
    augmentation and canvas; `entry_at(position)` says which is training's `position`-th, and is None for
    examples that are not for training but for detection.
    """

    batches: Callable[[], Iterable[Batch]]
    entries: int
    key: str
    entry_at: Callable[[int], int] | None = None


class FeatureCache:
    """Keeps outputs of frozen prefixes in a folder, within a budget."""

    def __init__(
        self,
        folder: str | Path,
        views: ExampleViews,
        *,
        limit_bytes: int,
        storage: Literal["float32", "float16"] = "float32",
        model_config: Mapping[str, Any],
    ):
        """Keep features of `views` under `folder`.

        Args:
            folder: of all caches; those longest unused are deleted where the budget asks for it, unless they
                are in use.
            views: the examples.
            limit_bytes: the budget of `folder`.
            storage: the dtype of the features on disk; float16 takes half the room, at a relative error of
                up to 5e-4.  Features computed in bfloat16 are kept as they are.
            model_config: the model's configuration, part of the key: what it says besides the variables'
                values (precision, anchors, numbers of proposals) changes what is computed.
        """
        self._caches = CacheFolder(Path(folder), limit_bytes)
        self._views = views
        self._storage = storage
        self._model_config = dict(model_config)

    def open(
        self,
        model: FasterRCNN,
        plan: FreezePlan,
        note: Callable[[str], None],
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> "CachedFeatures | None":
        """Return the outputs of the plan's frozen prefix on every entry, computing what is not there yet.

        Args:
            model: with its present values.
            plan: of this model, applied.
            note: is told what is computed, or why nothing is.
            is_stopped: asked between batches; once it is true, what is half done is thrown away.

        Returns:
            None if the plan freezes no prefix, or if the features do not fit into the budget.

        Raises:
            CacheStopped: it was stopped.
        """
        cut = find_cut(model, plan)
        if cut is None:
            note("no features to cache: what comes first in the model trains")
            return None
        if freed := self._caches.delete_half_made():
            note(f"deleted {gigabytes(freed)} in {self._caches.path}, which killed runs left half made")
        prefix = FrozenPrefix(model, cut)
        parts = {
            "format": _FORMAT,
            "tensorflow": tf.__version__,
            "examples": self._views.key,
            "entries": self._views.entries,
            "training": self._is_for_training,
            "model": self._model_config,
            "cut": list(cut.paths),
            "storage": self._storage,
            "variables": digests(prefix.variables),
        }
        name = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
        page, came = self._caches.find(name), "made before"
        if page is None:
            try:
                page = self._caches.make(name, partial(self._compute, prefix, parts, is_stopped))
            except CacheTooLargeError as error:
                note(f"features {cut} are computed at every step: {error}")
                return None
            came = f"computed once for {self._views.entries} examples"
        place = self._caches.path / name
        note(f"features {cut}: {gigabytes(bytes_in(place))} in {place}, {came}")
        return CachedFeatures(place, page, prefix, self._views.entry_at)

    @property
    def _is_for_training(self) -> bool:
        return self._views.entry_at is not None

    def _compute(
        self,
        prefix: FrozenPrefix,
        parts: Mapping[str, Any],
        is_stopped: Callable[[], bool],
        folder: Path,
        make_room: MakeRoom,
    ) -> None:
        outputs = tf.function(
            partial(prefix.outputs, training=self._is_for_training), reduce_retracing=True, autograph=False
        )
        dtypes: dict[str, str] = {}
        seen = needed = 0
        with ExitStack() as files:
            writers: dict[str, ArrayWriter] = {}
            for batch in self._views.batches():
                if is_stopped():
                    raise CacheStopped
                values = outputs(batch["image"], batch["image_size_hw"])
                values = {**values, **{label: batch[label] for label in _LABELS}}
                is_entry = batch["image_id"].numpy() >= 0
                for field, value in values.items():
                    stored = self._stored(field, value)
                    if field not in writers:
                        dtypes[field] = value.dtype.name
                        writers[field] = files.enter_context(ArrayWriter(folder, field, stored.dtype.name))
                    for row in stored[is_entry]:
                        writers[field].append(row)
                seen += int(is_entry.sum())
                written = sum(writer.bytes for writer in writers.values())
                # Judged by the first batch, and anew once that proves too little: canvases may differ.
                if written > needed:
                    needed = -(-written * self._views.entries // seen)
                make_room(needed, written)
        fields = {name: {"dtype": dtypes[name], "stored": w.dtype} for name, w in writers.items()}
        (folder / PAGE).write_text(json.dumps({"fields": fields, **parts}, indent=1), encoding="utf-8")

    def _stored(self, field: str, value: tf.Tensor) -> np.ndarray:
        if field in _FEATURES and self._storage == "float16" and value.dtype == tf.float32:
            largest = float(np.finfo(np.float16).max)
            value = tf.cast(tf.clip_by_value(value, -largest, largest), tf.float16)
        return value.numpy()


class CachedFeatures:
    """What was kept, memory-mapped: batches to train from and their losses, or to detect on.

    The cache stays on the disk until this is closed or forgotten.
    """

    def __init__(
        self, folder: Path, page: IO[bytes], prefix: FrozenPrefix, entry_at: Callable[[int], int] | None
    ):
        """Map the files of a cache, given its page, held."""
        self.folder = folder
        self._page = page
        fields = json.load(page)["fields"]
        self._dtypes = {name: tf.as_dtype(field["dtype"]) for name, field in fields.items()}
        self._fields = {n: ArrayFile(folder, n, tf.as_dtype(field["stored"])) for n, field in fields.items()}
        self._prefix = prefix
        self._entry_at = entry_at

    def close(self) -> None:
        """Let others delete the cache; no batch can be read after that."""
        self._fields = {}
        self._page.close()

    def named_losses(self, batch: Batch, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        """Return what `FasterRCNN.named_losses` does, for one of the `batches`."""
        return self._prefix.named_losses(batch, seed, self.sizes)

    @cached_property
    def sizes(self) -> Sizes | None:
        """The canvas's and the features' size where all examples have the same."""
        canvas_hw, grid_hw = (self._fields[field].constant() for field in ("canvas_hw", "grid_hw"))
        if canvas_hw is None or grid_hw is None:
            return None
        return Sizes(canvas_hw.tolist(), grid_hw.tolist())

    def detector(self) -> Callable[[Batch], Suppressed]:
        """Return `FasterRCNN.detect` for batches `each_once`; it can be used after this is closed, too."""
        return partial(self._prefix.detect, sizes=self.sizes)

    def batches(self, batch_size: int, start_step: int = 0) -> tf.data.Dataset:
        """Return endless batches, of the entries that training sees from `start_step` on."""
        assert self._entry_at is not None, "these features are for detection"
        return self._batches(tf.data.Dataset.counter(start_step * batch_size), self._entry_at, batch_size)

    def each_once(self, batch_size: int) -> tf.data.Dataset:
        """Return every entry once, in order; copies fill up the last batch, whose `image_id` is -1."""
        entries = len(self._fields["image_id"])

        @tf.autograph.experimental.do_not_convert
        def mark_copies(number: tf.Tensor, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            positions = number * batch_size + tf.range(batch_size, dtype=tf.int64)
            return {**batch, "image_id": tf.where(positions < entries, batch["image_id"], -1)}

        positions = tf.data.Dataset.range(-(-entries // batch_size) * batch_size)
        rows = self._batches(positions, lambda position: min(position, entries - 1), batch_size)
        return rows.enumerate().map(mark_copies)

    def _batches(
        self, positions: tf.data.Dataset, entry_at: Callable[[int], int], batch_size: int
    ) -> tf.data.Dataset:
        names = list(self._fields)

        def read(positions: np.ndarray) -> list[np.ndarray]:
            entries = [entry_at(int(position)) for position in positions]
            return [np.stack([self._fields[name][entry] for entry in entries]) for name in names]

        @tf.autograph.experimental.do_not_convert
        def load(positions: tf.Tensor) -> dict[str, tf.Tensor]:
            # Stateless, as in the input pipeline: so that deterministic operations leave it parallel.
            stored = [self._fields[name].dtype for name in names]
            values = tf.numpy_function(read, [positions], stored, stateful=False)
            return {
                name: tf.cast(
                    tf.ensure_shape(value, [batch_size, *self._fields[name].static_shape]), self._dtypes[name]
                )
                for name, value in zip(names, values, strict=True)
            }

        return (
            positions.batch(batch_size, drop_remainder=True)
            .map(load, num_parallel_calls=2, deterministic=True)
            .prefetch(4)
        )

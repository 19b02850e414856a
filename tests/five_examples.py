"""Five small examples and caches of their features, for tests of the cache and of what takes from it."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
from conftest import tiny_batch

from detector.faster_rcnn import FasterRCNN
from detector.feature_cache import ExampleViews, FeatureCache
from detector.freeze import FreezePlan, resolve, rows_of

ENTRIES = 5
# What is frozen, by where the cut is then: inside the feature extractor, at its end, and behind the tower.
STAGES = ["feature_extractor[:Mixed_3b]"]
HEADS = ["feature_extractor"]
PREDICTOR_ONLY = ["feature_extractor", "rpn", "box_classifier/tower"]

Batch = dict[str, tf.Tensor]


def plan_of(model: FasterRCNN, freeze: Sequence[str]) -> FreezePlan:
    """Return the plan that freezes `freeze` of a model whose statistics are updated elsewhere."""
    return resolve(rows_of(model.components, restored=model.variables_by_path), freeze, batch_norm="update")


def entry_at(position: int) -> int:
    """Return which example training sees as its `position`-th."""
    return (3 * position + position // ENTRIES) % ENTRIES


def joined(rows: Sequence[Batch]) -> Batch:
    """Return one batch of several."""
    return {key: tf.concat([row[key] for row in rows], axis=0) for key in rows[0]}


class FiveExamples:
    """Five examples, `rows` of one each, and caches in `folder`; `passes` counts how often all were read."""

    def __init__(self, folder: Path, model_config: dict[str, Any]):
        self.folder = folder
        self.rows = [tiny_batch(100 + entry, batch_size=1) for entry in range(ENTRIES)]
        self.passes = 0
        self._model_config = model_config

    def views(
        self,
        key: str = "five",
        batch_size: int = 2,
        rows: Sequence[Batch] | None = None,
        entry_at: Callable[[int], int] | None = entry_at,
    ) -> ExampleViews:
        """Return the examples, or `rows`, as what a cache is made of."""
        rows = rows or self.rows

        def batches() -> Iterator[Batch]:
            self.passes += 1
            for start in range(0, len(rows), batch_size):
                chunk = list(rows[start : start + batch_size])
                copies = [{**rows[-1], "image_id": tf.constant([-1], tf.int64)}] * (batch_size - len(chunk))
                yield joined(chunk + copies)

        return ExampleViews(batches, len(rows), key, entry_at)

    def cache(
        self,
        views: ExampleViews | None = None,
        *,
        limit_bytes: int = 10**9,
        model_config: dict[str, Any] | None = None,
        **how: Any,
    ) -> FeatureCache:
        """Return a cache of the examples, or of other `views`."""
        return FeatureCache(
            self.folder,
            views or self.views(),
            limit_bytes=limit_bytes,
            model_config=model_config or self._model_config,
            **how,
        )

    def caches(self) -> list[Path]:
        """Return what there is in the folder."""
        return sorted(self.folder.iterdir()) if self.folder.exists() else []

    def uncached(self, step: int, batch_size: int = 2) -> Iterator[Batch]:
        """Yield the batches of training from `step` on, without a cache."""
        while True:
            positions = range(step * batch_size, (step + 1) * batch_size)
            yield joined([self.rows[entry_at(position)] for position in positions])
            step += 1

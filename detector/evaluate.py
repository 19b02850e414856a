"""Evaluation: run the model over a data set, map its boxes back to the files' images, and score them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from detector.coco_metrics import CocoScores, map_to_original, score, to_coco_results
from detector.faster_rcnn import FasterRCNN
from detector.feature_cache import CachedFeatures, FeatureCache
from detector.freeze import FreezePlan
from detector.suppression import Suppressed

Batch = Mapping[str, tf.Tensor]
Detect = Callable[[Batch], Suppressed]


class Evaluator:
    """Scores one model on one data set, as often as asked; the detection graph is traced once."""

    def __init__(
        self,
        model: FasterRCNN,
        batches: Iterable[Batch],
        ground_truth: dict[str, Any],
        *,
        cache: FeatureCache | None = None,
        cache_batch_size: int = 1,
        note: Callable[[str], None] = lambda text: None,
    ):
        """Prepare to score `model`.

        Args:
            model: scored with the weights it has when `__call__` runs.
            batches: every image once, of the design's section 4; rows with a negative `image_id` are left
                out.
            ground_truth: the data set in COCO format, whose category ids the detections get, by class name.
            cache: of the same examples, for detection; what a plan freezes from the image on is computed in
                the first of its evaluations alone.
            cache_batch_size: of what is read from the cache.
            note: is told what the cache has to say.

        Raises:
            ValueError: the data set has a class that the model does not know.
        """
        self._batches = batches
        self._ground_truth = ground_truth
        self._category_ids = category_ids(model.class_names, ground_truth["categories"])
        self._model = model
        self._cache = cache
        self._cache_batch_size = cache_batch_size
        self._note = note
        self._graph = tf.function(model.detect, reduce_retracing=True, autograph=False)
        self._folder: Path | None = None
        self._detect_on_kept: Detect = self._detect
        self._uncached_plan: FreezePlan | None = None
        self.detections: list[dict[str, Any]] = []

    def __call__(self, plan: FreezePlan | None = None) -> CocoScores:
        """Detect and score; the detections, as COCO results, are in `detections` afterwards.

        `plan` says what of the model stands still from one call to the next; without it nothing is taken
        from the cache.
        """
        features = self._open(plan) if plan is not None else None
        if features is None:
            self.detections = detect_all(self._detect, self._batches, self._category_ids)
        else:
            # Not in use between evaluations: training, which looks at its features at every step, may need
            # the room.
            with closing(features):
                batches = features.each_once(self._cache_batch_size)
                self.detections = detect_all(self._detect_on_kept, batches, self._category_ids)
        return score(self._ground_truth, self.detections)

    def _detect(self, batch: Batch) -> Suppressed:
        return self._graph(batch["image"], batch["image_size_hw"])

    def _open(self, plan: FreezePlan) -> CachedFeatures | None:
        """Return the features of what `plan` freezes; asked anew in every call.

        So that what moved against the plan is noticed: its features have another name.
        """
        if self._cache is None or plan is self._uncached_plan:
            return None
        told: list[str] = []
        features = self._cache.open(self._model, plan, told.append)
        if features is None:
            self._uncached_plan = plan
        elif features.folder == self._folder:
            return features
        else:
            self._folder = features.folder
            self._detect_on_kept = tf.function(features.detector(), reduce_retracing=True, autograph=False)
        self._note("evaluation: " + told[-1])
        return features


def evaluate(model: FasterRCNN, batches: Iterable[Batch], ground_truth: dict[str, Any]) -> CocoScores:
    """Score `model` once; see `Evaluator`."""
    return Evaluator(model, batches, ground_truth)()


def category_ids(class_names: Sequence[str], categories: Sequence[Mapping[str, Any]]) -> list[int | None]:
    """Return the data set's category id of every class of the model, by name; None where it has none.

    Raises:
        ValueError: the data set has a class that the model does not know.
    """
    ids = {category["name"]: category["id"] for category in categories}
    unknown = [name for name in ids if name not in class_names]
    if unknown:
        raise ValueError(
            f"the model does not know the data set's classes {', '.join(map(repr, unknown))}; "
            f"it knows {', '.join(map(repr, class_names))}"
        )
    return [ids.get(name) for name in class_names]


def detect_all(detect: Detect, batches: Iterable[Batch], ids: Sequence[int | None]) -> list[dict[str, Any]]:
    """Return the detections on every image, as COCO results in pixels of the files' images.

    Args:
        detect: from a batch to what `FasterRCNN.detect` finds.
        batches: of the design's section 4; rows with a negative `image_id` are left out.
        ids: category id of each class, or None for classes to leave out.
    """
    results: list[dict[str, Any]] = []
    wanted = [class_id for class_id, category in enumerate(ids) if category is not None]
    known_ids = [-1 if category is None else category for category in ids]
    for batch in batches:
        found = detect(batch)
        rows = zip(
            batch["image_id"].numpy(),
            batch["image_size_hw"].numpy(),
            batch["original_size_hw"].numpy(),
            found.boxes_yxyx.numpy(),
            found.scores.numpy(),
            found.classes.numpy(),
            found.count.numpy(),
            strict=True,
        )
        for image_id, size_hw, original_hw, boxes, scores, classes, count in rows:
            kept = np.flatnonzero(np.isin(classes[:count], wanted))
            if image_id >= 0:
                results += to_coco_results(
                    int(image_id),
                    map_to_original(boxes[kept], size_hw, original_hw),
                    classes[kept],
                    scores[kept],
                    known_ids,
                )
    return results

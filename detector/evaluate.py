"""Evaluation: run the model over a data set, map its boxes back to the files' images, and score them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from detector.coco_metrics import CocoScores, map_to_original, score, to_coco_results
from detector.faster_rcnn import FasterRCNN
from detector.suppression import Suppressed

Detect = Callable[[tf.Tensor, tf.Tensor], Suppressed]


class Evaluator:
    """Scores one model on one data set, as often as asked; the detection graph is traced once."""

    def __init__(
        self, model: FasterRCNN, batches: Iterable[Mapping[str, tf.Tensor]], ground_truth: dict[str, Any]
    ):
        """Prepare to score `model`.

        Args:
            model: scored with the weights it has when `__call__` runs.
            batches: every image once, of the design's section 4; rows with a negative `image_id` are left
                out.
            ground_truth: the data set in COCO format, whose category ids the detections get, by class name.

        Raises:
            ValueError: the data set has a class that the model does not know.
        """
        self._batches = batches
        self._ground_truth = ground_truth
        self._category_ids = category_ids(model.class_names, ground_truth["categories"])
        self._detect = tf.function(model.detect, reduce_retracing=True, autograph=False)
        self.detections: list[dict[str, Any]] = []

    def __call__(self) -> CocoScores:
        """Detect and score; the detections, as COCO results, are in `detections` afterwards."""
        self.detections = detect_all(self._detect, self._batches, self._category_ids)
        return score(self._ground_truth, self.detections)


def evaluate(
    model: FasterRCNN, batches: Iterable[Mapping[str, tf.Tensor]], ground_truth: dict[str, Any]
) -> CocoScores:
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


def detect_all(
    detect: Detect, batches: Iterable[Mapping[str, tf.Tensor]], ids: Sequence[int | None]
) -> list[dict[str, Any]]:
    """Return the detections on every image, as COCO results in pixels of the files' images.

    Args:
        detect: `FasterRCNN.detect` or its like.
        batches: of the design's section 4; rows with a negative `image_id` are left out.
        ids: category id of each class, or None for classes to leave out.
    """
    results: list[dict[str, Any]] = []
    wanted = [class_id for class_id, category in enumerate(ids) if category is not None]
    known_ids = [-1 if category is None else category for category in ids]
    for batch in batches:
        found = detect(batch["image"], batch["image_size_hw"])
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

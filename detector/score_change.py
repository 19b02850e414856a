"""The price of an export that differs on purpose from what was trained, as in its precision.

It is told by the AP of both, and the interval of their difference.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detector.paired_interval import (
    CONFIDENCE,
    Interval,
    average_precision,
    draw_images,
    match_detections,
    mean_over_classes,
    paired_interval,
)


@dataclass(frozen=True)
class ScoreChange:
    """The AP of a checkpoint `as_trained` and `as_exported`, and the interval of the second less the first.

    All are None where the `images` have no labels.
    """

    images: int
    as_trained: float | None
    as_exported: float | None
    difference: Interval | None

    def line(self) -> str:
        """Return it in one line, for people."""
        if self.difference is None:
            return f"no AP: the {self.images} images have no labels"
        return (
            f"AP {self.as_trained:.3f} as trained, {self.as_exported:.3f} as exported: "
            f"{self.difference.difference:+.3f}, {CONFIDENCE:.0%} interval {self.difference.low:+.3f} to "
            f"{self.difference.high:+.3f} over {self.images} images"
        )


def score_change(
    ground_truth: Mapping[str, Any],
    as_trained: Sequence[Mapping[str, Any]],
    as_exported: Sequence[Mapping[str, Any]],
) -> ScoreChange:
    """Compare two sets of detections on the same images, COCO results, by AP.

    Raises ValueError for what `coco_metrics.score` refuses.
    """
    images = len(ground_truth["images"])
    draws = np.concatenate([np.ones([1, images], int), draw_images(images)])
    before, after = (
        mean_over_classes(average_precision(match_detections(ground_truth, detections), draws))
        for detections in (as_trained, as_exported)
    )
    if np.isnan(before[0]):
        return ScoreChange(images, None, None, None)
    return ScoreChange(images, float(before[0]), float(after[0]), paired_interval([after], [before]))

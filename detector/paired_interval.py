"""The difference of AP between two variants, with a paired bootstrap interval over the images.

AP is no mean over images, so images are drawn anew with replacement, the same draws for every variant, and AP
is computed again on each draw: what makes an image hard for all variants cancels out of their difference.
How boxes match does not depend on which other images were drawn, so pycocotools does it once; only the
accumulation is repeated, here.  The interval is the percentile interval of Efron and Tibshirani, "An
Introduction to the Bootstrap", 1993, chapter 13.
"""

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from detector.coco_metrics import class_names, coco_evaluation

CONFIDENCE = 0.95
RESAMPLES = 1000

_RECALLS = np.linspace(0.0, 1.0, 101)  # COCO's
_TINY = np.spacing(1)  # as in COCOeval.accumulate: 0 found among 0 is a precision of 0


@dataclass(frozen=True, eq=False)
class ClassMatches:
    """One class's D detections on all images, best first, and what they are worth.

    `image` int [D] is the image of each, as a position in `Matches.image_ids`; `score` float [D]; `true` and
    `false` bool [10, D] say whether it is a true or a false positive at IoU 0.50, 0.55, … 0.95 (neither, if
    it fell on a crowd).  `labels` int [I] counts the boxes to be found on each image.
    """

    name: str
    image: np.ndarray
    score: np.ndarray
    true: np.ndarray
    false: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, eq=False)
class Matches:
    """The matches of one set of detections with the labels of I images, for each of K classes."""

    image_ids: tuple[int, ...]
    classes: tuple[ClassMatches, ...]


@dataclass(frozen=True)
class Interval:
    """A difference of AP, and the bounds that hold it with 95 % confidence.

    The bounds say what other images would have shown of these very weights.  How much training anew moves
    the difference is another matter: `by_seed` has it for every seed, and `difference` is their mean.
    """

    difference: float
    low: float
    high: float
    by_seed: tuple[float, ...]

    @property
    def above_zero(self) -> bool:
        """Whether the interval shows the difference to be positive."""
        return self.low > 0

    @property
    def below_zero(self) -> bool:
        """Whether the interval shows the difference to be negative."""
        return self.high < 0

    @property
    def seeds_agree(self) -> bool:
        """Whether the difference has the same sign, or is zero, for every seed."""
        return min(self.by_seed) >= 0 or max(self.by_seed) <= 0

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        return {**asdict(self), "by_seed": list(self.by_seed)}


def match_detections(ground_truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]]) -> Matches:
    """Match COCO results with a COCO data set as pycocotools does, objects of all sizes, 100 per image.

    Raises ValueError for what `coco_metrics.score` refuses.
    """
    evaluation = coco_evaluation(ground_truth, detections)
    evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
    image_ids = tuple(int(image_id) for image_id in evaluation.params.imgIds)
    per_image = np.empty([len(evaluation.params.catIds), len(image_ids)], object)
    per_image.ravel()[:] = evaluation.evalImgs  # a class's images stand together, in the order of imgIds
    names = class_names(evaluation)
    return Matches(image_ids, tuple(_class_matches(*pair) for pair in zip(names, per_image, strict=True)))


def draw_images(num_images: int, count: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Return int [count, num_images]: how often each image was drawn, in draws of `num_images` each.

    A function of its arguments alone: variants that are to be compared get the same draws.
    """
    rng = np.random.default_rng(seed)
    return rng.multinomial(num_images, np.full(num_images, 1 / num_images), size=count)


def average_precision(matches: Matches, draws: np.ndarray) -> np.ndarray:
    """Return float [R, K]: the AP of each class on each of R draws, NaN where none of its boxes was drawn.

    `draws` int [R, I] says how often each image counts; all ones give the AP of the data set as it is.  The
    AP over all classes is `mean_over_classes` of it.

    An image that counts w times gives what pycocotools gives for a data set where it stands w times: between
    the copies of a true positive precision only rises, which AP's envelope fills in, and the copies of a
    false positive do not raise recall.
    """
    return np.stack([_class_precisions(found, draws) for found in matches.classes], axis=1)


def mean_over_classes(precisions: np.ndarray) -> np.ndarray:
    """Return the mean over the classes that a draw has, float [R] of [R, K]; NaN if it has none."""
    counted = ~np.isnan(precisions)
    total = np.where(counted, precisions, 0.0).sum(axis=1)
    return np.divide(total, counted.sum(axis=1), out=np.full(len(total), np.nan), where=counted.any(axis=1))


def paired_interval(variant: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> Interval:
    """Return the interval of the difference `variant` − `reference`.

    Args:
        variant: per seed float [1 + R], a number on the data set as it is and on R draws; NaN where a draw
            leaves it undefined.
        reference: the same of the variant to compare with, for the same seeds and draws.

    Raises:
        ValueError: they are not pairs.
    """
    if len(variant) != len(reference) or not len(variant):
        raise ValueError(
            f"a paired interval needs the same seeds on both sides, got {len(variant)} and {len(reference)}"
        )
    differences = np.stack(variant) - np.stack(reference)  # [seeds, 1 + R]
    by_seed = differences[:, 0]
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.nanpercentile(differences[:, 1:].mean(axis=0), [tail, 100 - tail])
    return Interval(float(by_seed.mean()), float(low), float(high), tuple(by_seed.tolist()))


def _class_matches(name: str, per_image: Sequence[Any]) -> ClassMatches:
    """Join one class's `evalImgs`; an image with neither labels nor detections of the class has None."""
    found = [(index, entry) for index, entry in enumerate(per_image) if entry is not None]
    labels = np.zeros(len(per_image), np.int64)
    for index, entry in found:
        labels[index] = np.count_nonzero(entry["gtIgnore"] == 0)
    image = np.concatenate([np.full(len(e["dtScores"]), i) for i, e in found] or [np.zeros(0)]).astype(int)
    score = np.concatenate([e["dtScores"] for _, e in found] or [np.zeros(0)])
    matched = np.concatenate([e["dtMatches"] for _, e in found] or [np.zeros([10, 0])], axis=1) > 0
    ignored = np.concatenate([e["dtIgnore"] for _, e in found] or [np.zeros([10, 0])], axis=1).astype(bool)
    order = np.argsort(-score, kind="mergesort")  # COCOeval's choice: ties keep the order of the images
    return ClassMatches(
        name,
        image[order],
        score[order],
        (matched & ~ignored)[:, order],
        ~matched[:, order],
        labels,
    )


def _class_precisions(found: ClassMatches, draws: np.ndarray) -> np.ndarray:
    """Return the class's AP on each draw, float [R]."""
    positives = draws @ found.labels
    # What comes after the last true positive raises neither recall nor the envelope of precision.
    hits = np.flatnonzero(found.true.any(axis=0))
    used = slice(0, hits[-1] + 1 if len(hits) else 0)
    image, true, false = found.image[used], found.true[:, used], found.false[:, used]
    result = np.full(len(draws), np.nan)
    for index in np.flatnonzero(positives):
        weight = draws[index, image]
        tp = np.cumsum(true * weight, axis=1, dtype=float)
        fp = np.cumsum(false * weight, axis=1, dtype=float)
        recall, precision = tp / positives[index], tp / (fp + tp + _TINY)
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        result[index] = np.mean([_at_recalls(*row) for row in zip(recall, envelope, strict=True)])
    return result


def _at_recalls(recall: np.ndarray, envelope: np.ndarray) -> np.ndarray:
    """Return the precision at COCO's 101 recalls; 0 at those that were not reached."""
    places = np.searchsorted(recall, _RECALLS, side="left")
    return np.append(envelope, 0.0)[places]

"""COCO scores of detections, computed by pycocotools without its printing.

Ground truth and detections are COCO's own formats, with the data set's own category ids, so that what is
scored here is exactly what `detections.json` stores.
"""

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


@dataclass(frozen=True)
class CocoScores:
    """The 12 COCO numbers, AP and AP50 per class by category name, and what they were computed from.

    All are between 0 and 1; None where the ground truth leaves a number undefined (no box of that size, or
    none of that class), which pycocotools writes as -1.  AP averages over IoU 0.50, 0.55, … 0.95 and over the
    classes that have ground truth; AR_k allows k detections per image and class; small is below 32² square
    pixels, large above 96².
    """

    AP: float | None
    AP50: float | None
    AP75: float | None
    AP_small: float | None
    AP_medium: float | None
    AP_large: float | None
    AR_1: float | None
    AR_10: float | None
    AR_100: float | None
    AR_small: float | None
    AR_medium: float | None
    AR_large: float | None
    AP_per_class: dict[str, float | None]
    AP50_per_class: dict[str, float | None]
    num_images: int
    num_detections: int

    def numbers(self) -> dict[str, float | None]:
        """Return the 12 numbers by name."""
        return {name: getattr(self, name) for name in SCORE_NAMES}

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as JSON takes them: the 12 numbers by name, `classes`, and the two counts."""
        return {
            **self.numbers(),
            "classes": {
                name: {"AP": self.AP_per_class[name], "AP50": self.AP50_per_class[name]}
                for name in self.AP_per_class
            },
            "num_images": self.num_images,
            "num_detections": self.num_detections,
        }


SCORE_NAMES = (  # in the order of COCOeval.stats
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large"),
)

RESULT_KEYS = ("image_id", "category_id", "bbox", "score")


def score(ground_truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]]) -> CocoScores:
    """Score `detections` on every image of `ground_truth`.

    `ground_truth` is a COCO data set (`images`, `annotations`, `categories`); an annotation without `area`
    has its box's, one without `iscrowd` is not a crowd.  `detections` are COCO results (`image_id`,
    `category_id`, `bbox` as x, y, width, height in pixels of the original image, `score`); there may be none.
    Neither is changed.  Raises ValueError for a detection of an image or a category that the ground truth
    does not have, or with a box or score that is not one.
    """
    evaluation = coco_evaluation(ground_truth, detections)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress and its table
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # [IoU threshold, recall, category, area range, detections per image]; area range 0 is all, the last
    # number of detections is 100.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    names = class_names(evaluation)
    return CocoScores(
        **{name: _defined(value) for name, value in zip(SCORE_NAMES, evaluation.stats, strict=True)},
        AP_per_class={name: _mean_precision(precision[:, :, k]) for k, name in enumerate(names)},
        AP50_per_class={name: _mean_precision(precision[:1, :, k]) for k, name in enumerate(names)},
        num_images=len(evaluation.params.imgIds),
        num_detections=len(detections),
    )


def coco_evaluation(ground_truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]]) -> COCOeval:
    """Return pycocotools' evaluation of `detections`, ready for `evaluate()`; takes and raises as `score`."""
    images, categories = _checked_ground_truth(ground_truth)
    _check_detections(detections, {image["id"] for image in images}, categories)
    found = [{key: detection[key] for key in RESULT_KEYS} for detection in detections]
    with contextlib.redirect_stdout(io.StringIO()):
        return COCOeval(
            _coco(images, ground_truth["categories"], _scored_annotations(ground_truth["annotations"])),
            # COCO.loadRes does the same, but fails on an empty list and writes into the caller's detections.
            _coco(images, ground_truth["categories"], _scored_annotations(found)),
            iouType="bbox",
        )


def class_names(evaluation: COCOeval) -> list[str]:
    """Return the category names in the order of the evaluation's classes."""
    return [evaluation.cocoGt.cats[category_id]["name"] for category_id in evaluation.params.catIds]


def to_coco_results(
    image_id: int,
    boxes_yxyx: np.ndarray,
    classes: np.ndarray,
    scores: np.ndarray,
    category_ids: Sequence[int],
) -> list[dict[str, Any]]:
    """Return the D detections of one image as COCO results.

    `boxes_yxyx` float [D, 4] are pixels of the original image, `classes` int [D] index into `category_ids`,
    `scores` float [D].  Boxes are rounded to a thousandth of a pixel, which keeps the file small and moves no
    IoU; scores are exact, since rounding makes ties, and ties change the order that AP depends on.
    Raises ValueError if the lengths differ or a class has no category.
    """
    if not len(boxes_yxyx) == len(classes) == len(scores):
        raise ValueError(
            f"image {image_id}: expected as many classes and scores as boxes, "
            f"got {len(boxes_yxyx)} boxes, {len(classes)} classes and {len(scores)} scores"
        )
    outside = sorted({int(c) for c in classes if not 0 <= c < len(category_ids)})
    if outside:
        raise ValueError(
            f"image {image_id}: expected classes 0 … {len(category_ids) - 1}, got {outside}; "
            "drop padding rows first"
        )
    y_min, x_min, y_max, x_max = np.asarray(boxes_yxyx, np.float64).reshape(-1, 4).T
    boxes_xywh = np.stack([x_min, y_min, x_max - x_min, y_max - y_min], axis=1).round(3).tolist()
    return [
        {
            "image_id": int(image_id),
            "category_id": int(category_ids[class_index]),
            "bbox": bbox,
            "score": float(box_score),
        }
        for bbox, class_index, box_score in zip(boxes_xywh, classes, scores, strict=True)
    ]


def map_to_original(
    boxes_yxyx: np.ndarray, image_size_hw: Sequence[int], original_size_hw: Sequence[int]
) -> np.ndarray:
    """Return boxes float [D, 4] of the canvas in pixels of the original image, clipped to it: float32 [D, 4].

    `image_size_hw` is the part of the canvas that is image, `original_size_hw` the size of the image file.
    """
    original_hwhw = np.tile(np.asarray(original_size_hw, np.float64), 2)
    scale = original_hwhw / np.tile(np.asarray(image_size_hw, np.float64), 2)
    return np.clip(np.asarray(boxes_yxyx) * scale, 0.0, original_hwhw).astype(np.float32)


def _checked_ground_truth(ground_truth: Mapping[str, Any]) -> tuple[list[Any], dict[int, str]]:
    """Return the images, and {category id: name}."""
    for key in ("images", "categories"):
        if not ground_truth.get(key):
            raise ValueError(f"COCO ground truth: expected a list of {key}, got none; check the label file")
    if "annotations" not in ground_truth:
        raise ValueError("COCO ground truth: expected the key 'annotations', got none; check the label file")
    categories = {category["id"]: category["name"] for category in ground_truth["categories"]}
    names = list(categories.values())
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or len(categories) < len(ground_truth["categories"]):
        raise ValueError(
            "COCO ground truth: expected category ids and names to differ from each other, got "
            f"{[(c['id'], c['name']) for c in ground_truth['categories']]}; merge or rename the equal ones"
        )
    return list(ground_truth["images"]), categories


def _check_detections(
    detections: Sequence[Mapping[str, Any]], image_ids: set[int], categories: Mapping[int, str]
) -> None:
    for index, detection in enumerate(detections):
        missing = [key for key in RESULT_KEYS if key not in detection]
        if missing:
            raise ValueError(
                f"detection {index}: expected {', '.join(RESULT_KEYS)}, got no {', '.join(missing)}"
            )
        if detection["image_id"] not in image_ids:
            raise ValueError(
                f"detection {index} is of image {detection['image_id']!r}, which is not among the "
                f"{len(image_ids)} images of the ground truth; score it with the label file it was made for"
            )
        if detection["category_id"] not in categories:
            raise ValueError(
                f"detection {index} has category {detection['category_id']!r}; the ground truth has "
                f"{categories}; use the data set's own category ids"
            )
        box = detection["bbox"]
        if len(box) != 4 or min(box[2:]) < 0 or not all(map(math.isfinite, (*box, detection["score"]))):
            raise ValueError(
                f"detection {index}: expected a bbox of finite x, y, width, height and a finite score, "
                f"got bbox {list(box)} and score {detection['score']}"
            )


def _scored_annotations(annotations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return copies with what COCOeval needs.

    Ids are given anew from 1: it takes the id of a match for its truth value, so a box with id 0 would never
    count as found.
    """
    return [
        {
            "area": annotation["bbox"][2] * annotation["bbox"][3],
            "iscrowd": 0,
            **annotation,
            "id": number,
        }
        for number, annotation in enumerate(annotations, start=1)
    ]


def _coco(images: list[Any], categories: list[Any], annotations: list[dict[str, Any]]) -> COCO:
    coco = COCO()
    coco.dataset = {"images": images, "categories": categories, "annotations": annotations}
    coco.createIndex()
    return coco


def _mean_precision(precision: np.ndarray) -> float | None:
    """Return the mean of one class's precisions, None if it has no ground truth."""
    return float(precision.mean()) if (precision > -1).all() else None


def _defined(value: float) -> float | None:
    return None if value == -1 else float(value)

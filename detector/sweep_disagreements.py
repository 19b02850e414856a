"""Where the variants of a sweep disagree: the images, and pictures of what each found on them."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detector.drawing import class_color, draw_detections
from detector.paired_interval import Matches
from detector.sweep import SweepResult

SMALLEST_SCORE = 0.5  # of the detections that count and are drawn


@dataclass(frozen=True)
class Picture:
    """One image several times: JPEG bytes by caption."""

    image_id: int
    panels: dict[str, bytes]


def disagreements(result: SweepResult, count: int) -> list[tuple[int, str, str]]:
    """Return the images on which the variants' first seeds differ most: (image id, best there, worst there).

    A variant's success on an image is F1 at IoU 0.5, of the detections with a score of at least 0.5.
    """
    if len(result.matches) < 2:
        return []
    names = list(result.matches)
    success = np.array([_f1(matches) for matches in result.matches.values()])  # [variants, I]
    spread = success.max(axis=0) - success.min(axis=0)
    image_ids = result.matches[names[0]].image_ids
    return [
        (image_ids[i], names[success[:, i].argmax()], names[success[:, i].argmin()])
        for i in np.argsort(-spread, kind="stable")[:count]
        if spread[i] > 0
    ]


def draw_picture(
    image: np.ndarray,
    image_id: int,
    ground_truth: Mapping[str, Any],
    detections: Mapping[str, Sequence[Mapping[str, Any]]],
) -> Picture:
    """Draw an image's labels, and what each variant found on it.

    Args:
        image: uint8 [h, w, 3], RGB.
        image_id: of the COCO data set `ground_truth`.
        ground_truth: gives the labels.
        detections: COCO results by variant; those with a score of at least 0.5 are drawn.
    """
    places = {c["id"]: (index, c["name"]) for index, c in enumerate(ground_truth["categories"])}
    shown = {"labels": ground_truth["annotations"]}
    for name, found in detections.items():
        sure = [entry for entry in found if entry["score"] >= SMALLEST_SCORE]
        shown[name] = sorted(sure, key=lambda entry: -entry["score"])
    panels = {}
    for caption, entries in shown.items():
        here = [entry for entry in entries if entry["image_id"] == image_id]
        boxes = np.array([entry["bbox"] for entry in here], float).reshape(-1, 4)
        drawn = draw_detections(
            image,
            np.stack(
                [boxes[:, 1], boxes[:, 0], boxes[:, 1] + boxes[:, 3], boxes[:, 0] + boxes[:, 2]], axis=1
            ),
            [places[e["category_id"]][1] + (f" {e['score']:.0%}" if "score" in e else "") for e in here],
            [class_color(places[entry["category_id"]][0]) for entry in here],
        )
        drawn.thumbnail((480, 480))
        file = io.BytesIO()
        drawn.save(file, "JPEG", quality=80)
        panels[caption] = file.getvalue()
    return Picture(image_id, panels)


def _f1(matches: Matches) -> np.ndarray:
    """Return F1 at IoU 0.5 of the detections with a score of at least 0.5 on every image, float [I]."""
    found, wrong, labels = (np.zeros(len(matches.image_ids)) for _ in range(3))
    for of_class in matches.classes:
        sure = of_class.score >= SMALLEST_SCORE
        np.add.at(found, of_class.image[sure & of_class.true[0]], 1)
        np.add.at(wrong, of_class.image[sure & of_class.false[0]], 1)
        labels += of_class.labels
    everything = labels + found + wrong
    return np.divide(2 * found, everything, out=np.ones(len(labels)), where=everything > 0)

import copy

import numpy as np
import pytest

from detector.coco_metrics import score
from detector.paired_interval import average_precision, draw_images, match_detections, paired_interval

NAMES = ("cat", "dog", "owl", "bat")


def labels(seed, images=20, classes=4, boxes_per_image=4, crowds=False):
    """A COCO data set with boxes on a grid of cells that do not overlap."""
    rng = np.random.default_rng([seed, 0])
    annotations = []
    for image_id in range(1, images + 1):
        for cell in rng.choice(16, rng.integers(0, 2 * boxes_per_image), replace=False):
            width, height = rng.uniform(20, 45, 2)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(rng.integers(1, classes + 1)),
                    "bbox": [50 * (cell % 4), 50 * (cell // 4), width, height],
                    "area": width * height,
                    "iscrowd": int(crowds and rng.random() < 0.1),
                }
            )
    return {
        "images": [{"id": i, "width": 200, "height": 200} for i in range(1, images + 1)],
        "annotations": annotations,
        "categories": [{"id": k + 1, "name": NAMES[k]} for k in range(classes)],
    }


def detections(truth, seed, chance=0.8, false_per_image=3):
    """Find each label with `chance`, a little displaced, and as many false boxes on average.

    One seed makes detectors of different chance find nested sets of boxes, as variants of one model do.
    """
    rng = np.random.default_rng([*np.atleast_1d(seed), 1])
    found = []
    for annotation in truth["annotations"]:
        displaced = np.array(annotation["bbox"]) + rng.normal(0, 2, 4)
        luck, confidence = rng.random(2)
        if luck < chance:
            found.append((annotation["image_id"], annotation["category_id"], displaced, confidence))
    for image in truth["images"]:
        for _ in range(rng.poisson(false_per_image)):
            box = np.append(rng.uniform(0, 150, 2), rng.uniform(10, 50, 2))
            category = int(rng.integers(1, len(truth["categories"]) + 1))
            found.append((image["id"], category, box, rng.random() * 0.8))
    return [
        {"image_id": i, "category_id": c, "bbox": b.clip(0.1).tolist(), "score": float(s)}
        for i, c, b, s in found
    ]


def ap(matches, draws):
    return np.nanmean(average_precision(matches, draws), axis=1)


@pytest.mark.parametrize("seed", range(5))
def test_every_image_once_is_pycocotools_own_number(seed):
    truth = labels(seed, crowds=True)
    # More than 100 detections on an image, and scores that tie.
    found = detections(truth, seed) + detections(labels(9, images=1), 9, false_per_image=600)
    for entry in found[::3]:
        entry["score"] = round(entry["score"], 1)
    expected = score(truth, found)
    got = average_precision(match_detections(truth, found), np.ones([1, 20], int))[0]
    assert pytest.approx(got.mean(), abs=1e-12) == expected.AP
    assert [expected.AP_per_class[name] for name in NAMES] == pytest.approx(got.tolist(), abs=1e-12)


def test_a_draw_is_pycocotools_number_for_the_data_set_it_stands_for():
    truth = labels(3, images=12, crowds=True)
    found = detections(truth, 3)
    draws = draw_images(12, count=10, seed=5)
    assert draws.sum(axis=1).tolist() == [12] * 10 and draws.max() > 1
    got = ap(match_detections(truth, found), draws)
    for drawn, value in zip(draws, got, strict=True):
        copied = {"images": [], "annotations": [], "categories": truth["categories"]}
        copied_found = []
        for image_id in np.repeat(np.arange(1, 13), drawn):
            new = len(copied["images"]) + 1
            copied["images"].append({"id": new, "width": 200, "height": 200})
            for rows, kept in [(truth["annotations"], copied["annotations"]), (found, copied_found)]:
                kept += [
                    {**copy.deepcopy(row), "image_id": new} for row in rows if row["image_id"] == image_id
                ]
        assert pytest.approx(value, abs=1e-12) == score(copied, copied_found).AP


def test_classes_without_labels_or_detections():
    truth = labels(0, images=6)
    truth["annotations"] = [a for a in truth["annotations"] if a["category_id"] != 2]
    found = [d for d in detections(truth, 0) if d["category_id"] != 3]
    draws = np.ones([1, 6], int)
    by_class = average_precision(match_detections(truth, found), draws)[0]
    assert np.isnan(by_class[1]) and by_class[2] == 0 and by_class[0] > 0
    assert ap(match_detections(truth, []), draws).tolist() == [0.0]
    assert pytest.approx(np.nanmean(by_class)) == score(truth, found).AP


def test_a_variant_against_itself_is_exactly_zero():
    truth = labels(0)
    draws = np.concatenate([np.ones([1, 20], int), draw_images(20, count=50)])
    precisions = ap(match_detections(truth, detections(truth, 0)), draws)
    interval = paired_interval([precisions], [precisions.copy()])
    assert (interval.difference, interval.low, interval.high) == (0.0, 0.0, 0.0)
    assert not interval.above_zero and not interval.below_zero


def test_seeds_are_averaged_before_the_interval_and_kept():
    rng = np.random.default_rng(0)
    reference = rng.uniform(0.4, 0.6, [2, 1001])
    variant = reference + 0.1
    variant[1] -= 0.16
    interval = paired_interval(list(variant), list(reference))
    assert interval.by_seed == pytest.approx((0.1, -0.06)) and interval.difference == pytest.approx(0.02)
    assert (interval.low, interval.high) == pytest.approx((0.02, 0.02))
    assert interval.above_zero and not interval.seeds_agree
    alone = paired_interval([reference[0]], [variant[0]])
    assert alone.below_zero and not alone.above_zero and alone.seeds_agree
    with pytest.raises(ValueError, match="same seeds on both sides, got 1 and 2"):
        paired_interval([variant[0]], list(reference))


@pytest.mark.slow
def test_the_interval_covers_the_true_difference_as_often_as_it_says():
    """What two detectors truly differ by is what they differ by on a very large data set."""
    images, trials = 40, 80

    def precisions(truth, draws, seed, chance):
        return [ap(match_detections(truth, detections(truth, seed, chance, false_per_image=1)), draws)]

    large, once = labels(0, images=5000, classes=1, boxes_per_image=2), np.ones([1, 5000], int)
    (worse,), (better,) = precisions(large, once, [0, 1], 0.5), precisions(large, once, [0, 2], 0.8)
    true_difference = float(worse[0] - better[0])
    assert -0.25 < true_difference < -0.1

    covered = detected = false_alarms = 0
    for trial in range(1, trials + 1):
        truth = labels(trial, images=images, classes=1, boxes_per_image=2)
        draws = np.concatenate([np.ones([1, images], int), draw_images(images, count=200, seed=trial)])
        # Luck of their own: detectors that err alike would leave nothing to chance where they are equal.
        worse, better, as_good = (
            precisions(truth, draws, [trial, luck], chance) for luck, chance in [(1, 0.5), (2, 0.8), (3, 0.8)]
        )
        interval = paired_interval(worse, better)
        covered += interval.low <= true_difference <= interval.high
        detected += interval.below_zero
        equal = paired_interval(as_good, better)
        false_alarms += equal.above_zero or equal.below_zero
    # Three standard deviations of a binomial of 80 at 95 % are 7.3 %.
    assert 0.877 <= covered / trials < 1
    assert false_alarms / trials <= 0.123
    assert detected / trials > 0.5

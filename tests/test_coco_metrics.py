import contextlib
import copy
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rich.console import Console

from detector.coco_metrics import SCORE_NAMES, map_to_original, score, to_coco_results
from detector.score_table import score_table

CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}, {"id": 90, "name": "owl"}]


def truth(*boxes, images=(1, 2, 3), categories=CATEGORIES):
    """Each box is (image id, category id, [x, y, w, h]) and perhaps a dict of more."""
    return {
        "images": [{"id": i, "width": 200, "height": 200} for i in images],
        "categories": list(categories),
        "annotations": [
            {"id": n, "image_id": i, "category_id": c, "bbox": b, "area": b[2] * b[3], "iscrowd": 0}
            | (more[0] if more else {})
            for n, (i, c, b, *more) in enumerate(boxes, start=1)
        ],
    }


def found(image_id, category_id, bbox, confidence=0.9):
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": confidence}


def random_case(seed):
    rng = np.random.default_rng(seed)

    def boxes(count):
        return np.concatenate([rng.uniform(0, 100, (count, 2)), rng.uniform(2, 120, (count, 2))], axis=1)

    labels = [
        (int(rng.integers(1, 9)), int(rng.choice([7, 3])), b.tolist(), {"iscrowd": int(rng.random() < 0.1)})
        for b in boxes(60)
    ]
    detections = [
        found(i, c, (np.array(b) + rng.normal(0, 6, 4)).clip(0.1).tolist(), rng.random())
        for i, c, b, _ in labels * 2
    ]
    detections += [
        found(int(rng.integers(1, 9)), int(rng.choice([7, 3, 90])), b.tolist(), rng.random())
        for b in boxes(1500)  # more than 100 per image
    ]
    return truth(*labels, images=range(1, 11)), detections


def by_hand(ground_truth, detections):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(ground_truth)
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(detections)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("seed", range(3))
def test_equals_pycocotools_driven_by_hand(seed):
    ground_truth, detections = random_case(seed)
    scores = score(ground_truth, detections)
    reference = by_hand(ground_truth, detections)
    assert [getattr(scores, name) for name in SCORE_NAMES] == reference.stats.tolist()
    precision = reference.eval["precision"]
    for name, category_id in (("cat", 7), ("dog", 3)):
        k = reference.params.catIds.index(category_id)
        assert scores.AP_per_class[name] == precision[:, :, k, 0, 2].mean()
        assert scores.AP50_per_class[name] == precision[0, :, k, 0, 2].mean()
    assert scores.AP_per_class["owl"] is None  # it has detections, but no ground truth
    assert (scores.num_images, scores.num_detections) == (10, 1620)


def test_prints_nothing_and_changes_nothing(capfd):
    ground_truth, detections = random_case(0)
    before = copy.deepcopy((ground_truth, detections))
    score(ground_truth, detections)
    assert capfd.readouterr() == ("", "")
    assert (ground_truth, detections) == before


def test_one_perfect_box():
    scores = score(truth((1, 7, [10, 10, 20, 20])), [found(1, 7, [10, 10, 20, 20])])
    assert [scores.AP, scores.AP50, scores.AP75, scores.AP_small] == pytest.approx([1, 1, 1, 1])
    assert scores.AR_1 == 1
    assert scores.AP_medium is scores.AP_large is scores.AR_large is None
    assert scores.AP_per_class == {"dog": None, "cat": pytest.approx(1), "owl": None}


def test_a_class_that_is_never_found_halves_the_mean():
    scores = score(truth((1, 7, [10, 10, 20, 20]), (2, 3, [10, 10, 20, 20])), [found(1, 7, [10, 10, 20, 20])])
    assert pytest.approx(0.5) == scores.AP
    assert scores.AP_per_class["dog"] == scores.AP50_per_class["dog"] == 0
    assert scores.AP_per_class["cat"] == pytest.approx(1)


def test_iou_thresholds():
    # 60 of 100 columns overlap: IoU 0.6 passes 0.50, 0.55 and 0.60 of the ten thresholds.
    scores = score(truth((1, 7, [0, 0, 100, 100])), [found(1, 7, [0, 0, 60, 100])])
    assert pytest.approx(0.3) == scores.AP
    assert (pytest.approx(1), 0) == (scores.AP50, scores.AP75)


def test_no_detections_at_all():
    scores = score(truth((1, 7, [10, 10, 20, 20])), [])
    assert (scores.AP, scores.AP50, scores.AR_100, scores.num_detections) == (0, 0, 0, 0)
    assert scores.AP_large is None


def test_no_ground_truth_at_all_is_undefined():
    scores = score(truth(), [found(1, 7, [10, 10, 20, 20])])
    assert scores.AP is scores.AR_100 is scores.AP_per_class["cat"] is None


def test_a_detection_on_an_image_without_ground_truth_is_a_false_positive():
    ground_truth = truth((1, 7, [10, 10, 20, 20]))
    right = found(1, 7, [10, 10, 20, 20], 0.5)
    wrong = found(2, 7, [10, 10, 20, 20], 0.9)
    assert pytest.approx(0.5) == score(ground_truth, [wrong, right]).AP


def test_crowd_boxes_are_neither_hits_nor_misses():
    crowd = (1, 7, [100, 100, 80, 80], {"iscrowd": 1})
    in_crowd = found(1, 7, [110, 110, 20, 20], 0.95)
    hit = found(1, 7, [10, 10, 20, 20], 0.5)
    assert pytest.approx(1) == score(truth((1, 7, [10, 10, 20, 20]), crowd), [in_crowd, hit]).AP
    plain = truth((1, 7, [10, 10, 20, 20]), (1, 7, [100, 100, 80, 80]))
    assert score(plain, [in_crowd, hit]).AP < 0.5


def test_annotation_ids_from_zero_and_absent_area_and_crowd():
    ground_truth = truth((1, 7, [10, 10, 20, 20]))
    ground_truth["annotations"] = [{"id": 0, "image_id": 1, "category_id": 7, "bbox": [10, 10, 20, 20]}]
    scores = score(ground_truth, [found(1, 7, [10, 10, 20, 20])])
    assert [scores.AP, scores.AP_small] == pytest.approx([1, 1])


@pytest.mark.parametrize(
    ("detection", "message"),
    [
        (found(99, 7, [0, 0, 1, 1]), "image 99.*3 images"),
        (found(1, 8, [0, 0, 1, 1]), "category 8.*7: 'cat'"),
        (found(1, 7, [0, 0, 1]), "finite x, y, width, height"),
        (found(1, 7, [0, 0, -1, 1]), "finite x, y, width, height"),
        (found(1, 7, [0, 0, 1, 1], float("nan")), "score nan"),
        ({"image_id": 1, "category_id": 7, "bbox": [0, 0, 1, 1]}, "got no score"),
    ],
)
def test_wrong_detections_are_named(detection, message):
    good = found(1, 7, [10, 10, 20, 20])
    with pytest.raises(ValueError, match=f"detection 1.*{message}"):
        score(truth((1, 7, [10, 10, 20, 20])), [good, detection])


def test_wrong_ground_truth_is_named():
    with pytest.raises(ValueError, match="list of images"):
        score(truth(images=()), [])
    with pytest.raises(ValueError, match="'annotations'"):
        score({"images": [{"id": 1}], "categories": CATEGORIES}, [])
    with pytest.raises(ValueError, match="differ from each other"):
        score(truth(categories=[{"id": 1, "name": "cat"}, {"id": 2, "name": "cat"}]), [])
    with pytest.raises(ValueError, match="differ from each other"):
        score(truth(categories=[{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}]), [])


def test_a_detection_scores_by_its_box_alone():
    stored = found(1, 7, [10, 10, 20, 20]) | {"area": 1e6, "iscrowd": 1, "id": 12}
    assert score(truth((1, 7, [10, 10, 20, 20])), [stored]).AP_small == pytest.approx(1)
    wrong = found(1, 7, [100, 100, 20, 20], 0.95) | {"area": 1e6}  # COCO ignores what is not small here
    scores = score(truth((1, 7, [10, 10, 20, 20])), [stored, wrong])
    assert scores.AP_small == pytest.approx(0.5)


def test_to_dict_survives_json():
    ground_truth, detections = random_case(1)
    scores = score(ground_truth, detections)
    read = json.loads(json.dumps(scores.to_dict()))
    assert {name: read[name] for name in SCORE_NAMES} == {name: getattr(scores, name) for name in SCORE_NAMES}
    assert read["classes"]["owl"] == {"AP": None, "AP50": None}
    assert read["classes"]["cat"] == {"AP": scores.AP_per_class["cat"], "AP50": scores.AP50_per_class["cat"]}
    assert (read["num_images"], read["num_detections"]) == (10, 1620)


def test_to_coco_results():
    results = to_coco_results(
        np.int64(5),
        np.array([[10, 20, 40.00049, 80], [0, 0, 1, 1]], np.float32),
        np.array([1, 0], np.int32),
        np.array([0.25, 0.1], np.float32),
        category_ids=[7, 3],
    )
    assert results == [
        {"image_id": 5, "category_id": 3, "bbox": [20, 10, 60, 30], "score": 0.25},
        {"image_id": 5, "category_id": 7, "bbox": [0, 0, 1, 1], "score": float(np.float32(0.1))},
    ]
    assert json.loads(json.dumps(results)) == results
    assert to_coco_results(5, np.zeros((0, 4)), np.zeros(0, int), np.zeros(0), [7]) == []
    with pytest.raises(ValueError, match=r"image 5: expected classes 0 … 1, got \[-1, 2\]"):
        to_coco_results(5, np.zeros((2, 4)), np.array([2, -1]), np.zeros(2), [7, 3])
    with pytest.raises(ValueError, match="2 boxes, 1 classes and 2 scores"):
        to_coco_results(5, np.zeros((2, 4)), np.zeros(1, int), np.zeros(2), [7, 3])


def test_map_to_original():
    # A 480 x 640 file was scaled by a quarter onto a larger canvas.
    boxes = np.array([[30, 20, 60, 80], [-5, -5, 130, 170]], np.float32)
    original = map_to_original(boxes, (120, 160), (480, 640))
    np.testing.assert_array_equal(original, [[120, 80, 240, 320], [0, 0, 480, 640]])
    assert original.dtype == np.float32
    # The fixed shape resizer scales the axes differently.
    np.testing.assert_array_equal(
        map_to_original(np.array([[50, 50, 100, 100]]), (100, 100), (200, 400)), [[100, 200, 200, 400]]
    )


def test_score_table_reads_at_80_columns():
    ground_truth, detections = random_case(0)
    ground_truth["categories"][0] = {
        "id": 7,
        "name": "[bold]a class with a name that is " + "very " * 12 + "long",
    }
    scores = score(ground_truth, detections)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(score_table(scores, "test [split]"))
    text = console.export_text()
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "…" not in text
    assert "test [split]" in text and "[bold]a class" in text
    for name in SCORE_NAMES:
        assert f"{getattr(scores, name):.3f}" in text
    assert "10 images, 1,620 detections" in text
    assert any(line.split() == ["owl", "–", "–"] for line in text.splitlines())

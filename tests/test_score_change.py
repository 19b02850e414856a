import pytest

from detector.score_change import score_change


def box(image_id):
    return {"image_id": image_id, "category_id": 1, "bbox": [10.0, 5.0, 8.0, 8.0]}


def test_the_difference_of_ap_is_that_of_the_detections():
    ground_truth = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 64, "width": 64} for i in (1, 2)],
        "annotations": [{"id": i, **box(i)} for i in (1, 2)],
        "categories": [{"id": 1, "name": "circle"}],
    }
    both = [{**box(i), "score": 0.9} for i in (1, 2)]
    change = score_change(ground_truth, both, both[:1])
    # One of two boxes found: precision 1 at the 51 recalls from 0 to 0.5, of COCO's 101.
    assert (change.as_trained, change.as_exported) == (pytest.approx(1.0), pytest.approx(51 / 101))
    assert change.difference.difference == pytest.approx(-50 / 101)
    # A draw of the first image alone shows no difference, one of the second alone the loss of everything.
    assert (change.difference.low, change.difference.high) == (pytest.approx(-1.0), pytest.approx(0.0))
    assert change.line() == (
        "AP 1.000 as trained, 0.505 as exported: -0.495, 95% interval -1.000 to +0.000 over 2 images"
    )
    without = score_change({**ground_truth, "annotations": []}, both, both)
    assert without.line() == "no AP: the 2 images have no labels"

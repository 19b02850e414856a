import numpy as np
import pytest
import tensorflow as tf

from detector.evaluate import Evaluator, category_ids, detect_all, evaluate
from detector.stop_requests import Stopped
from detector.suppression import Suppressed

CATEGORIES = [{"id": 40, "name": "square"}, {"id": 7, "name": "circle"}, {"id": 9, "name": "star"}]
TRUTH = {"categories": CATEGORIES, "annotations": [{"id": 1, "category_id": 9}]}


def batch(image_ids, size_hw=(64, 64), original_hw=(128, 192)):
    rows = len(image_ids)
    return {
        "image": tf.zeros([rows, 64, 64, 3], tf.uint8),
        "image_size_hw": tf.constant([size_hw] * rows),
        "original_size_hw": tf.constant([original_hw] * rows),
        "image_id": tf.constant(image_ids, tf.int64),
    }


def fake_detect(batch):
    """Two detections on every image, and a slot of padding."""
    rows = len(batch["image"])
    return Suppressed(
        tf.constant([[[16.0, 0, 32, 64], [0, 0, 64, 32], [0, 0, 0, 0]]] * rows),
        tf.constant([[0.9, 0.4, 0.0]] * rows),
        tf.constant([[1, 0, 0]] * rows),
        tf.constant([2] * rows),
    )


def test_detections_are_in_the_files_pixels_with_the_data_sets_category_ids():
    ids = category_ids(("circle", "square", "star"), TRUTH)
    results = detect_all(fake_detect, [batch([5, -1])], ids)
    assert results == [
        {"image_id": 5, "category_id": 40, "bbox": [0.0, 32.0, 192.0, 32.0], "score": pytest.approx(0.9)},
        {"image_id": 5, "category_id": 7, "bbox": [0.0, 0.0, 96.0, 128.0], "score": pytest.approx(0.4)},
    ]


def test_classes_that_the_data_set_does_not_have_are_left_out():
    ids = category_ids(("circle", "whale", "square", "star"), TRUTH)
    assert ids == [7, None, 40, 9]
    assert [row["category_id"] for row in detect_all(fake_detect, [batch([5])], ids)] == [7]


def test_a_class_that_the_model_does_not_know_is_an_error():
    with pytest.raises(
        ValueError, match="does not know the data set's classes 'star'; it knows 'circle', 'square'"
    ):
        category_ids(("circle", "square"), TRUTH)
    with pytest.raises(
        ValueError,
        match=r"'star'; its own are called 1 … 90: name them with tools/import_weights.py --label-map",
    ):
        category_ids([str(number) for number in range(1, 91)], TRUTH)


def test_a_class_that_the_model_does_not_know_may_be_listed_if_nothing_is_labelled_so():
    assert category_ids(("circle", "star"), TRUTH) == [7, 9]


def test_no_detections_at_all_score_zero(tiny_model, make_batch, tiny_config, monkeypatch):
    data = make_batch(0)
    truth = {
        "images": [{"id": int(i), "height": 64, "width": 64} for i in data["image_id"]],
        "categories": CATEGORIES,
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 7, "bbox": [4, 4, 20, 20], "iscrowd": 0, "area": 400}
        ],
    }
    model = tiny_model()
    monkeypatch.setattr(
        model,
        "detect",
        lambda image, size: Suppressed(
            tf.zeros([2, 1, 4]), tf.zeros([2, 1]), tf.zeros([2, 1], tf.int32), tf.zeros([2], tf.int32)
        ),
    )
    assert evaluate(model, [data], truth).AP == 0.0


def test_the_evaluator_follows_the_weights(tiny_model, make_batch):
    model, data = tiny_model(), make_batch(0)
    truth = {
        "images": [{"id": int(i), "height": 64, "width": 64} for i in data["image_id"]],
        "categories": CATEGORIES,
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 7, "bbox": [4, 4, 20, 20], "iscrowd": 0, "area": 400}
        ],
    }
    evaluator = Evaluator(model, [data], truth)
    evaluator()
    before = evaluator.detections
    model.box_classifier.predictor.class_scores.bias.assign([0.0, 5.0, 0.0, 0.0])
    evaluator()
    assert np.mean([row["score"] for row in evaluator.detections]) > np.mean([row["score"] for row in before])


def test_an_evaluation_is_given_up_before_the_batch_that_it_is_told_to(tiny_model, monkeypatch):
    model, asked = tiny_model(), []
    truth = {"images": [], "categories": CATEGORIES, "annotations": []}

    def batches():
        yield batch([5])
        yield batch([6])
        raise AssertionError("a batch more than was asked for")

    evaluator = Evaluator(model, batches(), truth)
    detected = []
    monkeypatch.setattr(evaluator, "_detect", lambda batch: detected.append(batch) or fake_detect(batch))
    evaluator.detections = before = [{"image_id": 1}]
    with pytest.raises(Stopped):
        evaluator(is_stopped=lambda: asked.append(None) or len(asked) == 2)
    assert len(detected) == 1 and evaluator.detections is before

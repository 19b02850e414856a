import numpy as np
import tensorflow as tf

from detector.suppression import suppress_and_clip, suppress_and_clip_one_class


def suppress(boxes, scores, size_hw, **changes):
    settings = {"max_per_class": 5, "max_total": 6, "score_threshold": 0.0, "iou_threshold": 0.5, **changes}
    return suppress_and_clip(
        tf.constant(boxes, tf.float32),
        tf.constant(scores, tf.float32),
        tf.constant(size_hw, tf.int32),
        **settings,
    )


def test_the_worse_of_two_overlapping_boxes_of_one_class_goes():
    boxes = [[[[0, 0, 10, 10]], [[0, 0, 10, 9]], [[20, 20, 30, 30]]]]
    kept = suppress(boxes, [[[0.5], [0.9], [0.7]]], [[40, 40]])
    np.testing.assert_array_equal(kept.count, [2])
    np.testing.assert_array_equal(kept.boxes_yxyx[0, :3], [[0, 0, 10, 9], [20, 20, 30, 30], [0, 0, 0, 0]])
    np.testing.assert_allclose(kept.scores[0], [0.9, 0.7, 0, 0, 0, 0])


def test_classes_do_not_suppress_each_other():
    boxes = [[[[0, 0, 10, 10], [0, 0, 10, 10]]]]
    kept = suppress(boxes, [[[0.5, 0.9]]], [[40, 40]])
    np.testing.assert_array_equal(kept.classes[0, :2], [1, 0])


def test_overlaps_are_those_before_clipping():
    # Alike inside the image, but reaching out of it to different sides: IoU 1/3 before clipping, 1 after.
    boxes = [[[[0, 0, 10, 10]], [[0, 5, 10, 15]]]]
    kept = suppress(boxes, [[[0.9], [0.8]]], [[10, 10]])
    np.testing.assert_array_equal(kept.boxes_yxyx[0, :2], [[0, 0, 10, 10], [0, 5, 10, 10]])


def test_boxes_outside_the_image_leave_no_gap():
    boxes = [[[[0, 50, 10, 60]], [[0, 0, 10, 10]]], [[[0, 50, 10, 60]], [[0, 0, 10, 10]]]]
    kept = suppress(boxes, [[[0.9], [0.8]]] * 2, [[40, 40], [40, 100]])
    np.testing.assert_array_equal(kept.count, [1, 2])
    np.testing.assert_array_equal(kept.boxes_yxyx[0, 0], [0, 0, 10, 10])
    np.testing.assert_allclose(kept.scores[:, 0], [0.8, 0.9])


def test_scores_at_the_threshold_and_below_0_go():
    boxes = [[[[0, 0, 10, 10]], [[20, 0, 30, 10]], [[20, 20, 30, 30]]]]
    kept = suppress(boxes, [[[0.3], [-1.0], [0.31]]], [[40, 40]], score_threshold=0.3)
    np.testing.assert_allclose(kept.scores[0, :2], [0.31, 0.0])


def test_limits_per_class_and_in_total():
    boxes = [[[[10 * i, 0, 10 * i + 9, 9]] for i in range(6)]]
    scores = [[[0.9 - 0.1 * i, 0.85 - 0.1 * i] for i in range(6)]]
    kept = suppress(boxes, scores, [[99, 99]], max_per_class=2, max_total=3)
    np.testing.assert_array_equal(kept.classes, [[0, 1, 0]])
    np.testing.assert_array_equal(kept.count, [3])


def test_the_best_of_all_classes_are_chosen_after_clipping():
    # The best box lies outside the image; the two others fill the two places.
    boxes = [[[[0, 50, 10, 60], [0, 0, 10, 10]], [[0, 60, 10, 70], [20, 20, 30, 30]]]]
    scores = [[[0.9, 0.8], [0.1, 0.7]]]
    kept = suppress(boxes, scores, [[40, 40]], max_total=2)
    np.testing.assert_array_equal(kept.boxes_yxyx[0], [[0, 0, 10, 10], [20, 20, 30, 30]])
    np.testing.assert_array_equal(kept.classes[0], [1, 1])


def test_of_equal_scores_of_one_class_the_first_row_comes_first():
    # A chain of boxes, each too near to the next: which survive depends on who comes first.
    left = np.arange(60, dtype=np.float32)[:, np.newaxis] * 4
    chain = np.concatenate([0 * left, left, 0 * left + 10, left + 10], axis=1)
    kept = suppress_and_clip_one_class(
        tf.constant(np.stack([chain, chain[::-1]])),
        tf.fill([2, 60], 0.5),
        tf.constant([[10, 300], [10, 300]]),
        max_total=40,
        score_threshold=0.0,
        iou_threshold=0.3,
    )
    np.testing.assert_array_equal(kept.count, [30, 30])
    np.testing.assert_array_equal(kept.boxes_yxyx[0, :30], chain[::2])
    np.testing.assert_array_equal(kept.boxes_yxyx[1, :30], chain[::-1][::2])
    assert not kept.boxes_yxyx[:, 30:].numpy().any()

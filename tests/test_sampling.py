import numpy as np
import pytest
import tensorflow as tf
from official.vision.utils.object_detection import argmax_matcher

from detector import boxes
from detector.sampling import BACKGROUND, IGNORED, GroundTruth, draw_balanced, match


def truth_of(rows, classes=None, crowd=()):
    """Ground truth of one image: boxes, padding where the class is -1, crowds by row."""
    classes = classes or [0] * len(rows)
    batch = {
        "boxes_yxyx": tf.constant([rows], tf.float32),
        "classes": tf.constant([classes], tf.int32),
        "is_crowd": tf.constant([[row in crowd for row in range(len(rows))]]),
    }
    return GroundTruth.of(batch)


RPN = {"matched_iou": 0.7, "unmatched_iou": 0.3, "force_match": True}


def test_matching_by_hand():
    truth = truth_of([[0, 0, 10, 10], [50, 50, 60, 60]])
    candidates = [
        [0, 0, 10, 10],  # IoU 1
        [0, 0, 10, 20],  # IoU 0.5: neither
        [0, 0, 10, 40],  # IoU 0.25: background
        [52, 50, 66, 60],  # the second object's best, at IoU 0.5
        [90, 90, 99, 99],
    ]
    matches = match(tf.constant([candidates], tf.float32), truth, **RPN)
    np.testing.assert_array_equal(matches, [[0, IGNORED, BACKGROUND, 1, BACKGROUND]])
    unforced = match(tf.constant([candidates], tf.float32), truth, **{**RPN, "force_match": False})
    np.testing.assert_array_equal(unforced, [[0, IGNORED, BACKGROUND, IGNORED, BACKGROUND]])


def test_padding_matches_nothing():
    truth = truth_of([[0, 0, 0, 0], [0, 0, 0, 0]], classes=[-1, -1])
    matches = match(tf.constant([[[0, 0, 0, 0], [0, 0, 8, 8]]], tf.float32), truth, **RPN)
    np.testing.assert_array_equal(matches, [[BACKGROUND, BACKGROUND]])


def test_a_crowd_is_no_object_but_what_lies_in_it_is_no_negative():
    truth = truth_of([[0, 0, 100, 100], [200, 200, 220, 220]], crowd={0})
    candidates = [[10, 10, 30, 30], [0, 90, 20, 120], [200, 200, 220, 220]]
    matches = match(tf.constant([candidates], tf.float32), truth, **RPN)
    np.testing.assert_array_equal(matches, [[IGNORED, BACKGROUND, 1]])


def test_candidates_that_may_not_take_part_are_ignored_and_force_nothing():
    truth = truth_of([[0, 0, 10, 10]])
    candidates = tf.constant([[[0, 0, 10, 10], [0, 0, 10, 20]]], tf.float32)
    matches = match(candidates, truth, is_usable=tf.constant([False, True]), **RPN)
    np.testing.assert_array_equal(matches, [[IGNORED, 0]])
    matches = match(candidates, truth, is_usable=tf.constant([False, False]), **RPN)
    np.testing.assert_array_equal(matches, [[IGNORED, IGNORED]])


def test_an_object_that_overlaps_nothing_usable_takes_the_first_usable_candidate():
    truth = truth_of([[0, 0, 10, 10], [0, 0, 0, 0]], classes=[0, -1])
    candidates = tf.constant([[[0, 0, 10, 10], [40, 40, 50, 50], [60, 60, 70, 70]]], tf.float32)
    matches = match(candidates, truth, is_usable=tf.constant([False, True, True]), **RPN)
    np.testing.assert_array_equal(matches, [[IGNORED, 0, BACKGROUND]])
    # The original leaves out what is not usable, and matches the rest.
    matcher = argmax_matcher.ArgMaxMatcher(0.7, 0.3, force_match_for_each_row=True)
    expected = matcher.match(boxes.iou(truth.boxes_yxyx[0, :1], candidates[0, 1:])).match_results
    np.testing.assert_array_equal(matches[0, 1:], expected)


@pytest.mark.parametrize("seed", range(3))
def test_matching_equals_model_gardens_matcher(seed):
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.uniform(0, 100, [2, 60, 2, 2]), axis=-2).astype(np.float32)
    truth, candidates = corners[0, :5].reshape(5, 4), corners[1].reshape(60, 4)
    candidates[:5] = truth + rng.normal(0, 2, [5, 4])
    matcher = argmax_matcher.ArgMaxMatcher(0.7, 0.3, force_match_for_each_row=True)
    expected = matcher.match(boxes.iou(truth, candidates)).match_results
    matches = match(tf.constant(candidates[np.newaxis]), truth_of(truth), **RPN)
    np.testing.assert_array_equal(matches[0], expected)
    assert (matches.numpy() >= 0).sum() >= 5


def draw(positives, negatives, ignored, size, fraction, seed=(0, 0)):
    rows = positives + negatives + ignored
    is_positive = np.arange(rows) < positives
    is_candidate = np.arange(rows) < positives + negatives
    result = draw_balanced(
        tf.constant(is_candidate[np.newaxis]),
        tf.constant(is_positive[np.newaxis]),
        size,
        fraction,
        tf.constant(seed),
    )
    return result.indices.numpy()[0][result.is_drawn.numpy()[0]], result


@pytest.mark.parametrize(
    ("positives", "negatives", "size", "drawn_positives", "drawn_negatives"),
    [
        (100, 100, 20, 10, 10),  # half and half
        (3, 100, 20, 3, 17),  # negatives fill up
        (100, 4, 20, 10, 4),  # positives do not
        (0, 100, 20, 0, 20),
        (2, 3, 20, 2, 3),  # too few of both
        (0, 0, 20, 0, 0),
        (10, 10, 1000, 10, 10),  # more asked for than there are
    ],
)
def test_the_draw_is_balanced_and_without_repeats(
    positives, negatives, size, drawn_positives, drawn_negatives
):
    rows, _ = draw(positives, negatives, 7, size, 0.5)
    assert len(set(rows)) == len(rows)
    assert (rows < positives).sum() == drawn_positives
    assert ((rows >= positives) & (rows < positives + negatives)).sum() == drawn_negatives
    assert len(rows) == drawn_positives + drawn_negatives


def test_the_draw_is_a_function_of_its_seed():
    first, _ = draw(50, 50, 0, 20, 0.5, seed=(1, 2))
    again, _ = draw(50, 50, 0, 20, 0.5, seed=(1, 2))
    other, _ = draw(50, 50, 0, 20, 0.5, seed=(1, 3))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_every_row_can_be_drawn():
    seen = set()
    for step in range(40):
        seen |= set(draw(20, 20, 0, 10, 0.5, seed=(0, step))[0])
    assert seen == set(range(40))


def test_undrawn_slots_come_last_and_point_at_row_0():
    _, result = draw(1, 2, 3, 5, 0.5)
    np.testing.assert_array_equal(result.is_drawn, [[True, True, True, False, False]])
    np.testing.assert_array_equal(result.indices, [[0, 1, 2, 0, 0]])

import numpy as np
import pytest
import tensorflow as tf

from detector import boxes
from detector.rpn import Rpn, RpnOutputs, propose, rpn_losses, smooth_l1
from detector.sampling import GroundTruth

ANCHORS = tf.constant([[0, 0, 10, 10], [0, 20, 10, 30], [20, 0, 30, 10], [35, 35, 45, 45]], tf.float32)
PROPOSE = {"max_proposals": 3, "nms_score_threshold": 0.0, "nms_iou_threshold": 0.7}
SIZE = tf.constant([[40, 40]])


def outputs(encodings, objectness):
    return RpnOutputs(
        tf.zeros([1, 1]), tf.constant([encodings], tf.float32), tf.constant([objectness], tf.float32)
    )


def truth(rows, classes):
    return GroundTruth.of(
        {
            "boxes_yxyx": tf.constant([rows], tf.float32),
            "classes": tf.constant([classes]),
            "is_crowd": tf.zeros([1, len(rows)], tf.bool),
        }
    )


def test_heads_lay_anchors_out_by_row_column_and_anchor():
    rpn = Rpn(anchors_per_cell=3, conv_depth=4)
    result = rpn(tf.random.stateless_normal([2, 5, 7, 6], [0, 0]))
    assert result.box_encodings.shape == (2, 5 * 7 * 3, 4)
    assert result.objectness.shape == (2, 5 * 7 * 3, 2)
    raw = rpn.box_encodings(result.hidden)
    np.testing.assert_array_equal(result.box_encodings[1, (2 * 7 + 4) * 3 + 1], raw[1, 2, 4, 4:8])
    assert float(tf.reduce_max(result.hidden)) <= 6.0  # ReLU6


def test_proposals_are_decoded_clipped_and_sorted():
    right_by_one_width = [0, 10, 0, 0]
    found = propose(
        outputs([right_by_one_width, [0] * 4, [0] * 4, [0] * 4], [[0, 1], [0, 3], [0, -9], [0, 2]]),
        ANCHORS,
        None,
        SIZE,
        **PROPOSE,
    )
    np.testing.assert_allclose(
        found.boxes_yxyx[0], [[0, 20, 10, 30], [35, 35, 40, 40], [0, 10, 10, 20]], atol=1e-4
    )
    np.testing.assert_allclose(found.scores[0], tf.sigmoid([3.0, 2.0, 1.0]), rtol=1e-5)
    np.testing.assert_array_equal(found.count, [3])


def test_anchors_that_may_not_take_part_propose_nothing():
    usable = tf.constant([True, False, True, False])
    found = propose(outputs([[0] * 4] * 4, [[0, 1]] * 4), ANCHORS, usable, SIZE, **PROPOSE)
    np.testing.assert_array_equal(found.count, [2])


def test_no_gradient_flows_through_proposals():
    with tf.GradientTape() as tape:
        encodings, objectness = tf.zeros([1, 4, 4]), tf.zeros([1, 4, 2])
        tape.watch([encodings, objectness])
        found = propose(RpnOutputs(tf.zeros([1]), encodings, objectness), ANCHORS, None, SIZE, **PROPOSE)
        total = tf.reduce_sum(found.boxes_yxyx) + tf.reduce_sum(found.scores)
    assert tape.gradient(total, [encodings, objectness]) == [None, None]


def test_losses_by_hand():
    # One object on anchor 0, off by half an anchor's height; two anchors are background, one lies outside.
    usable = tf.constant([True, True, True, False])
    box = [5.0, 0, 15, 10]
    losses = rpn_losses(
        outputs([[1, 0, 0, 0]] * 4, [[0, 0], [2, 0], [0, 0], [50, 0]]),
        ANCHORS,
        usable,
        truth([box, [0, 0, 0, 0]], [1, -1]),
        tf.constant([0, 0]),
        minibatch_size=8,
        positive_fraction=0.5,
    )
    difference = abs(1 - 0.5 * 10)  # the target is half a height down, times 10
    assert float(losses["rpn_box"]) == pytest.approx((difference - 0.5) / 3, rel=1e-5)
    expected = (np.log(2) + np.log1p(np.exp(-2)) + np.log(2)) / 3
    assert float(losses["rpn_objectness"]) == pytest.approx(expected, rel=1e-5)


def test_an_image_without_objects_has_negatives_only():
    losses = rpn_losses(
        outputs([[9, 9, 9, 9]] * 4, [[0, 0]] * 4),
        ANCHORS,
        None,
        truth([[0, 0, 0, 0]], [-1]),
        tf.constant([0, 0]),
        minibatch_size=4,
        positive_fraction=0.5,
    )
    assert float(losses["rpn_box"]) == 0.0
    assert float(losses["rpn_objectness"]) == pytest.approx(np.log(2), rel=1e-5)


def test_smooth_l1_is_quadratic_within_1_and_linear_beyond():
    loss = smooth_l1(tf.constant([[0.5, 0, 0, 0], [3.0, 0, 0, -1.0]]), tf.zeros([2, 4]))
    np.testing.assert_allclose(loss, [0.125, 2.5 + 0.5])


def test_perfect_encodings_cost_nothing():
    encoded = boxes.encode(tf.constant([[1.0, 2, 11, 13]]), ANCHORS[:1])
    losses = rpn_losses(
        RpnOutputs(tf.zeros([1]), encoded[tf.newaxis], tf.constant([[[-30.0, 30.0]]])),
        ANCHORS[:1],
        None,
        truth([[1, 2, 11, 13]], [0]),
        tf.constant([0, 0]),
        minibatch_size=4,
        positive_fraction=1.0,
    )
    assert float(losses["rpn_box"]) == pytest.approx(0.0, abs=1e-9)
    assert float(losses["rpn_objectness"]) == pytest.approx(0.0, abs=1e-9)

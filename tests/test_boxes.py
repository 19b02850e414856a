import numpy as np
import tensorflow as tf

from detector import boxes


def test_iou_of_two_squares_that_share_a_quarter_each_is_one_seventh():
    overlaps = boxes.iou(
        tf.constant([[0.0, 0, 2, 2]]), tf.constant([[1.0, 1, 3, 3], [0, 0, 2, 2], [5, 5, 6, 6]])
    )
    np.testing.assert_allclose(overlaps, [[1 / 7, 1.0, 0.0]], rtol=1e-6)


def test_boxes_without_area_overlap_nothing_and_make_no_nan():
    padding = tf.zeros([1, 4])
    np.testing.assert_array_equal(boxes.iou(padding, padding), [[0.0]])


def test_area_of_a_box_turned_inside_out_is_zero():
    np.testing.assert_array_equal(boxes.area(tf.constant([[4.0, 4, 2, 9]])), [0.0])


def test_clipping_is_to_each_images_own_size():
    windows = tf.constant([[10, 20], [30, 5]])
    clipped = boxes.clip_to_window(tf.constant([[[-3.0, 4, 50, 60]]] * 2), windows[:, tf.newaxis, :])
    np.testing.assert_array_equal(clipped, [[[0, 4, 10, 20]], [[0, 4, 30, 5]]])


def test_encoding_by_hand():
    # Half the anchor's height below it, twice as high, of the same width.
    anchor, box = tf.constant([[0.0, 0, 10, 10]]), tf.constant([[0.0, 0, 20, 10]])
    np.testing.assert_allclose(
        boxes.encode(box, anchor), [[0.5 * 10, 0.0, np.log(2.0) * 5, 0.0]], rtol=1e-6, atol=1e-6
    )


def test_decode_undoes_encode():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 100, [2, 50, 2, 2]).astype(np.float32)
    both = np.concatenate([corners.min(-2), corners.max(-2) + 1], axis=-1)
    decoded = boxes.decode(boxes.encode(both[0], both[1]), both[1])
    np.testing.assert_allclose(decoded, both[0], atol=1e-3)

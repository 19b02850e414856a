import numpy as np
import tensorflow as tf

from detector.anchors import AnchorGrid, inside_window


def test_anchors_by_hand():
    grid = AnchorGrid(scales=(0.5, 1.0), aspect_ratios=(1.0, 4.0), base_size_hw=(16, 16), stride_hw=(8, 10))
    anchors = grid([1, 2]).numpy()
    assert anchors.shape == (1 * 2 * 4, 4)
    # Ratios are the outer loop, scales the inner one; ratio 4 halves the height and doubles the width.
    np.testing.assert_allclose(
        anchors[:4], [[-4, -4, 4, 4], [-8, -8, 8, 8], [-2, -8, 2, 8], [-4, -16, 4, 16]], atol=1e-6
    )
    np.testing.assert_allclose(anchors[4:], anchors[:4] + np.float32([0, 10, 0, 10]), atol=1e-6)


def test_defaults_are_the_published_twelve():
    grid = AnchorGrid()
    assert grid.per_cell == 12
    areas = np.sqrt(np.prod(grid([1, 1]).numpy()[:, 2:] * 2, axis=1))
    np.testing.assert_allclose(areas, [64, 128, 256, 512] * 3, rtol=1e-6)


def test_a_grid_known_only_at_run_time_gives_the_same_anchors():
    grid = AnchorGrid()
    at_run_time = tf.function(lambda hw: grid([hw[0], hw[1]]))(tf.constant([3, 5]))
    np.testing.assert_array_equal(at_run_time, grid([3, 5]))


def test_an_anchor_that_touches_the_edge_from_inside_is_inside():
    anchors = tf.constant([[0.0, 0, 10, 20], [-0.1, 0, 5, 5], [0, 0, 10.1, 5], [1, 1, 2, 2]])
    np.testing.assert_array_equal(inside_window(anchors, [10, 20]), [True, False, False, True])

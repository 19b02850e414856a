import numpy as np
import pytest
import tensorflow as tf

from detector.resizer import FixedShapeResizer, KeepAspectRatioResizer, to_canvas


def image(height, width):
    return tf.constant(np.random.default_rng(0).integers(0, 256, [height, width, 3], np.uint8))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (600, 800)),  # the shorter side to 600
        ((640, 480), (800, 600)),
        ((300, 900), (341, 1024)),  # the longer side would pass 1024
        ((600, 1024), (600, 1024)),
        ((1200, 1200), (600, 600)),
    ],
)
def test_keep_aspect_sizes(size, expected):
    resized, size_hw = KeepAspectRatioResizer(600, 1024)(image(*size))
    assert tuple(size_hw.numpy()) == expected == resized.shape[:2]


def test_padding_is_at_the_bottom_and_right_and_black():
    resizer = KeepAspectRatioResizer(64, 64, pad=True)
    canvas, size_hw = resizer(image(48, 60))
    assert resizer.canvas_hw == (64, 64) == canvas.shape[:2]
    assert tuple(size_hw.numpy()) == (51, 64)
    assert np.all(canvas[51:].numpy() == 0) and canvas[:51].numpy().min() >= 0
    unpadded, _ = KeepAspectRatioResizer(64, 64)(image(48, 60))
    np.testing.assert_array_equal(canvas[:51], unpadded)


def test_fixed_shape_and_its_bilinear_grid():
    # Twice as wide: new columns lie on the old ones and half way between them; the last one repeats.
    row = tf.constant([[[0.0] * 3, [10.0] * 3, [30.0] * 3]])
    resized, size_hw = FixedShapeResizer(1, 6)(row)
    np.testing.assert_allclose(resized[0, :, 0], [0, 5, 10, 20, 30, 30])
    assert tuple(size_hw.numpy()) == (1, 6)


def test_the_sampling_is_that_of_tensorflow_1():
    picture = image(37, 53)
    expected = tf.compat.v1.image.resize_images(picture[tf.newaxis], [64, 80])[0]
    np.testing.assert_array_equal(FixedShapeResizer(64, 80)(picture)[0], expected)


def test_an_image_of_the_right_size_is_unchanged():
    picture = image(64, 96)
    canvas, _ = to_canvas(FixedShapeResizer(64, 96))(picture)
    assert canvas.dtype == tf.uint8
    np.testing.assert_array_equal(canvas, picture)


def test_the_canvas_is_rounded_not_cut():
    row = tf.constant([[[0] * 3, [5] * 3]], tf.uint8)
    canvas, _ = to_canvas(FixedShapeResizer(1, 6))(row)  # 0, 5/3, 10/3, 5, 5, 5
    np.testing.assert_array_equal(canvas[0, :, 0], [0, 2, 3, 5, 5, 5])


def test_it_traces_with_unknown_sizes():
    resizer = to_canvas(KeepAspectRatioResizer(40, 60, pad=True))
    traced = tf.function(resizer, input_signature=[tf.TensorSpec([None, None, 3], tf.uint8)])
    assert traced.get_concrete_function().structured_outputs[0].shape == (60, 60, 3)
    np.testing.assert_array_equal(traced(image(30, 50))[0], resizer(image(30, 50))[0])

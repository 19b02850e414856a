import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from detector.sparse_convolution import SparselyTrainedConv2D

pytestmark = pytest.mark.usefixtures("rewritten_graphs")

SHAPE = (2, 7, 6, 5)


def pair(kernel_size, dtype="float32"):
    """Return the layer and TensorFlow's own, with the same values."""
    arguments = {"activation": tf.nn.relu6, "dtype": dtype}
    sparse = SparselyTrainedConv2D(4, kernel_size, **arguments)
    dense = tf_keras.layers.Conv2D(4, kernel_size, padding="same", **arguments)
    for layer in (sparse, dense):
        layer.build(SHAPE)
    values = [
        np.random.default_rng(1).normal(size=variable.shape).astype(np.float32)
        for variable in sparse.variables
    ]
    sparse.set_weights(values)
    dense.set_weights(values)
    return sparse, dense


def gradients(layer, inputs, cells):
    """Return output and gradients of a sum over `cells` of the output."""
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = layer(inputs)
        weights = tf.random.stateless_normal([len(cells), 4], [2, 3])
        loss = tf.reduce_sum(tf.cast(tf.gather_nd(outputs, cells), tf.float32) * weights)
    return outputs, *tape.gradient(loss, [inputs, layer.kernel, layer.bias])


CORNERS = [[0, 0, 0], [0, 6, 5], [1, 0, 5], [1, 6, 0]]
NEIGHBOURS = [[1, 3, 3], [1, 3, 4], [1, 4, 3], [0, 2, 2]]
EVERY_CELL = [[b, y, x] for b in range(2) for y in range(7) for x in range(6)]


@pytest.mark.parametrize("in_graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("kernel_size", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "cells", [CORNERS, NEIGHBOURS, EVERY_CELL, CORNERS[:0]], ids=["corners", "neighbours", "all", "none"]
)
def test_output_and_gradients_are_those_of_the_dense_convolution(cells, kernel_size, in_graph):
    inputs = tf.random.stateless_normal(SHAPE, [0, 1])
    cells = tf.reshape(tf.constant(cells, tf.int32), [-1, 3])
    run = tf.function(gradients) if in_graph else gradients
    for found, expected in zip(*(run(layer, inputs, cells) for layer in pair(kernel_size)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_sizes_may_be_unknown_to_the_graph():
    layer, dense = pair(3)
    cells = tf.constant(NEIGHBOURS)
    anything = tf.function(
        lambda inputs: gradients(layer, inputs, cells),
        input_signature=[tf.TensorSpec([None, None, None, 5], tf.float32)],
    )
    inputs = tf.random.stateless_normal(SHAPE, [0, 1])
    for found, expected in zip(anything(inputs), gradients(dense, inputs, cells), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_in_bfloat16_it_agrees_too():
    sparse, dense = pair(3, tf_keras.mixed_precision.Policy("mixed_bfloat16"))
    inputs = tf.cast(tf.random.stateless_normal(SHAPE, [0, 1]), tf.bfloat16)
    for found, expected in zip(
        *(gradients(layer, inputs, tf.constant(NEIGHBOURS)) for layer in (sparse, dense)), strict=True
    ):
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(
            tf.cast(found, tf.float32), tf.cast(expected, tf.float32), rtol=2e-2, atol=5e-2
        )


def test_few_cells_are_multiplied_alone():
    # The graph that TensorFlow differentiates holds both ways; which is taken, the number of cells decides.
    layer, _ = pair(3)
    inputs = tf.random.stateless_normal(SHAPE, [0, 1])
    poisoned = tf.tensor_scatter_nd_update(inputs, [[0, 0, 0]], [np.full(5, np.inf, np.float32)])
    _, _, towards_kernel, _ = gradients(layer, poisoned, tf.constant([[0, 6, 5], [1, 6, 0]]))
    assert np.isfinite(towards_kernel).all()

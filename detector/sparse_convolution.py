"""A convolution whose gradients cost what the cells cost that a loss looks at."""

from collections.abc import Callable

import tensorflow as tf
import tf_keras

from detector import winograd_large

# Gathering the neighbourhood of a cell costs more than TensorFlow's own gradient spends on it, so that is
# taken where more than this part of the cells counts.
_LARGEST_SPARSE_PART = 0.5

_OPERATION = {"strides": [1, 1, 1, 1], "padding": "SAME"}


def differentiated_part(cells: int, drawn: int) -> float:
    """Return how much of a gradient is computed at most where a loss draws `drawn` of `cells`, 0 … 1."""
    part = drawn / cells
    return part if part <= _LARGEST_SPARSE_PART else 1.0


class SparselyTrainedConv2D(tf_keras.layers.Conv2D):
    """A convolution of stride 1 and padding "SAME", for outputs that a loss samples.

    Computes what `Conv2D` does, forwards and backwards up to rounding.  The RPN's losses draw 256 anchors an
    image, so most cells of the output have a gradient of exactly zero; the gradients towards kernel and
    input are made of the others alone.
    """

    def __init__(self, filters: int, kernel_size: int, winograd: bool = True, **arguments):
        """`arguments` are those of `Conv2D`, save strides, padding, dilations, groups and data format.

        `winograd` is whether `detector.winograd_large` may compute the outputs where that pays.
        """
        super().__init__(filters, kernel_size, padding="same", data_format="channels_last", **arguments)
        self.winograd = winograd

    def convolution_op(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """Convolve `inputs` [B, H, W, channels] with `kernel` [k, k, channels, filters]."""
        # Under mixed precision the kernel is a variable that is cast where it is read.
        kernel = tf.convert_to_tensor(kernel)
        may = self.winograd and winograd_large.pays(inputs, kernel.shape)
        return _convolution(inputs, kernel, winograd_large.convolve if may else _directly)


def _directly(inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    return tf.nn.conv2d(inputs, kernel, 1, "SAME")


def _convolution(
    inputs: tf.Tensor, kernel: tf.Tensor, convolve: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
) -> tf.Tensor:
    """Return what `convolve` computes, with the gradients of the cells that count."""

    @tf.custom_gradient
    def convolution(inputs: tf.Tensor, kernel: tf.Tensor):
        def gradients(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            counts = tf.reduce_any(upstream != 0, axis=-1)
            cells = tf.where(counts)
            is_sparse = tf.reduce_mean(tf.cast(counts, tf.float32)) <= _LARGEST_SPARSE_PART
            # Two decisions, so that TensorFlow leaves out the gradient that nothing asks for.
            return (
                tf.cond(
                    is_sparse,
                    lambda: _towards_inputs(inputs, kernel, upstream, cells),
                    lambda: tf.raw_ops.Conv2DBackpropInput(
                        input_sizes=tf.shape(inputs), filter=kernel, out_backprop=upstream, **_OPERATION
                    ),
                ),
                tf.cond(
                    is_sparse,
                    lambda: _towards_kernel(inputs, kernel, upstream, cells),
                    lambda: tf.raw_ops.Conv2DBackpropFilter(
                        input=inputs, filter_sizes=tf.shape(kernel), out_backprop=upstream, **_OPERATION
                    ),
                ),
            )

        return convolve(inputs, kernel), gradients

    return convolution(inputs, kernel)


def _towards_kernel(inputs: tf.Tensor, kernel: tf.Tensor, upstream: tf.Tensor, cells: tf.Tensor) -> tf.Tensor:
    """Return the gradient towards the kernel from the `cells` [N, 3] (image, row, column) alone."""
    height, width, channels, _ = kernel.shape
    padded = tf.pad(inputs, _padding(kernel))
    patches = tf.gather(tf.reshape(padded, [-1, channels]), _neighbours(cells, kernel, tf.shape(padded)))
    flat = tf.matmul(
        tf.reshape(patches, [-1, height * width * channels]),
        tf.gather_nd(upstream, cells),
        transpose_a=True,
    )
    return tf.reshape(flat, kernel.shape)


def _towards_inputs(inputs: tf.Tensor, kernel: tf.Tensor, upstream: tf.Tensor, cells: tf.Tensor) -> tf.Tensor:
    """Return the gradient towards the inputs from the `cells` [N, 3] (image, row, column) alone."""
    height, width, channels, filters = kernel.shape
    padding = _padding(kernel)
    shape = tf.shape(inputs)
    padded_shape = shape + tf.reduce_sum(padding, axis=1)
    patches = tf.matmul(tf.gather_nd(upstream, cells), tf.reshape(kernel, [-1, filters]), transpose_b=True)
    # Neighbourhoods overlap: they are added up in float32, whatever they are computed in.
    padded = tf.math.unsorted_segment_sum(
        tf.cast(tf.reshape(patches, [-1, height * width, channels]), tf.float32),
        _neighbours(cells, kernel, padded_shape),
        tf.reduce_prod(padded_shape[:3]),
    )
    unpadded = tf.slice(tf.reshape(padded, padded_shape), [before for before, _ in padding], shape)
    return tf.cast(unpadded, inputs.dtype)


def _padding(kernel: tf.Tensor) -> list[list[int]]:
    """Return what "SAME" pads the input with for stride 1, before and after, by axis."""
    height, width, _, _ = kernel.shape
    return [[0, 0], [(height - 1) // 2, height // 2], [(width - 1) // 2, width // 2], [0, 0]]


def _neighbours(cells: tf.Tensor, kernel: tf.Tensor, padded_shape: tf.Tensor) -> tf.Tensor:
    """Return int64 [N, height * width]: where the inputs of `cells` are in the flattened padded input."""
    height, width, _, _ = kernel.shape
    rows, columns = tf.unstack(tf.cast(padded_shape[1:3], tf.int64))
    corner = (cells[:, 0] * rows + cells[:, 1]) * columns + cells[:, 2]
    offsets = tf.range(height, dtype=tf.int64)[:, tf.newaxis] * columns + tf.range(width, dtype=tf.int64)
    return corner[:, tf.newaxis] + tf.reshape(offsets, [1, -1])

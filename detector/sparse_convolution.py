"""A convolution whose gradients cost what the cells cost that a loss looks at."""

import tensorflow as tf
import tf_keras

# Gathering the neighbourhood of a cell costs more than TensorFlow's own gradient spends on it, so that is
# taken where more than this part of the cells counts.
_LARGEST_SPARSE_PART = 0.5


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

    def __init__(self, filters: int, kernel_size: int, **arguments):
        """`arguments` are those of `Conv2D`, save strides, padding, dilations, groups and data format."""
        super().__init__(filters, kernel_size, padding="same", data_format="channels_last", **arguments)

    def convolution_op(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """Convolve `inputs` [B, H, W, channels] with `kernel` [k, k, channels, filters]."""
        # Under mixed precision the kernel is a variable that is cast where it is read.
        return _convolution(inputs, tf.convert_to_tensor(kernel))


@tf.custom_gradient
def _convolution(inputs: tf.Tensor, kernel: tf.Tensor):
    def gradients(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        counts = tf.reduce_any(upstream != 0, axis=-1)
        part = tf.reduce_mean(tf.cast(counts, tf.float32))
        return tf.cond(
            part <= _LARGEST_SPARSE_PART,
            lambda: _sparse_gradients(inputs, kernel, upstream, tf.where(counts)),
            lambda: _dense_gradients(inputs, kernel, upstream),
        )

    return tf.nn.conv2d(inputs, kernel, 1, "SAME"), gradients


def _dense_gradients(
    inputs: tf.Tensor, kernel: tf.Tensor, upstream: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    operation = {"strides": [1, 1, 1, 1], "padding": "SAME"}
    return (
        tf.raw_ops.Conv2DBackpropInput(
            input_sizes=tf.shape(inputs), filter=kernel, out_backprop=upstream, **operation
        ),
        tf.raw_ops.Conv2DBackpropFilter(
            input=inputs, filter_sizes=tf.shape(kernel), out_backprop=upstream, **operation
        ),
    )


def _sparse_gradients(
    inputs: tf.Tensor, kernel: tf.Tensor, upstream: tf.Tensor, cells: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the gradients towards inputs and kernel from the `cells` [N, 3] (image, row, column) alone."""
    height, width, channels, filters = kernel.shape
    before = [(height - 1) // 2, (width - 1) // 2]
    padded = tf.pad(inputs, [[0, 0], [before[0], height // 2], [before[1], width // 2], [0, 0]])
    padded_shape = tf.shape(padded, tf.int64)
    # Where a cell's neighbourhood lies among the rows of the padded input: [N, k * k].
    corner = (cells[:, 0] * padded_shape[1] + cells[:, 1]) * padded_shape[2] + cells[:, 2]
    offsets = tf.range(height, dtype=tf.int64)[:, tf.newaxis] * padded_shape[2] + tf.range(
        width, dtype=tf.int64
    )
    rows = corner[:, tf.newaxis] + tf.reshape(offsets, [1, -1])

    cell_gradients = tf.gather_nd(upstream, cells)
    flat_kernel = tf.reshape(kernel, [-1, filters])
    patches = tf.gather(tf.reshape(padded, [-1, channels]), rows)
    towards_kernel = tf.matmul(
        tf.reshape(patches, [-1, height * width * channels]), cell_gradients, transpose_a=True
    )
    # Neighbourhoods overlap: they are added up in float32, whatever they are computed in.
    towards_patches = tf.matmul(cell_gradients, flat_kernel, transpose_b=True)
    towards_padded = tf.math.unsorted_segment_sum(
        tf.cast(tf.reshape(towards_patches, [-1, height * width, channels]), tf.float32),
        rows,
        tf.reduce_prod(padded_shape[:3]),
    )
    shape = tf.shape(inputs)
    towards_inputs = tf.slice(
        tf.reshape(towards_padded, padded_shape),
        [0, *before, 0],
        shape,
    )
    return tf.cast(towards_inputs, inputs.dtype), tf.reshape(towards_kernel, kernel.shape)

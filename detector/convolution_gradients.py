"""Gradients of convolutions as matrix products, for CPUs on which TensorFlow's own are slow.

Without oneDNN, which it leaves off on CPUs without AVX-512, TensorFlow copies maps into columns for a
convolution's gradients, or products back out of columns, one thread an image.  Forwards it does not: for the
64 crops of 4x4 cells in a ResNet's tower the gradient of a 1x1 convolution towards its inputs takes 12 times
the forward pass.  A product of what is in memory anyway gives the same:

    1x1     both: cells [B * H * W, channels] and kernel [channels, filters] are matrices as they are
    3x3     towards the kernel, on large maps: for each of its nine places, of the shifted cells

`docs/benchmarks.md` says what that saves.
"""

import tensorflow as tf

from detector.hardware import has_onednn

# Cells of a map from which on nine products are quicker than TensorFlow's columns.
_LARGE_MAP = 64 * 64


def pays(inputs: tf.Tensor, kernel_size: tuple[int, int], stride: int) -> bool:
    """Whether `convolve` has quicker gradients than TensorFlow for maps like `inputs` [B, H, W, channels].

    In float32, and on a CPU without oneDNN, whose gradients are products already, as are GPUs'.
    """
    if inputs.dtype != tf.float32 or has_onednn() or tf.config.list_logical_devices("GPU"):
        return False
    _, height, width, _ = inputs.shape
    is_large = height is not None and width is not None and height * width >= _LARGE_MAP
    return kernel_size == (1, 1) or (kernel_size == (3, 3) and stride == 1 and is_large)


def convolve(inputs: tf.Tensor, kernel: tf.Tensor, stride: int) -> tf.Tensor:
    """Convolve as `tf.nn.conv2d` with padding "SAME".

    Args:
        inputs: float32 [B, H, W, channels].
        kernel: float32 [1, 1, channels, filters], or [3, 3, channels, filters] with stride 1.
        stride: of rows and columns alike.

    Returns:
        float32 [B, ceil(H / stride), ceil(W / stride), filters].
    """

    @tf.custom_gradient
    def convolution(inputs: tf.Tensor, kernel: tf.Tensor):
        def gradients(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            # What nothing asks for of these, TensorFlow leaves out.
            if kernel.shape[0] == 1:
                return _towards_inputs_of_1x1(inputs, kernel, upstream, stride), _towards_1x1_kernel(
                    inputs, upstream, stride
                )
            towards_inputs = tf.raw_ops.Conv2DBackpropInput(
                input_sizes=tf.shape(inputs),
                filter=kernel,
                out_backprop=upstream,
                strides=[1, 1, 1, 1],
                padding="SAME",
            )
            return towards_inputs, _towards_3x3_kernel(inputs, upstream)

        return tf.nn.conv2d(inputs, kernel, stride, "SAME"), gradients

    return convolution(inputs, kernel)


def _towards_inputs_of_1x1(
    inputs: tf.Tensor, kernel: tf.Tensor, upstream: tf.Tensor, stride: int
) -> tf.Tensor:
    matrix = tf.reshape(kernel, kernel.shape[2:])
    cells = tf.matmul(_as_matrix(upstream), matrix, transpose_b=True)
    seen = tf.reshape(cells, [*_shape(upstream)[:3], inputs.shape[-1]])
    if stride == 1:
        return seen
    # Zero where the stride passes by.
    begin, shape, strides = tf.zeros([4], tf.int32), tf.shape(inputs), tf.constant([1, stride, stride, 1])
    return tf.raw_ops.StridedSliceGrad(shape=shape, begin=begin, end=shape, strides=strides, dy=seen)


def _towards_1x1_kernel(inputs: tf.Tensor, upstream: tf.Tensor, stride: int) -> tf.Tensor:
    seen = inputs[:, ::stride, ::stride] if stride > 1 else inputs
    return _product(seen, upstream)[tf.newaxis, tf.newaxis]


def _towards_3x3_kernel(inputs: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
    height, width = inputs.shape[1:3]
    # After the gradient has come: what depends on the inputs alone would be made in the forward pass, and lie
    # in memory nine times until then.
    with tf.control_dependencies([upstream]):
        padded = tf.pad(inputs, [[0, 0], [1, 1], [1, 1], [0, 0]])
    places = [
        _product(padded[:, row : row + height, column : column + width], upstream)
        for row in range(3)
        for column in range(3)
    ]
    return tf.reshape(tf.stack(places), [3, 3, inputs.shape[-1], upstream.shape[-1]])


def _product(maps: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
    """Return [channels, filters]: how the cells of both go together, over all of them."""
    return tf.matmul(_as_matrix(maps), _as_matrix(upstream), transpose_a=True)


def _as_matrix(maps: tf.Tensor) -> tf.Tensor:
    return tf.reshape(maps, [-1, maps.shape[-1]])


def _shape(maps: tf.Tensor) -> list[int | tf.Tensor]:
    """Return [B, H, W, channels]: integers as far as they are known when the graph is made."""
    known = maps.shape.as_list()
    if None not in known:
        return known
    return [
        found if side is None else side
        for side, found in zip(known, tf.unstack(tf.shape(maps), num=4), strict=True)
    ]

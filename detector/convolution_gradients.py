"""Convolutions with quick gradients, for CPUs on which TensorFlow's own are slow.

Without oneDNN, which it leaves off on CPUs without AVX-512, TensorFlow copies maps into columns for a
convolution's gradients, or products back out of columns, one thread an image.  Forwards it does not: for the
64 crops of 4x4 cells in a ResNet's tower the gradient of a 1x1 convolution towards its inputs takes 12 times
the forward pass.  A product of what is in memory anyway, or a forward pass, gives the same:

    1x1                the convolution itself: cells [B * H * W, channels] and kernel [channels, filters] are
                       matrices, and so are the gradients' factors
    3x3, large maps    towards the inputs: a convolution with the kernel turned around
                       towards the kernel: for each of its nine places, a product of the shifted cells
    3x3 of stride 2,   towards the inputs: cells in odd and in even rows and columns each meet some of the
    odd maps           kernel's places alone, in four convolutions

`docs/benchmarks.md` says what that saves.
"""

import tensorflow as tf

from detector.cpu import has_onednn

# Cells of a map from which on that is quicker than TensorFlow's columns for 3x3 kernels of stride 1.
_LARGE_MAP = 64 * 64


def pays(inputs: tf.Tensor, kernel_size: tuple[int, int], stride: int) -> bool:
    """Whether `convolve` has quicker gradients than TensorFlow for maps like `inputs` [B, H, W, channels].

    In float32, and on a CPU without oneDNN, whose gradients are products already, as are GPUs'.
    """
    if inputs.dtype != tf.float32 or has_onednn() or tf.config.list_logical_devices("GPU"):
        return False
    if kernel_size == (1, 1):
        return True
    _, height, width, _ = inputs.shape
    if kernel_size != (3, 3) or height is None or width is None:
        return False
    if stride == 1:
        return height * width >= _LARGE_MAP
    return stride == 2 and height % 2 == 1 and width % 2 == 1


def convolve(inputs: tf.Tensor, kernel: tf.Tensor, stride: int) -> tf.Tensor:
    """Convolve as `tf.nn.conv2d` with padding "SAME".

    Args:
        inputs: float32 [B, H, W, channels].
        kernel: float32 [1, 1, channels, filters], or [3, 3, channels, filters] for what `pays`.
        stride: of rows and columns alike.

    Returns:
        float32 [B, ceil(H / stride), ceil(W / stride), filters].
    """
    if kernel.shape[0] == 1:
        # TensorFlow differentiates it with two more, in a smaller graph than that of any gradient of our own.
        seen = inputs[:, ::stride, ::stride] if stride > 1 else inputs
        return tf.raw_ops.Einsum(inputs=[seen, tf.squeeze(kernel, [0, 1])], equation="bhwi,io->bhwo")

    @tf.custom_gradient
    def convolution(inputs: tf.Tensor, kernel: tf.Tensor):
        def gradients(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            # What nothing asks for of these, TensorFlow leaves out.
            if stride == 1:
                return _towards_inputs_of_3x3(kernel, upstream), _towards_3x3_kernel(inputs, upstream)
            towards_kernel = tf.raw_ops.Conv2DBackpropFilter(
                input=inputs,
                filter_sizes=kernel.shape,
                out_backprop=upstream,
                strides=[1, stride, stride, 1],
                padding="SAME",
            )
            return _towards_odd_inputs_of_3x3(inputs, kernel, upstream), towards_kernel

        return tf.nn.conv2d(inputs, kernel, stride, "SAME"), gradients

    return convolution(inputs, kernel)


def _towards_inputs_of_3x3(kernel: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
    return tf.nn.conv2d(upstream, _transposed(kernel)[::-1, ::-1], 1, "SAME")


def _towards_odd_inputs_of_3x3(inputs: tf.Tensor, kernel: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
    """Return the gradient for stride 2, where "SAME" pads an odd number of cells by one at both ends.

    An output has its middle on an even row, so that an even row meets the kernel's middle row alone, and an
    odd one the last row of the output above and the first of that below.
    """
    kernel = _transposed(kernel)
    of_row_pairs = []
    for rows in (slice(1, 2), slice(2, None, -2)):
        of_pairs = [
            tf.nn.conv2d(upstream, kernel[rows, columns], 1, "SAME")
            for columns in (slice(1, 2), slice(2, None, -2))
        ]
        of_row_pairs.append(tf.stack(of_pairs, axis=3))
    count, height, width, _ = _shape(upstream)
    cells = tf.reshape(tf.stack(of_row_pairs, axis=2), [count, 2 * height, 2 * width, inputs.shape[-1]])
    # Without the odd row and column that would follow the last even one.
    return cells[:, : inputs.shape[1], : inputs.shape[2]]


def _transposed(kernel: tf.Tensor) -> tf.Tensor:
    return tf.transpose(kernel, [0, 1, 3, 2])


def _towards_3x3_kernel(inputs: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
    height, width = inputs.shape[1:3]
    # After the gradient has come: what depends on the inputs alone would be made in the forward pass, and lie
    # in memory nine times until then.
    with tf.control_dependencies([upstream]):
        padded = tf.pad(inputs, [[0, 0], [1, 1], [1, 1], [0, 0]])
    cells = _as_matrix(upstream)
    # One constant each for all places: a graph of fewer operations is traced sooner.
    window, matrix = tf.constant([-1, height, width, -1]), tf.constant([-1, inputs.shape[-1]])
    places = [
        tf.matmul(tf.reshape(tf.slice(padded, [0, row, column, 0], window), matrix), cells, transpose_a=True)
        for row in range(3)
        for column in range(3)
    ]
    return tf.reshape(tf.concat(places, axis=0), [3, 3, inputs.shape[-1], upstream.shape[-1]])


def _as_matrix(maps: tf.Tensor) -> tf.Tensor:
    """Return the cells of all maps, [cells, channels]."""
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

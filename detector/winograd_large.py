"""3x3 convolutions of large maps with a quarter of the multiplications, on a CPU.

What `detector.winograd` does for many small maps, for the RPN's few large ones.  Rows and columns are
transformed one after the other, so that the transforms grow with a map's sides and not with its cells.  The
kernel's transform is four times the kernel, and costs the same for a small map and for a large one.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from detector.cpu import has_onednn
from detector.minimal_filtering import TAPS, TILE, along_axis, powers

# Below, the transforms cost what the products save: the maps', and the kernel's.
_FEWEST_CHANNELS = 192
_FEWEST_TILES = 64


def pays(inputs: tf.Tensor, kernel_shape: Sequence[int]) -> bool:
    """Whether `convolve` is quicker than TensorFlow for maps like `inputs` [B, H, W, channels].

    Only in float32 and on a CPU: the transforms need the digits, and GPUs' libraries choose for themselves.
    """
    count, height, width, _ = inputs.shape
    return (
        tuple(kernel_shape[:2]) == (TAPS, TAPS)
        and min(kernel_shape[2:]) >= _FEWEST_CHANNELS
        and height is not None
        and width is not None
        and (count or 1) * _axis(height).tiles * _axis(width).tiles >= _FEWEST_TILES
        and inputs.dtype == tf.float32
        and not tf.config.list_logical_devices("GPU")
    )


def convolve(inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """Convolve with stride 1 and padding "SAME": `tf.nn.conv2d` up to rounding.

    For a caller that has gradients of its own: those of these operations keep all that they compute.

    Args:
        inputs: float32 [B, H, W, channels], H and W static.
        kernel: float32 [3, 3, channels, filters].

    Returns:
        float32 [B, H, W, filters].
    """
    _, height, width, channels = inputs.shape
    filters = kernel.shape[-1]
    rows, columns = _axis(height), _axis(width)
    points = len(rows.kernel)

    cells = tf.reshape(tf.transpose(inputs, [1, 2, 0, 3]), [height, -1])
    cells = tf.reshape(tf.matmul(rows.inputs, cells), [len(rows.inputs), width, -1])
    cells = tf.reshape(tf.transpose(cells, [1, 0, 2]), [width, -1])
    values = tf.reshape(tf.matmul(columns.inputs, cells), [points, columns.tiles, points, rows.tiles, -1])
    values = tf.reshape(tf.transpose(values, [2, 0, 1, 3, 4]), [points**2, -1, channels])

    # Not before its turn: nothing else would keep what is four times the kernel from being made at once.
    with tf.control_dependencies([values]):
        kernel = tf.identity(kernel)
    of_kernel = tf.matmul(np.kron(rows.kernel, columns.kernel), tf.reshape(kernel, [TAPS**2, -1]))
    products = _products(values, tf.reshape(of_kernel, [points**2, channels, filters]))

    products = tf.reshape(products, [points, points, columns.tiles, rows.tiles, -1])
    products = tf.reshape(tf.transpose(products, [1, 2, 0, 3, 4]), [points * columns.tiles, -1])
    outputs = tf.reshape(tf.matmul(columns.outputs, products), [width, points * rows.tiles, -1])
    outputs = tf.reshape(tf.transpose(outputs, [1, 0, 2]), [points * rows.tiles, -1])
    outputs = tf.reshape(tf.matmul(rows.outputs, outputs), [height, width, -1, filters])
    return tf.transpose(outputs, [2, 0, 1, 3])


def _products(left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
    """Return [pairs, tiles, filters], the products of the pairs' matrices.

    TensorFlow's own kernel for many products at once takes up to twice as long as one after the other.
    """
    if has_onednn():
        return tf.matmul(left, right)
    return tf.stack([tf.matmul(a, b) for a, b in zip(tf.unstack(left), tf.unstack(right), strict=True)])


@dataclass(frozen=True)
class _Axis:
    """The constant matrices for an axis: `inputs` [points * tiles, side] and `outputs`, transposed.

    `kernel` [points, 3] evaluates three taps.  The last tile may lie over the edge.
    """

    inputs: np.ndarray
    kernel: np.ndarray
    outputs: np.ndarray
    tiles: int


@functools.cache
def _axis(side: int) -> _Axis:
    tiles = -(-side // TILE)
    at_points = along_axis(tiles * TILE)
    every = [tile for tiles_at_point in at_points.values() for tile in tiles_at_point]
    return _Axis(
        inputs=np.array([tile.inputs[:side] for tile in every], np.float32),
        kernel=np.array([powers(point, TAPS) for point in at_points], np.float32),
        outputs=np.array([tile.outputs[:side] for tile in every], np.float32).T,
        tiles=tiles,
    )

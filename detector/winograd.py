"""3x3 convolutions of small maps with a third of the multiplications, on a CPU.

Winograd's minimal filtering, as Lavin and Gray apply it to convolutional networks ("Fast Algorithms for
Convolutional Neural Networks", arXiv:1509.09308).  A map is cut into tiles of up to 4x4 outputs.  A tile's
inputs and the kernel are taken as polynomials and evaluated at the same points, where a convolution is a
product: 6 x 6 of them make 16 outputs, of which the direct way makes each of 9.  The products of all tiles at
one pair of points, over all channels, are one matrix product.

What is left to pay are the transforms: matrix products with small constant matrices.  The kernel's does not
depend on the number of maps.  So it pays for many small maps with many channels: in the box classifier's
tower, which runs on tens to hundreds of crops of a few cells a side.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from detector.cpu import has_onednn
from detector.minimal_filtering import TAPS, TILE, along_axis, powers

# Transforms are dense matrices over a map's cells, whose number grows with the square of the cells.
_LARGEST_SIDE = 8
# Below, the transforms of maps cost what the products save.
_FEWEST_CHANNELS = 64
# Below, the kernel's transform does: where the gradients need it, too, and for the outputs alone.
_FEWEST_TILES_IN_TRAINING = 64
_FEWEST_TILES = 128


def pays(inputs: tf.Tensor, kernel_shape: Sequence[int], training: bool = False) -> bool:
    """Whether `convolve` is quicker than TensorFlow for maps like `inputs` [B, H, W, channels].

    Only in float32 and on a CPU: the transforms need the digits, and GPUs' libraries choose for themselves.
    """
    _, height, width, _ = inputs.shape
    return (
        tuple(kernel_shape[:2]) == (TAPS, TAPS)
        and min(kernel_shape[2:]) >= _FEWEST_CHANNELS
        and height is not None
        and width is not None
        and max(height, width) <= _LARGEST_SIDE
        and _tiles(inputs) >= (_FEWEST_TILES_IN_TRAINING if training else _FEWEST_TILES)
        and inputs.dtype == tf.float32
        and not tf.config.list_logical_devices("GPU")
    )


def convolve(inputs: tf.Tensor, kernel: tf.Tensor | tf.Variable, is_frozen: bool = False) -> tf.Tensor:
    """Convolve with stride 1 and padding "SAME": `tf.nn.conv2d` up to rounding, and so are the gradients.

    Args:
        inputs: float32 [B, H, W, channels], H and W static and small.
        kernel: float32 [3, 3, channels, filters].
        is_frozen: for a variable that gets no gradient and is not expected to change: what it is now is
            transformed when a `tf.function` is traced, for all its runs.  Of a run that finds it changed only
            the time suffers.

    Returns:
        float32 [B, H, W, filters].
    """
    transforms = _transforms(*inputs.shape[1:3])
    kept = _Kept.of(transforms, kernel) if is_frozen and not tf.executing_eagerly() else None
    kernel = tf.convert_to_tensor(kernel)

    def kernel_parts(kernel: tf.Tensor, after: tf.Tensor) -> list[tf.Tensor]:
        # A kernel is there from the start: nothing else would keep its transform, which may be larger than
        # all else that the layer takes, from being made long before its turn.
        with tf.control_dependencies([after]):
            kernel = tf.identity(kernel)
            return transforms.part_kernel(kept.of_kernel(kernel) if kept else transforms.of_kernel(kernel))

    @tf.custom_gradient
    def convolution(inputs: tf.Tensor, kernel: tf.Tensor = kernel):
        of_inputs = transforms.of_maps(transforms.inputs, inputs)
        of_kernel = kernel_parts(kernel, inputs)

        def gradients(upstream: tf.Tensor) -> tf.Tensor | tuple[tf.Tensor, tf.Tensor]:
            of_products = transforms.of_maps(transforms.outputs.T, upstream)
            # Transformed once more instead of lying in memory until here.
            again = of_kernel if kept else kernel_parts(kernel, upstream)
            towards_inputs = [
                tf.matmul(a, b, transpose_b=True) for a, b in zip(of_products, again, strict=True)
            ]
            of_maps = transforms.to_maps(transforms.inputs.T, towards_inputs, inputs.shape)
            if is_frozen:
                return of_maps
            # Not before: the transform and these products, as large as it is, would be a step's peak.
            with tf.control_dependencies([of_maps]):
                towards_kernel = [
                    tf.matmul(a, b, transpose_a=True) for a, b in zip(of_inputs, of_products, strict=True)
                ]
                return of_maps, transforms.to_kernel(towards_kernel, kernel.shape)

        products = [tf.matmul(a, b) for a, b in zip(of_inputs, of_kernel, strict=True)]
        outputs_shape = [*inputs.shape[:3], kernel.shape[-1]]
        return transforms.to_maps(transforms.outputs, products, outputs_shape), gradients

    return convolution(inputs) if is_frozen else convolution(inputs, kernel)


def _tiles(maps: tf.Tensor) -> float:
    """Return how many tiles the maps are cut into; of an unknown number of maps, infinitely many."""
    count, height, width, _ = maps.shape
    return np.inf if count is None else count * -(-height // TILE) * -(-width // TILE)


@dataclass(frozen=True)
class _Transforms:
    """The constant matrices for maps of one size.

    A row of `inputs` [rows, H * W], and a column of `outputs` [H * W, rows], is one tile at one pair of
    points.  They are in the order of the pairs, and `sizes` says how many tiles each pair has: a tile that is
    cut short has fewer points.  `kernel` [pairs, 9] has a row for each pair.
    """

    inputs: np.ndarray
    kernel: np.ndarray
    outputs: np.ndarray
    sizes: tuple[int, ...]

    def of_kernel(self, kernel: tf.Tensor) -> tf.Tensor:
        """Return [pairs, channels, filters]."""
        taps = tf.reshape(kernel, [TAPS * TAPS, -1])
        return tf.reshape(tf.matmul(self.kernel, taps), [len(self.kernel), *kernel.shape[2:]])

    def to_kernel(self, parts: list[tf.Tensor], shape: Sequence[int]) -> tf.Tensor:
        """Return a kernel of `shape` from its parts: the transpose of `of_kernel` and `part_kernel`."""
        rows = tf.reshape(_joined(parts), [len(self.kernel), -1])
        return tf.reshape(tf.matmul(self.kernel.T, rows), shape)

    def part_kernel(self, matrices: tf.Tensor) -> list[tf.Tensor]:
        """Part [pairs, channels, filters] as `of_maps` parts maps."""
        of_groups = tf.split(matrices, [pairs for pairs, _ in self._groups])
        return [part for group in of_groups for part in _parts(group)]

    def of_maps(self, matrix: np.ndarray, maps: tf.Tensor) -> list[tf.Tensor]:
        """Return the maps at all pairs of points in parts, from `matrix` [rows, H * W].

        A part is [tiles * B, channels] of one pair, or [pairs, tiles * B, channels] of all that have as many
        tiles, as `_parts` says.
        """
        cells = tf.reshape(tf.transpose(maps, [1, 2, 0, 3]), [matrix.shape[1], -1])
        rows = tf.matmul(matrix, cells)
        parts, start = [], 0
        for pairs, tiles in self._groups:
            of_pairs = rows[start : start + tiles * pairs]
            parts += _parts(tf.reshape(of_pairs, [pairs, -1, maps.shape[-1]]))
            start += tiles * pairs
        return parts

    def to_maps(self, matrix: np.ndarray, parts: list[tf.Tensor], shape: Sequence[int | None]) -> tf.Tensor:
        """Return maps of `shape` [B, H, W, channels]: the transpose of `of_maps` of the transposed matrix."""
        count, height, width, channels = shape
        rows = tf.reshape(_joined(parts), [matrix.shape[1], -1])
        cells = tf.reshape(tf.matmul(matrix, rows), [height, width, -1 if count is None else count, channels])
        return tf.transpose(cells, [2, 0, 1, 3])

    @property
    def _groups(self) -> list[tuple[int, int]]:
        """How many pairs have how many tiles; such pairs are side by side."""
        return [(self.sizes.count(tiles), tiles) for tiles in sorted(set(self.sizes), reverse=True)]


def _parts(matrices: tf.Tensor) -> list[tf.Tensor]:
    """Return what one operation is to multiply: [pairs, ...] whole, or matrix by matrix.

    oneDNN multiplies many at once as quickly as one after the other, which saves hundreds of operations.
    TensorFlow's own kernel takes up to twice as long for it.
    """
    return [matrices] if has_onednn() else tf.unstack(matrices)


def _joined(parts: list[tf.Tensor]) -> tf.Tensor:
    """Return the rows of all parts, [rows, columns]."""
    rows = [part if part.shape.rank == 2 else tf.reshape(part, [-1, part.shape[-1]]) for part in parts]
    return tf.concat(rows, axis=0)


@dataclass(frozen=True)
class _Kept:
    """A kernel as it was when a function was traced, and its transform."""

    transforms: _Transforms
    kernel: tf.Tensor
    transformed: tf.Tensor

    @classmethod
    def of(cls, transforms: _Transforms, variable: tf.Variable) -> "_Kept":
        with tf.init_scope():  # before and outside of the function's runs
            kernel = tf.identity(variable)
            return cls(transforms, kernel, transforms.of_kernel(kernel))

    def of_kernel(self, kernel: tf.Tensor) -> tf.Tensor:
        """Return [pairs, channels, filters] of the kernel as it is now."""
        return tf.cond(
            tf.reduce_all(kernel == self.kernel),
            lambda: self.transformed,
            lambda: self.transforms.of_kernel(kernel),
        )


@functools.cache
def _transforms(height: int, width: int) -> _Transforms:
    rows, columns = along_axis(height), along_axis(width)
    pairs = [(row, column) for row in rows for column in columns]
    # Pairs of as many tiles next to each other, so that few operations part them.
    pairs.sort(key=lambda pair: -len(rows[pair[0]]) * len(columns[pair[1]]))
    tiles = [
        (row_tile, column_tile)
        for row, column in pairs
        for row_tile in rows[row]
        for column_tile in columns[column]
    ]
    return _Transforms(
        inputs=_float32([np.kron(row.inputs, column.inputs) for row, column in tiles]),
        kernel=_float32([np.kron(powers(row, TAPS), powers(column, TAPS)) for row, column in pairs]),
        outputs=_float32([np.kron(row.outputs, column.outputs) for row, column in tiles]).T,
        sizes=tuple(len(rows[row]) * len(columns[column]) for row, column in pairs),
    )


def _float32(rows: list[np.ndarray]) -> np.ndarray:
    return np.array(rows, np.float32)

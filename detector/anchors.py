"""The RPN's anchors: the same few boxes at every cell of the feature map."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf


@dataclass(frozen=True)
class AnchorGrid:
    """Sizes and placing of the anchors, in pixels of the canvas.

    An anchor of scale s and aspect ratio r (width / height) is base * s / sqrt(r) high and
    base * s * sqrt(r) wide.  The defaults are those of the published Faster R-CNN configurations.
    """

    scales: Sequence[float] = (0.25, 0.5, 1.0, 2.0)
    aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0)
    base_size_hw: tuple[float, float] = (256.0, 256.0)
    stride_hw: tuple[float, float] = (16.0, 16.0)
    offset_hw: tuple[float, float] = (0.0, 0.0)

    @property
    def per_cell(self) -> int:
        """The number of anchors at each cell."""
        return len(self.scales) * len(self.aspect_ratios)

    def __call__(self, grid_hw: Sequence[int | tf.Tensor]) -> tf.Tensor:
        """Return the anchors of a feature map of `grid_hw` cells: float32 [h * w * per_cell, 4], yxyx pixels.

        They run over rows, then columns, then aspect ratios, then scales, as the RPN's channels do.
        Anchors may reach beyond the canvas.
        """
        ratios, scales = (
            grid.ravel() for grid in np.meshgrid(self.aspect_ratios, self.scales, indexing="ij")
        )
        sizes_hw = np.stack(
            [
                scales / np.sqrt(ratios) * self.base_size_hw[0],
                scales * np.sqrt(ratios) * self.base_size_hw[1],
            ],
            axis=-1,
        ).astype(np.float32)
        y, x = (
            tf.range(cells, dtype=tf.float32) * stride + offset
            for cells, stride, offset in zip(
                (tf.cast(cells, tf.float32) for cells in grid_hw), self.stride_hw, self.offset_hw, strict=True
            )
        )
        centres_yx = tf.stack(tf.meshgrid(y, x, indexing="ij"), axis=-1)[:, :, tf.newaxis, :]
        anchors = tf.concat([centres_yx - sizes_hw / 2.0, centres_yx + sizes_hw / 2.0], axis=-1)
        return tf.reshape(anchors, [-1, 4])


def inside_window(anchors_yxyx: tf.Tensor, window_hw: Sequence[int | tf.Tensor]) -> tf.Tensor:
    """Return bool [A]: which anchors [A, 4] lie wholly in (0, 0, height, width) pixels."""
    height_width = tf.cast(tf.stack(window_hw), anchors_yxyx.dtype)
    return tf.reduce_all(anchors_yxyx[:, :2] >= 0.0, axis=-1) & tf.reduce_all(
        anchors_yxyx[:, 2:] <= height_width, axis=-1
    )

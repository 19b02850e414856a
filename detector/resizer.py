"""The image resizers of the Object Detection API: keep-aspect (min, max, pad) and fixed shape.

One function serves training, evaluation and the SavedModel.  Its bilinear sampling is that of
`tf.compat.v1.image.resize` with `align_corners=False` (pixel corners, not pixel centres, are aligned),
because that is what the published checkpoints were trained with.
"""

from collections.abc import Callable
from dataclasses import dataclass

import tensorflow as tf


@dataclass(frozen=True)
class FixedShapeResizer:
    """Stretches every image to `height` x `width` pixels."""

    height: int
    width: int

    @property
    def canvas_hw(self) -> tuple[int | None, int | None]:
        """The canvas's height and width where they do not depend on the image."""
        return self.height, self.width

    @property
    def nominal_hw(self) -> tuple[int, int]:
        """A canvas to reckon costs with."""
        return self.height, self.width

    def __call__(self, image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Resize `image` [h, w, 3], any dtype, to (float32 [height, width, 3], its size int32 [2])."""
        size_hw = tf.constant([self.height, self.width], tf.int32)
        return _bilinear(image, size_hw, self.canvas_hw), size_hw


@dataclass(frozen=True)
class KeepAspectRatioResizer:
    """Scales the shorter side to `min_dimension` unless the longer would pass `max_dimension`.

    With `pad` the result is padded at the bottom and right with zeros to `max_dimension` squared.
    """

    min_dimension: int
    max_dimension: int
    pad: bool = False

    @property
    def canvas_hw(self) -> tuple[int | None, int | None]:
        """The canvas's height and width where they do not depend on the image."""
        return (self.max_dimension, self.max_dimension) if self.pad else (None, None)

    @property
    def nominal_hw(self) -> tuple[int, int]:
        """A canvas to reckon costs with: the padded one, or that of a 4:3 image."""
        if self.pad:
            return self.max_dimension, self.max_dimension
        return self.min_dimension, min(self.min_dimension * 4 // 3, self.max_dimension)

    def __call__(self, image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Resize `image` [h, w, 3] of any dtype to (float32 [H, W, 3], int32 [2] size on the canvas)."""
        shape_hw = tf.cast(tf.shape(image)[:2], tf.float32)
        scale = tf.minimum(
            self.min_dimension / tf.reduce_min(shape_hw), self.max_dimension / tf.reduce_max(shape_hw)
        )
        size_hw = tf.cast(tf.round(shape_hw * scale), tf.int32)
        resized = _bilinear(image, size_hw, (None, None))
        if self.pad:
            resized = tf.image.pad_to_bounding_box(resized, 0, 0, self.max_dimension, self.max_dimension)
        return resized, size_hw


Resizer = FixedShapeResizer | KeepAspectRatioResizer


def to_canvas(resizer: Resizer) -> Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """Return `resizer` rounded to the contract's uint8 pixels, for the input pipeline and the SavedModel."""

    def resize(image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        canvas, size_hw = resizer(image)
        return tf.saturate_cast(tf.round(canvas), tf.uint8), size_hw

    return resize


def _bilinear(image: tf.Tensor, size_hw: tf.Tensor, static_hw: tuple[int | None, int | None]) -> tf.Tensor:
    resized = tf.raw_ops.ResizeBilinear(
        images=image[tf.newaxis], size=size_hw, align_corners=False, half_pixel_centers=False
    )[0]
    resized.set_shape([*static_hw, 3])
    return resized

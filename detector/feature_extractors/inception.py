"""What the Inceptions share: how they take pixels, blocks of branches, and convolutions of one width."""

from collections.abc import Iterator
from dataclasses import dataclass

import tensorflow as tf
import tf_keras

from detector.component import build_inner, child_layers
from detector.feature_extractors.convolution import Conv, Padding, Shape, shape_side_by_side


def preprocess(pixels: tf.Tensor) -> tf.Tensor:
    """Map `pixels` 0 ... 255 of any dtype and shape to float32 -1 ... 1."""
    return (2.0 / 255.0) * tf.cast(pixels, tf.float32) - 1.0


class Mixed(tf_keras.layers.Layer):
    """Branches `Branch_0`, `Branch_1`, ... on the same input, concatenated along the channels."""

    def __init__(self, *branches: tf_keras.layers.Layer):
        super().__init__()
        for i, branch in enumerate(branches):
            setattr(self, f"Branch_{i}", branch)

    @property
    def branches(self) -> list[tf_keras.layers.Layer]:
        """The branches, in their order."""
        return [branch for _, branch in child_layers(self)]

    def build(self, input_shape: Shape) -> None:
        """Build every branch for inputs of `input_shape`."""
        build_inner(self, input_shape)
        super().build(input_shape)

    def inner_layers(self, input_shape: Shape) -> Iterator[tuple[tf_keras.layers.Layer, Shape]]:
        """Yield every branch; all run on `input_shape`."""
        return ((branch, input_shape) for branch in self.branches)

    def compute_output_shape(self, input_shape: Shape) -> tf.TensorShape:
        """Return the shape of the branches' outputs side by side."""
        return shape_side_by_side(self.branches, input_shape)

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Map `inputs` [B, H, W, channels] to the branches' outputs side by side."""
        return tf.concat([branch(inputs, training=training) for branch in self.branches], axis=-1)


@dataclass(frozen=True)
class Width:
    """Makes a network's convolutions at one width; numbers of filters are given at depth multiplier 1.

    A layer has max(int(d * `depth_multiplier`), `min_depth`) filters where slim's has d.  Batch norms have a
    gamma only with `batch_norm_scale`; the published classifiers' have none.
    """

    depth_multiplier: float
    min_depth: int
    batch_norm_momentum: float
    batch_norm_epsilon: float
    batch_norm_scale: bool = False

    def __post_init__(self):
        if self.depth_multiplier <= 0:
            raise ValueError(f"depth_multiplier must be above 0, got {self.depth_multiplier}")

    def depth(self, filters: int) -> int:
        """Return how many filters there are for `filters` of slim's."""
        return max(int(filters * self.depth_multiplier), self.min_depth)

    @property
    def batch_norm(self) -> dict[str, float]:
        """The settings of every batch norm."""
        return {
            "momentum": self.batch_norm_momentum,
            "epsilon": self.batch_norm_epsilon,
            "scale": self.batch_norm_scale,
        }

    def conv(
        self,
        filters: int,
        kernel_size: int | tuple[int, int],
        strides: int = 1,
        *,
        padding: Padding = "same",
        stddev: float | None = None,
    ) -> Conv:
        """A convolution, its kernel from a normal of `stddev` cut at two deviations, or Glorot's uniform."""
        return Conv(
            self.depth(filters),
            kernel_size,
            strides,
            batch_norm=self.batch_norm,
            kernel_initializer=(
                "glorot_uniform" if stddev is None else tf_keras.initializers.TruncatedNormal(stddev=stddev)
            ),
            padding=padding,
        )

"""Inception v3 for Faster R-CNN: the first stage through `Mixed_6e`, the tower `Mixed_7a`-`Mixed_7c`.

The network is that of arXiv:1512.00567, in the form of slim (`tf_slim.nets.inception_v3`) and Keras
applications, which are one and whose weights fit.  Stages and layers carry slim's names, the odd ones too.
The batch norms have no gamma; their momentum and epsilon are slim's.

The published classifier does not pad its stem and its reductions.  Here the first stage does, so that it has
a cell for every 16 pixels, as the anchor grid has, and the tower, which sees crops, does not.  The variables
are the same.  The Object Detection API treats Inception-ResNet v2 so; it has no Faster R-CNN on this network.
"""

from collections.abc import Iterator

import tensorflow as tf
import tf_keras

from detector.component import Component
from detector.feature_extractors.convolution import (
    AveragePool,
    Chain,
    MaxPool,
    Padding,
    Shape,
    StageChain,
    in_series,
    shape_after,
    shape_side_by_side,
)
from detector.feature_extractors.inception import Mixed, Width, preprocess

__all__ = ["first_stage", "preprocess", "stem", "tower"]


def first_stage(
    depth_multiplier: float = 1.0,
    min_depth: int = 16,
    batch_norm_momentum: float = 0.9997,
    batch_norm_epsilon: float = 0.001,
    padding: Padding = "same",
) -> Component:
    """Return the layers shared by the RPN and the box classifier.

    They map preprocessed images [B, H, W, 3] to features [B, ceil(H / 16), ceil(W / 16), 768] at depth
    multiplier 1; with `padding` "valid", the published network's, to fewer cells.

    Raises:
        ValueError: for a multiplier that is not positive.
    """
    make = _Width(depth_multiplier, min_depth, batch_norm_momentum, batch_norm_epsilon)
    return StageChain(
        **stem(make, padding),
        Mixed_5b=make.inception_a(32),
        Mixed_5c=make.inception_a(64, in_branch_1=("Conv2d_0b_1x1", "Conv_1_0c_5x5")),
        Mixed_5d=make.inception_a(64),
        Mixed_6a=make.reduction_a(padding),
        Mixed_6b=make.inception_b(128),
        Mixed_6c=make.inception_b(160),
        Mixed_6d=make.inception_b(160),
        Mixed_6e=make.inception_b(192),
    )


def tower(
    depth_multiplier: float = 1.0,
    min_depth: int = 16,
    batch_norm_momentum: float = 0.9997,
    batch_norm_epsilon: float = 0.001,
    padding: Padding = "valid",
) -> Component:
    """Return the layers the box classifier runs on each crop of the first stage's features.

    They map crops [B, h, w, 768], h and w 3 or more, to [B, (h - 1) // 2, (w - 1) // 2, 2048] at depth
    multiplier 1; with `padding` "same" to [B, ceil(h / 2), ceil(w / 2), 2048].  Arguments and errors are
    those of `first_stage`.
    """
    make = _Width(depth_multiplier, min_depth, batch_norm_momentum, batch_norm_epsilon)
    return StageChain(
        Mixed_7a=make.reduction_b(padding),
        Mixed_7b=make.inception_c(tall_in_branch_1="Conv2d_0b_3x1"),
        Mixed_7c=make.inception_c(tall_in_branch_1="Conv2d_0c_3x1"),
    )


def stem(make: Width, padding: Padding) -> dict[str, tf_keras.layers.Layer]:
    """Return the first stages by name, to [B, ceil(H / 8), ceil(W / 8), 192]; Inception-ResNet v2's too."""
    return {
        "Conv2d_1a_3x3": make.conv(32, 3, 2, padding=padding),
        "Conv2d_2a_3x3": make.conv(32, 3, padding=padding),
        "Conv2d_2b_3x3": make.conv(64, 3),
        "MaxPool_3a_3x3": MaxPool(3, 2, padding),
        "Conv2d_3b_1x1": make.conv(80, 1),
        "Conv2d_4a_3x3": make.conv(192, 3, padding=padding),
        "MaxPool_5a_3x3": MaxPool(3, 2, padding),
    }


class Fork(Chain):
    """A chain whose last two layers lie side by side on the output of those before, concatenated."""

    def inner_layers(self, input_shape: Shape) -> Iterator[tuple[tf_keras.layers.Layer, Shape]]:
        """Yield the chain's layers, and both last ones with what it makes of `input_shape`."""
        *chain, left, right = self.links
        yield from in_series([*chain, left], input_shape)
        yield right, shape_after(chain, input_shape)

    def compute_output_shape(self, input_shape: Shape) -> tf.TensorShape:
        """Return the shape of both last layers' outputs side by side."""
        *chain, left, right = self.links
        return shape_side_by_side([left, right], shape_after(chain, input_shape))

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Map `inputs` [B, H, W, channels] to both last layers' outputs side by side."""
        *chain, left, right = self.links
        for layer in chain:
            inputs = layer(inputs, training=training)
        return tf.concat([left(inputs, training=training), right(inputs, training=training)], axis=-1)


class _Width(Width):
    """Makes the network's blocks at one width."""

    def inception_a(
        self, projection: int, in_branch_1: tuple[str, str] = ("Conv2d_0a_1x1", "Conv2d_0b_5x5")
    ) -> Mixed:
        """A block at stride 8 (the paper's figure 5, its 5x5 not factorised)."""
        reduce, wide = in_branch_1
        return Mixed(
            Chain(Conv2d_0a_1x1=self.conv(64, 1)),
            Chain(**{reduce: self.conv(48, 1), wide: self.conv(64, 5)}),
            Chain(
                Conv2d_0a_1x1=self.conv(64, 1),
                Conv2d_0b_3x3=self.conv(96, 3),
                Conv2d_0c_3x3=self.conv(96, 3),
            ),
            self._pooled(projection),
        )

    def reduction_a(self, padding: Padding) -> Mixed:
        """A block that halves the size.  Slim calls its strided 3x3 convolutions 1x1."""
        return Mixed(
            Chain(Conv2d_1a_1x1=self.conv(384, 3, 2, padding=padding)),
            Chain(
                Conv2d_0a_1x1=self.conv(64, 1),
                Conv2d_0b_3x3=self.conv(96, 3),
                Conv2d_1a_1x1=self.conv(96, 3, 2, padding=padding),
            ),
            Chain(MaxPool_1a_3x3=MaxPool(3, 2, padding)),
        )

    def inception_b(self, inner: int) -> Mixed:
        """A block at stride 16 (figure 6, n = 7); `inner` filters between the ends of its long branches."""
        return Mixed(
            Chain(Conv2d_0a_1x1=self.conv(192, 1)),
            Chain(
                Conv2d_0a_1x1=self.conv(inner, 1),
                Conv2d_0b_1x7=self.conv(inner, (1, 7)),
                Conv2d_0c_7x1=self.conv(192, (7, 1)),
            ),
            Chain(
                Conv2d_0a_1x1=self.conv(inner, 1),
                Conv2d_0b_7x1=self.conv(inner, (7, 1)),
                Conv2d_0c_1x7=self.conv(inner, (1, 7)),
                Conv2d_0d_7x1=self.conv(inner, (7, 1)),
                Conv2d_0e_1x7=self.conv(192, (1, 7)),
            ),
            self._pooled(192),
        )

    def reduction_b(self, padding: Padding) -> Mixed:
        """The tower's block that halves the size."""
        return Mixed(
            Chain(
                Conv2d_0a_1x1=self.conv(192, 1),
                Conv2d_1a_3x3=self.conv(320, 3, 2, padding=padding),
            ),
            Chain(
                Conv2d_0a_1x1=self.conv(192, 1),
                Conv2d_0b_1x7=self.conv(192, (1, 7)),
                Conv2d_0c_7x1=self.conv(192, (7, 1)),
                Conv2d_1a_3x3=self.conv(192, 3, 2, padding=padding),
            ),
            Chain(MaxPool_1a_3x3=MaxPool(3, 2, padding)),
        )

    def inception_c(self, tall_in_branch_1: str) -> Mixed:
        """A block of the tower (figure 7); `tall_in_branch_1` is what slim calls that branch's 3x1."""
        return Mixed(
            Chain(Conv2d_0a_1x1=self.conv(320, 1)),
            Fork(
                Conv2d_0a_1x1=self.conv(384, 1),
                Conv2d_0b_1x3=self.conv(384, (1, 3)),
                **{tall_in_branch_1: self.conv(384, (3, 1))},
            ),
            Fork(
                Conv2d_0a_1x1=self.conv(448, 1),
                Conv2d_0b_3x3=self.conv(384, 3),
                Conv2d_0c_1x3=self.conv(384, (1, 3)),
                Conv2d_0d_3x1=self.conv(384, (3, 1)),
            ),
            self._pooled(192),
        )

    def _pooled(self, projection: int) -> Chain:
        return Chain(AvgPool_0a_3x3=AveragePool(3), Conv2d_0b_1x1=self.conv(projection, 1))

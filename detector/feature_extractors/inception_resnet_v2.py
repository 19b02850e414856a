"""Inception-ResNet v2 as Faster R-CNN uses it: the first stage through the 17x17 blocks, and the tower.

The network is that of arXiv:1602.07261 in the form of slim (`research/slim/nets/inception_resnet_v2.py`) and
Keras applications, which are one, cut where the Object Detection API cuts it
(`models/faster_rcnn_inception_resnet_v2_feature_extractor.py`), whose batch norm settings are the defaults
here.  Stages and layers carry slim's names; the residual blocks are in `Repeat` (35x35, ten), `Repeat_1`
(17x17, twenty), `Repeat_2` (8x8, nine) and `Block8`.

The published classifier does not pad its stem and its reductions.  Here, as in the API, the first stage does
(`align_feature_maps` there), so that it has a cell for every 16 pixels, as the anchor grid has, and the tower
does not.  The variables are the same.
"""

from collections.abc import Callable, Iterator, Sequence

import tensorflow as tf
import tf_keras

from detector.component import Component, build_inner
from detector.feature_extractors.convolution import (
    AveragePool,
    Chain,
    MaxPool,
    Padding,
    Shape,
    StageChain,
    shape_side_by_side,
)
from detector.feature_extractors.inception import Mixed, Width, preprocess
from detector.feature_extractors.inception_v3 import stem

__all__ = ["first_stage", "preprocess", "tower"]


def first_stage(
    depth_multiplier: float = 1.0,
    min_depth: int = 16,
    batch_norm_momentum: float = 0.9997,
    batch_norm_epsilon: float = 0.001,
    padding: Padding = "same",
) -> Component:
    """Return the layers shared by the RPN and the box classifier.

    They map preprocessed images [B, H, W, 3] to features [B, ceil(H / 16), ceil(W / 16), 1088] at depth
    multiplier 1; with `padding` "valid", the published network's, to fewer cells.

    Raises:
        ValueError: for a multiplier that is not positive.
    """
    make = _Width(depth_multiplier, min_depth, batch_norm_momentum, batch_norm_epsilon)
    return StageChain(
        **stem(make, padding),
        Mixed_5b=make.mixed_5b(),
        Repeat=_repeat("block35", 10, make.block35),
        Mixed_6a=make.mixed_6a(padding),
        Repeat_1=_repeat("block17", 20, make.block17),
    )


def tower(
    depth_multiplier: float = 1.0,
    min_depth: int = 16,
    batch_norm_momentum: float = 0.9997,
    batch_norm_epsilon: float = 0.001,
    padding: Padding = "valid",
) -> Component:
    """Return the layers the box classifier runs on each crop of the first stage's features.

    They map crops [B, h, w, 1088], h and w 3 or more, to [B, (h - 1) // 2, (w - 1) // 2, 1536] at depth
    multiplier 1; with `padding` "same" to [B, ceil(h / 2), ceil(w / 2), 1536].  Arguments and errors are
    those of `first_stage`.
    """
    make = _Width(depth_multiplier, min_depth, batch_norm_momentum, batch_norm_epsilon)
    return StageChain(
        Mixed_7a=make.mixed_7a(padding),
        Repeat_2=_repeat("block8", 9, make.block8),
        Block8=make.block8(scale=1.0, relu=False),
        Conv2d_7b_1x1=make.conv(1536, 1),
    )


class Residual(tf_keras.layers.Layer):
    """Branches `Branch_0`, `Branch_1`, ..., projected to the input's channels, scaled and added to the input.

    The projection `Conv2d_1x1` has a bias and no batch norm; the sum is rectified unless `relu` is false.
    """

    def __init__(
        self, branches: Sequence[tf_keras.layers.Layer], channels: int, scale: float, relu: bool = True
    ):
        """`channels` are the input's."""
        super().__init__()
        for i, branch in enumerate(branches):
            setattr(self, f"Branch_{i}", branch)
        self.Conv2d_1x1 = tf_keras.layers.Conv2D(channels, 1)
        self.scale = scale
        self.relu = relu
        self._branches = tuple(f"Branch_{i}" for i in range(len(branches)))

    @property
    def branches(self) -> list[tf_keras.layers.Layer]:
        """The branches, in their order."""
        return [getattr(self, name) for name in self._branches]

    def build(self, input_shape: Shape) -> None:
        """Build the branches and the projection for what each runs on."""
        build_inner(self, input_shape)
        super().build(input_shape)

    def inner_layers(self, input_shape: Shape) -> Iterator[tuple[tf_keras.layers.Layer, Shape]]:
        """Yield the branches, which run on `input_shape`, and the projection of what they make of it."""
        yield from ((branch, input_shape) for branch in self.branches)
        yield self.Conv2d_1x1, shape_side_by_side(self.branches, input_shape)

    def compute_output_shape(self, input_shape: Shape) -> tf.TensorShape:
        """Return `input_shape`."""
        return tf.TensorShape(input_shape)

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Map `inputs` [B, H, W, channels] to the same shape."""
        mixed = tf.concat([branch(inputs, training=training) for branch in self.branches], axis=-1)
        outputs = inputs + self.scale * self.Conv2d_1x1(mixed)
        return tf.nn.relu(outputs) if self.relu else outputs


def _repeat(name: str, times: int, block: Callable[[], Residual]) -> Chain:
    return Chain(**{f"{name}_{i}": block() for i in range(1, times + 1)})


class _Width(Width):
    """Makes the network's blocks at one width."""

    def mixed_5b(self) -> Mixed:
        """The block before the 35x35 blocks."""
        return Mixed(
            Chain(Conv2d_1x1=self.conv(96, 1)),
            Chain(Conv2d_0a_1x1=self.conv(48, 1), Conv2d_0b_5x5=self.conv(64, 5)),
            Chain(
                Conv2d_0a_1x1=self.conv(64, 1),
                Conv2d_0b_3x3=self.conv(96, 3),
                Conv2d_0c_3x3=self.conv(96, 3),
            ),
            Chain(AvgPool_0a_3x3=AveragePool(3), Conv2d_0b_1x1=self.conv(64, 1)),
        )

    def block35(self) -> Residual:
        """A residual block at stride 8."""
        branches = [
            Chain(Conv2d_1x1=self.conv(32, 1)),
            Chain(Conv2d_0a_1x1=self.conv(32, 1), Conv2d_0b_3x3=self.conv(32, 3)),
            Chain(
                Conv2d_0a_1x1=self.conv(32, 1),
                Conv2d_0b_3x3=self.conv(48, 3),
                Conv2d_0c_3x3=self.conv(64, 3),
            ),
        ]
        return Residual(branches, self._after_mixed_5b, scale=0.17)

    def mixed_6a(self, padding: Padding) -> Mixed:
        """The block that halves the size before the 17x17 blocks."""
        return Mixed(
            Chain(Conv2d_1a_3x3=self.conv(384, 3, 2, padding=padding)),
            Chain(
                Conv2d_0a_1x1=self.conv(256, 1),
                Conv2d_0b_3x3=self.conv(256, 3),
                Conv2d_1a_3x3=self.conv(384, 3, 2, padding=padding),
            ),
            Chain(MaxPool_1a_3x3=MaxPool(3, 2, padding)),
        )

    def block17(self) -> Residual:
        """A residual block at stride 16."""
        branches = [
            Chain(Conv2d_1x1=self.conv(192, 1)),
            Chain(
                Conv2d_0a_1x1=self.conv(128, 1),
                Conv2d_0b_1x7=self.conv(160, (1, 7)),
                Conv2d_0c_7x1=self.conv(192, (7, 1)),
            ),
        ]
        return Residual(branches, self._after_mixed_6a, scale=0.1)

    def mixed_7a(self, padding: Padding) -> Mixed:
        """The tower's block that halves the size."""
        return Mixed(
            Chain(Conv2d_0a_1x1=self.conv(256, 1), Conv2d_1a_3x3=self.conv(384, 3, 2, padding=padding)),
            Chain(Conv2d_0a_1x1=self.conv(256, 1), Conv2d_1a_3x3=self.conv(288, 3, 2, padding=padding)),
            Chain(
                Conv2d_0a_1x1=self.conv(256, 1),
                Conv2d_0b_3x3=self.conv(288, 3),
                Conv2d_1a_3x3=self.conv(320, 3, 2, padding=padding),
            ),
            Chain(MaxPool_1a_3x3=MaxPool(3, 2, padding)),
        )

    def block8(self, scale: float = 0.2, relu: bool = True) -> Residual:
        """A residual block of the tower."""
        branches = [
            Chain(Conv2d_1x1=self.conv(192, 1)),
            Chain(
                Conv2d_0a_1x1=self.conv(192, 1),
                Conv2d_0b_1x3=self.conv(224, (1, 3)),
                Conv2d_0c_3x1=self.conv(256, (3, 1)),
            ),
        ]
        return Residual(branches, self._after_mixed_7a, scale, relu)

    # Numbers of channels, which the residual blocks keep.

    @property
    def _after_mixed_5b(self) -> int:
        return sum(map(self.depth, (96, 64, 96, 64)))

    @property
    def _after_mixed_6a(self) -> int:
        return sum(map(self.depth, (384, 384))) + self._after_mixed_5b

    @property
    def _after_mixed_7a(self) -> int:
        return sum(map(self.depth, (384, 288, 320))) + self._after_mixed_6a

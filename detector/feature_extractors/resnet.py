"""ResNet-50, -101 and -152 v1 as Faster R-CNN uses them: `conv1`-`conv4` at stride 16, and the tower `conv5`.

The network is that of arXiv:1512.03385 in one of three topologies, with the variables of all named alike:

"keras"  the Object Detection API's TF2 detectors (`models/keras_models/resnet_v1.py`: Keras applications'
         ResNet without biases, with `pool1` padded "SAME").  The first block of `conv3`, `conv4` and `conv5`
         halves the size, in its 1x1 `conv1` and its `shortcut`.
"slim"   the API's TF1 detectors (`models/faster_rcnn_resnet_v1_feature_extractor.py` on slim's
         `nets/resnet_v1.py`).  The last block of `conv2` and `conv3` halves the size, in its 3x3 `conv2`;
         `conv4` would too, but the API asks for output stride 16; `conv5` keeps the size of its crops.
"garden" the TensorFlow Model Garden's backbone (`official/vision/modeling/backbones/resnet.py`), which no
         detector of the Object Detection API uses.  The first block of `conv3`, `conv4` and `conv5` halves
         the size, in its 3x3 `conv2` and its `shortcut`; all padding is "SAME".
"""

from collections.abc import Iterator
from typing import Literal, get_args

import tensorflow as tf
import tf_keras

from detector.component import Component, build_inner
from detector.feature_extractors.convolution import (
    Chain,
    Conv,
    MaxPool,
    Shape,
    StageChain,
    in_series,
    shape_after,
)

Topology = Literal["keras", "slim", "garden"]

# ImageNet's mean red, green and blue, from the Object Detection API's `preprocess` of both topologies.
CHANNEL_MEANS_RGB = (123.68, 116.779, 103.939)

# Numbers of blocks of conv2, conv3, conv4 and conv5, arXiv:1512.03385 table 1.
_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def preprocess(pixels: tf.Tensor) -> tf.Tensor:
    """Subtract the mean colour from RGB `pixels` [..., 3] of any dtype, 0 ... 255; return float32.

    The canvas's padding is 0 before, as in the Object Detection API, so it is minus the mean after.
    """
    return tf.cast(pixels, tf.float32) - tf.constant(CHANNEL_MEANS_RGB)


def first_stage(
    depth: int = 50,
    topology: Topology = "keras",
    batch_norm_momentum: float = 0.997,
    batch_norm_epsilon: float = 1e-5,
) -> Component:
    """Return the layers shared by the RPN and the box classifier.

    They map preprocessed images [B, H, W, 3] to features [B, ceil(H / 16), ceil(W / 16), 1024].

    Raises:
        ValueError: for a depth other than 50, 101 and 152, or an unknown topology.
    """
    _check(depth, topology)
    batch_norm = {"momentum": batch_norm_momentum, "epsilon": batch_norm_epsilon}
    conv2, conv3, conv4, _ = _BLOCKS[depth]
    strides = (2, 2, 1) if topology == "slim" else (1, 2, 2)
    return StageChain(
        conv1=_conv(64, 7, 2, topology, batch_norm),
        pool1=MaxPool(3, 2),
        conv2=_stage(conv2, 64, strides[0], topology, batch_norm),
        conv3=_stage(conv3, 128, strides[1], topology, batch_norm),
        conv4=_stage(conv4, 256, strides[2], topology, batch_norm),
    )


def tower(
    depth: int = 50,
    topology: Topology = "keras",
    batch_norm_momentum: float = 0.997,
    batch_norm_epsilon: float = 1e-5,
) -> Component:
    """Return the layers the box classifier runs on each crop of the first stage's features.

    They map crops [B, h, w, 1024] to [B, ceil(h / 2), ceil(w / 2), 2048], or in the "slim" topology to
    [B, h, w, 2048].  Arguments and errors are those of `first_stage`.
    """
    _check(depth, topology)
    batch_norm = {"momentum": batch_norm_momentum, "epsilon": batch_norm_epsilon}
    stride = 1 if topology == "slim" else 2
    return StageChain(conv5=_stage(_BLOCKS[depth][3], 512, stride, topology, batch_norm))


class Bottleneck(tf_keras.layers.Layer):
    """A residual block: 1x1 `conv1`, 3x3 `conv2`, 1x1 `conv3`, added to the input and rectified.

    The input reaches the sum through the 1x1 `shortcut` where `project`, else by itself, subsampled where
    the block has a stride.
    """

    def __init__(
        self, filters: int, stride: int, project: bool, topology: Topology, batch_norm: dict[str, float]
    ):
        super().__init__()
        strides = (stride, 1) if topology == "keras" else (1, stride)
        self.stride = stride
        # Attributes in Keras's order of the convolutions, for index slices over `Component.layers`.
        self.conv1 = _conv(filters, 1, strides[0], topology, batch_norm)
        self.conv2 = _conv(filters, 3, strides[1], topology, batch_norm)
        self.shortcut = _conv(4 * filters, 1, stride, topology, batch_norm, relu=False) if project else None
        self.conv3 = _conv(4 * filters, 1, 1, topology, batch_norm, relu=False)

    def build(self, input_shape: Shape) -> None:
        """Build the convolutions for inputs of `input_shape`, [B, H, W, channels]."""
        build_inner(self, input_shape)
        super().build(input_shape)

    def inner_layers(self, input_shape: Shape) -> Iterator[tuple[tf_keras.layers.Layer, Shape]]:
        """Yield the shortcut, which runs on `input_shape`, and the three others with what each runs on."""
        if self.shortcut is not None:
            yield self.shortcut, input_shape
        yield from in_series(self._residual, input_shape)

    def compute_output_shape(self, input_shape: Shape) -> tf.TensorShape:
        """Return [B, ceil(H / stride), ceil(W / stride), 4 * filters]."""
        return shape_after(self._residual, input_shape)

    @property
    def _residual(self) -> tuple[Conv, Conv, Conv]:
        return self.conv1, self.conv2, self.conv3

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Map `inputs` [B, H, W, channels] to [B, ceil(H / stride), ceil(W / stride), 4 * filters]."""
        if self.shortcut is not None:
            shortcut = self.shortcut(inputs, training=training)
        elif self.stride > 1:
            shortcut = inputs[:, :: self.stride, :: self.stride]
        else:
            shortcut = inputs
        residual = inputs
        for convolution in self._residual:
            residual = convolution(residual, training=training)
        return tf.nn.relu(shortcut + residual)


def _stage(blocks: int, filters: int, stride: int, topology: Topology, batch_norm: dict[str, float]) -> Chain:
    """Blocks `block1`, `block2`, ...; the topology says which one has the stride."""
    strided = blocks if topology == "slim" else 1
    return Chain(
        **{
            f"block{i}": Bottleneck(filters, stride if i == strided else 1, i == 1, topology, batch_norm)
            for i in range(1, blocks + 1)
        }
    )


def _conv(
    filters: int,
    kernel_size: int,
    strides: int,
    topology: Topology,
    batch_norm: dict[str, float],
    relu: bool = True,
) -> Conv:
    # Scales of the published initialisers: He's in slim, TensorFlow's default in the others.
    scale = 2.0 if topology == "slim" else 1.0
    return Conv(
        filters,
        kernel_size,
        strides,
        batch_norm=batch_norm,
        kernel_initializer=tf_keras.initializers.VarianceScaling(scale),
        relu=relu,
        padding="fixed" if kernel_size > 1 and strides > 1 and topology != "garden" else "same",
    )


def _check(depth: int, topology: str) -> None:
    if depth not in _BLOCKS:
        raise ValueError(f"ResNet depth must be one of {', '.join(map(str, _BLOCKS))}, got {depth}")
    if topology not in get_args(Topology):
        raise ValueError(f"ResNet topology must be one of {', '.join(get_args(Topology))}, got {topology!r}")

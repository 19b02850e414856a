"""The layers that feature extractors are made of: convolutions with batch norm, pools, and chains of them.

Images and features are float [B, H, W, channels] in the dtype policy's compute dtype.  Every layer takes
`training`, so that chains need not tell one kind from another.  The batch norm of a convolution is its
attribute `BatchNorm`, which makes paths like `Conv2d_0b_3x3/BatchNorm/gamma`.

Every layer knows its output's shape from its input's, and one that is made of others what each of them runs
on (`inner_layers`), so that the variables of a whole network are made, and its operations counted, without
running it: a run creates an operation of each kind and size only to throw its result away.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, Literal, TypeAlias

import tensorflow as tf
import tf_keras

from detector import convolution_gradients, winograd
from detector.batch_norm import BatchNorm, folding_pays, moving_averages_held
from detector.component import Component, build_inner

Padding = Literal["same", "valid"]
Shape: TypeAlias = "tf.TensorShape | Sequence[int | None]"


class Conv(tf_keras.layers.Conv2D):
    """Convolution without bias, batch norm, and ReLU unless `relu` is false.

    The padding "same" is TensorFlow's "SAME", which depends on the input's size when the stride is above 1
    (an even size is padded less before than after).  "fixed" pads alike on both sides whatever the size, as
    slim's `conv2d_same` and the ResNets of the Object Detection API do; the output's size is the same.
    "valid" pads nothing.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, int],
        strides: int = 1,
        *,
        batch_norm: dict[str, float],
        kernel_initializer: Any = "glorot_uniform",
        relu: bool = True,
        padding: Padding | Literal["fixed"] = "same",
    ):
        """`batch_norm` holds the batch norm's `momentum` and `epsilon`; also `scale`, False for no gamma."""
        super().__init__(
            filters,
            kernel_size,
            strides,
            padding="valid" if padding == "valid" else "same",
            use_bias=False,
            kernel_initializer=kernel_initializer,
        )
        self.relu = relu
        # For layers that run on many maps at a time.
        self.winograd = False
        # Whether a gradient comes by in training: the convolution may then be one with gradients of its own,
        # which TensorFlow does not fuse with the batch norm that follows.
        self.is_differentiated = True
        self.fixed_padding = padding == "fixed"
        self.BatchNorm = BatchNorm(**batch_norm)

    def build(self, input_shape: Shape) -> None:
        """Make the variables for inputs of `input_shape`, [B, H, W, channels]."""
        super().build(input_shape)
        self.BatchNorm.build(self.compute_output_shape(input_shape))

    def add_weight(self, *arguments: Any, **keywords: Any) -> tf.Variable:
        """Make a variable whose value is float32 under mixed precision, too; `call` casts."""
        return super().add_weight(*arguments, experimental_autocast=False, **keywords)

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Map `inputs` [B, H, W, channels] to [B, ceil(H / strides), ceil(W / strides), filters].

        Without padding, H and W are less by the kernel's size less 1 before they are divided.
        """
        if not training and folding_pays(inputs):
            kernel, offset = self.BatchNorm.folded_into(tf.convert_to_tensor(self.kernel))
            outputs = tf.nn.bias_add(self._pad_and_convolve(inputs, kernel), offset)
        else:
            outputs = self.BatchNorm(self._convolve(inputs, training), training=training)
        return tf.nn.relu(outputs) if self.relu else outputs

    def _convolve(self, inputs: tf.Tensor, training: bool) -> tf.Tensor:
        """Convolve under the layer's padding."""
        pads_alike = self.padding == "same" and self.strides == (1, 1)
        if self.winograd and pads_alike and winograd.pays(inputs, self.kernel.shape, training):
            return winograd.convolve(inputs, self.kernel, is_frozen=training and not self.trainable)
        if training and self.is_differentiated and self._has_quicker_gradients(inputs):
            return convolution_gradients.convolve(inputs, tf.cast(self.kernel, inputs.dtype), self.strides[0])
        return self._pad_and_convolve(inputs, tf.cast(self.kernel, inputs.dtype))

    def _pad_and_convolve(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        if not self.fixed_padding:
            return self.convolution_op(inputs, kernel)
        # Not as `padding=` of conv2d: with it the kernel gradient takes twice as long on a CPU.
        sides = [[(size - 1) // 2, size // 2] for size in self.kernel_size]
        padded = tf.pad(inputs, [[0, 0], *sides, [0, 0]])
        return tf.nn.conv2d(padded, kernel, self.strides, "VALID")

    def _has_quicker_gradients(self, inputs: tf.Tensor) -> bool:
        # All paddings of a 1x1 kernel are the same, and both kinds of "same" at stride 1.
        is_padded_as_known = self.padding == "same" or self.kernel_size == (1, 1)
        return is_padded_as_known and convolution_gradients.pays(inputs, self.kernel_size, self.strides[0])


class SeparableConv(tf_keras.layers.SeparableConv2D):
    """Depthwise convolution, 1x1 convolution, batch norm, ReLU; no biases, "SAME" padding."""

    def __init__(
        self,
        filters: int,
        kernel_size: int,
        strides: int = 1,
        *,
        depth_multiplier: int,
        batch_norm: dict[str, float],
        depthwise_initializer: Any = "glorot_uniform",
        pointwise_initializer: Any = "glorot_uniform",
    ):
        """`depth_multiplier` is the number of depthwise filters per input channel."""
        super().__init__(
            filters,
            kernel_size,
            strides,
            padding="same",
            depth_multiplier=depth_multiplier,
            use_bias=False,
            depthwise_initializer=depthwise_initializer,
            pointwise_initializer=pointwise_initializer,
        )
        self.BatchNorm = BatchNorm(**batch_norm)

    def build(self, input_shape: Shape) -> None:
        """Make the variables for inputs of `input_shape`, [B, H, W, channels]."""
        super().build(input_shape)
        self.BatchNorm.build(self.compute_output_shape(input_shape))

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Map `inputs` [B, H, W, channels] to [B, ceil(H / strides), ceil(W / strides), filters]."""
        return tf.nn.relu(self.BatchNorm(super().call(inputs), training=training))


class MaxPool(tf_keras.layers.MaxPooling2D):
    """Max pooling."""

    def __init__(self, pool_size: int, strides: int = 1, padding: Padding = "same"):
        super().__init__(pool_size, strides, padding=padding)

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Map `inputs` [B, H, W, channels] to [B, ceil(H / strides), ceil(W / strides), channels].

        Without padding, H and W are less by `pool_size` - 1 before they are divided.
        """
        return super().call(inputs)


class AveragePool(tf_keras.layers.AveragePooling2D):
    """Average pooling with "SAME" padding, which the averages leave out."""

    def __init__(self, pool_size: int, strides: int = 1):
        super().__init__(pool_size, strides, padding="same")

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Map `inputs` [B, H, W, channels] to [B, ceil(H / strides), ceil(W / strides), channels]."""
        return super().call(inputs)


class Chain(tf_keras.layers.Layer):
    """Layers one after the other; the keywords are their attribute names."""

    def __init__(self, **links: tf_keras.layers.Layer):
        super().__init__()
        for name, layer in links.items():
            setattr(self, name, layer)
        self._links = tuple(links)

    def build(self, input_shape: Shape) -> None:
        """Build every layer for what it runs on."""
        build_inner(self, input_shape)
        super().build(input_shape)

    def inner_layers(self, input_shape: Shape) -> Iterator[tuple[tf_keras.layers.Layer, Shape]]:
        """Yield every layer, and the shape that those before it make of `input_shape`."""
        return in_series(self.links, input_shape)

    def compute_output_shape(self, input_shape: Shape) -> tf.TensorShape:
        """Return the last layer's output shape."""
        return shape_after(self.links, input_shape)

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Pass `inputs` through every layer."""
        for layer in self.links:
            inputs = layer(inputs, training=training)
        return inputs

    @property
    def links(self) -> list[tf_keras.layers.Layer]:
        """The layers, in their order."""
        return [getattr(self, name) for name in self._links]


class StageChain(Component):
    """A component whose stages run one after the other; the keywords are their names."""

    def __init__(self, **stages: tf_keras.layers.Layer):
        super().__init__()
        for name, stage in stages.items():
            setattr(self, name, stage)
        # Stages that keep their input alone in training, and run again when their gradient is due.
        self.recomputed: set[str] = set()

    def build(self, input_shape: Shape) -> None:
        """Build every stage for what it runs on."""
        build_inner(self, input_shape)
        self.built = True

    def inner_layers(self, input_shape: Shape) -> Iterator[tuple[tf_keras.layers.Layer, Shape]]:
        """Yield every stage, and the shape that those before it make of `input_shape`."""
        return in_series(self.stages.values(), input_shape)

    def compute_output_shape(self, input_shape: Shape) -> tf.TensorShape:
        """Return the last stage's output shape."""
        return shape_after(self.stages.values(), input_shape)

    def call(
        self,
        inputs: tf.Tensor,
        training: bool = False,
        after: str | None = None,
        through: str | None = None,
    ) -> tf.Tensor:
        """Pass `inputs` through the stages that follow `after`, up to and with `through`; None: all."""
        names = list(self.stages)
        first = 0 if after is None else names.index(after) + 1
        last = len(names) if through is None else names.index(through) + 1
        for name in names[first:last]:
            stage = getattr(self, name)
            if training and name in self.recomputed:
                inputs = _recomputed(stage, inputs)
            else:
                inputs = stage(inputs, training=training)
        return inputs


def in_series(
    layers: Iterable[tf_keras.layers.Layer], input_shape: Shape
) -> Iterator[tuple[tf_keras.layers.Layer, Shape]]:
    """Yield layers that run one after the other, the first on `input_shape`, each with what it runs on."""
    before = None
    for layer in layers:
        if before is not None:
            input_shape = before.compute_output_shape(input_shape)
        yield layer, input_shape
        before = layer


def shape_after(layers: Iterable[tf_keras.layers.Layer], input_shape: Shape) -> tf.TensorShape:
    """Return the output shape of layers that run one after the other."""
    for layer in layers:
        input_shape = layer.compute_output_shape(input_shape)
    return tf.TensorShape(input_shape)


def shape_side_by_side(layers: Iterable[tf_keras.layers.Layer], input_shape: Shape) -> tf.TensorShape:
    """Return the shape of the outputs of layers on the same input, concatenated along the channels."""
    shapes = [tf.TensorShape(layer.compute_output_shape(input_shape)) for layer in layers]
    return tf.TensorShape([*shapes[0][:-1], sum(shape[-1] for shape in shapes)])


def _recomputed(stage: tf_keras.layers.Layer, inputs: tf.Tensor) -> tf.Tensor:
    """Return what the stage makes of `inputs` in training; for the gradient only `inputs` is kept."""
    is_second = False

    def run(inputs: tf.Tensor) -> tf.Tensor:
        nonlocal is_second
        with moving_averages_held() if is_second else nullcontext():
            is_second = True
            return stage(inputs, training=True)

    return tf.recompute_grad(run)(inputs)

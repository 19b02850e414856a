"""Batch normalisation whose statistics can stand still while its scale and offset train.

tf_keras ties the two together (`trainable = False` stops both).  Detectors need them apart: with a few
images a step, batch statistics are too noisy to fine-tune with, so the restored ones are kept.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import tensorflow as tf
import tf_keras

from detector.cpu import has_onednn

_held = False
_unfolded = False


@contextmanager
def moving_averages_held() -> Iterator[None]:
    """Leave the moving averages of every layer that is called in here as they are.

    For a second pass over a batch, which is not to count twice.
    """
    global _held
    before, _held = _held, True
    try:
        yield
    finally:
        _held = before


@contextmanager
def unfolded() -> Iterator[None]:
    """Have every layer called that is called in here, none folded into the kernel before it.

    For what looks at a layer's inputs.
    """
    global _unfolded
    before, _unfolded = _unfolded, True
    try:
        yield
    finally:
        _unfolded = before


class BatchNorm(tf_keras.layers.BatchNormalization):
    """`tf_keras.layers.BatchNormalization` with `fixed_statistics`.

    While it is true the layer normalises with its moving averages and never updates them, in training too.
    Set it before the first trace: it is read when the graph is built.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.fixed_statistics = False

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Normalise [B, H, W, channels], by the batch's statistics if `training` and they are not fixed."""
        by_batch = training and self.trainable and not self.fixed_statistics
        outputs, mean, variance, *_ = _operation(inputs, training)(
            x=inputs,
            scale=self.gamma if self.scale else tf.ones(self.beta.shape),
            offset=self.beta,
            mean=self.moving_mean,
            variance=self.moving_variance,
            epsilon=self.epsilon,
            exponential_avg_factor=1 - self.momentum,
            is_training=by_batch,
        )
        if by_batch and not _held:
            self.moving_mean.assign(mean)
            self.moving_variance.assign(variance)
        return outputs

    def folded_into(self, kernel: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Return a kernel and an offset that convolve and normalise at once, by the moving averages.

        Args:
            kernel: float32 [h, w, channels, filters], of the convolution before.

        Returns:
            The kernel and the offset [filters], computed in float32, in the layer's compute dtype.
        """
        scale = tf.math.rsqrt(self.moving_variance + self.epsilon)
        if self.scale:
            scale *= self.gamma
        offset = self.beta - scale * self.moving_mean
        return tf.cast(scale * kernel, self.compute_dtype), tf.cast(offset, self.compute_dtype)


def folding_pays(inputs: tf.Tensor) -> bool:
    """Whether a convolution of `inputs` is quicker at inference with its batch norm in its kernel, on a CPU.

    TensorFlow fuses the two in float32, and not in bfloat16.
    """
    return not _unfolded and inputs.dtype == tf.bfloat16 and not tf.config.list_logical_devices("GPU")


def _operation(inputs: tf.Tensor, training: bool) -> Callable[..., tuple[tf.Tensor, ...]]:
    """Return the one of TensorFlow's operations that takes the fewest others to differentiate.

    They compute the same.  With the third version a training step is traced with zeros for the gradients of
    its five other outputs, a tenth of all operations; the first knows no bfloat16, and neither oneDNN's nor
    cuDNN's quick ways.
    """
    is_plain = inputs.dtype == tf.float32 and not has_onednn() and not tf.config.list_logical_devices("GPU")
    return tf.raw_ops.FusedBatchNorm if training and is_plain else tf.raw_ops.FusedBatchNormV3

"""Batch normalisation whose statistics can stand still while its scale and offset train.

tf_keras ties the two together (`trainable = False` stops both).  Detectors need them apart: with a few
images a step, batch statistics are too noisy to fine-tune with, so the restored ones are kept.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import tensorflow as tf
import tf_keras

_held = False


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


class BatchNorm(tf_keras.layers.BatchNormalization):
    """`tf_keras.layers.BatchNormalization` with `fixed_statistics`.

    While it is true the layer normalises with its moving averages and never updates them, in training too.
    Set it before the first trace: it is read when the graph is built.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.fixed_statistics = False

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Normalise `inputs`, by the batch's statistics if `training` and they are not fixed."""
        by_batch = training and not self.fixed_statistics
        if by_batch and _held:
            gamma = self.gamma if self.scale else tf.ones_like(self.beta)
            return tf.compat.v1.nn.fused_batch_norm(inputs, gamma, self.beta, epsilon=self.epsilon)[0]
        return super().call(inputs, training=by_batch)

"""Batch normalisation whose statistics can stand still while its scale and offset train.

tf_keras ties the two together (`trainable = False` stops both).  Detectors need them apart: with a few
images a step, batch statistics are too noisy to fine-tune with, so the restored ones are kept.
"""

import tensorflow as tf
import tf_keras


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
        return super().call(inputs, training=training and not self.fixed_statistics)

"""TensorFlow's deterministic operations: the same bits on every run, on a CPU, where there are all of them.

There they are also the exact ones: without them TensorFlow 2.20 sums the gradient of `crop_and_resize` in
threads that overwrite each other.
"""

import tensorflow as tf

OFF = (
    "deterministic operations are off: on a GPU TensorFlow has none for the gradient of crop_and_resize; "
    "runs there are not bit-identical"
)


def enable_determinism() -> str | None:
    """Switch deterministic operations on, for the whole process; on a GPU leave them off and return `OFF`.

    There `crop_and_resize`'s gradient towards the image, and that of a fused BatchNorm which normalises with
    its moving averages, end in an `UnimplementedError` once they are on (TensorFlow 2.20).
    """
    if tf.config.list_physical_devices("GPU"):
        return OFF
    tf.config.experimental.enable_op_determinism()
    return None

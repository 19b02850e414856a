"""Detecting without TensorFlow's memory optimizer, one of the rewriters of a graph before its first run.

It reckons what every operation costs, to foresee the peak of the memory.  On a CPU there is nothing that it
could do about that in a graph without gradients: it takes large sums apart and moves tensors off a GPU.  What
is detected has the same bits without it, and the first detections come sooner.  And where the number of
images is open, as in a SavedModel, it cannot reckon `CropAndResize`, and says so on stderr whatever the log
level.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import tensorflow as tf

# `tf.config.optimizer.set_experimental_options` has no name for this rewriter, and would set it for training
# too, whose sums of gradients it may take apart.
from tensorflow.python.eager import context


@contextmanager
def without_memory_optimizer() -> Iterator[None]:
    """Within it this thread's functions run in graphs that it left alone, unless there is a GPU.

    A function that ran outside before is rewritten once more.
    """
    if tf.config.list_physical_devices("GPU"):
        yield
        return
    eager = context.context()
    before = eager.function_call_options
    config = tf.compat.v1.ConfigProto.FromString(before.config_proto_serialized)
    rewriters = config.graph_options.rewrite_options
    rewriters.memory_optimization = rewriters.NO_MEM_OPT
    eager.function_call_options = context.FunctionCallOptions(before.executor_type, config)
    try:
        yield
    finally:
        eager.function_call_options = before

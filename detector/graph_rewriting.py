"""What TensorFlow does to a graph before its first run, and what of that is left out on CPUs.

It fuses operations (its remapper), prunes, and runs a dozen other rewriters, twice over.  On a CPU the others
and the second time take up to two seconds of a start and make neither steps nor detection faster by more
than measurements vary; the second time leaves as many operations of every kind as the first.

The memory optimizer reckons what every operation costs, to foresee the peak of the memory, about which it
can do next to nothing on a CPU: it moves tensors off a GPU, and takes sums of gradients apart where most of
the machine's memory would be used.  What is detected has the same bits without it.  And where the number of
images is open, as in a SavedModel, it cannot reckon `CropAndResize`, and says so on stderr
whatever the log level.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import tensorflow as tf

# `tf.config.optimizer.set_experimental_options` has no name for the memory optimizer and for how often.
from tensorflow.python.eager import context

_REWRITES_THAT_DO_NOT_PAY = (
    "arithmetic_optimization",
    "constant_folding",
    "dependency_optimization",
    "function_optimization",
    "implementation_selector",
    "layout_optimizer",
    "loop_optimization",
    "shape_optimization",
)


def leave_out_what_does_not_pay() -> None:
    """Have this thread's functions run after as little rewriting as pays, unless there is a GPU.

    Options set by `tf.config.optimizer` afterwards bring the memory optimizer and the second time back.
    """
    if tf.config.list_physical_devices("GPU"):
        return
    tf.config.optimizer.set_experimental_options(dict.fromkeys(_REWRITES_THAT_DO_NOT_PAY, False))
    _leave_memory_optimizer_out(is_once=True)


@contextmanager
def without_memory_optimizer() -> Iterator[None]:
    """Within it this thread's functions run in graphs that it left alone, unless there is a GPU.

    A function that ran outside before, where it was not left out, is rewritten once more.
    """
    if tf.config.list_physical_devices("GPU"):
        yield
        return
    before = context.context().function_call_options
    _leave_memory_optimizer_out()
    try:
        yield
    finally:
        context.context().function_call_options = before


def _leave_memory_optimizer_out(is_once: bool = False) -> None:
    eager = context.context()
    options = eager.function_call_options
    config = tf.compat.v1.ConfigProto.FromString(options.config_proto_serialized)
    rewriters = config.graph_options.rewrite_options
    rewriters.memory_optimization = rewriters.NO_MEM_OPT
    if is_once:
        rewriters.meta_optimizer_iterations = rewriters.ONE
    eager.function_call_options = context.FunctionCallOptions(options.executor_type, config)

"""How every command starts and ends: quietly, soon, and with its errors in one line.

Import it before anything that imports TensorFlow.
"""

import contextlib
import gc
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable
from functools import cache

from detector import allocation, cpu, optional_imports
from detector.lasting_output import lasting_output

# TensorFlow's C++ banner is written when its library is loaded: these must be set before.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# TensorFlow imports a Keras as it starts: the one that this package is made of, and not Keras 3 beside it.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
cpu.leave_onednn_off_where_slow(cpu.cpuinfo(), os.environ)
allocation.keep_freed_memory()
optional_imports.leave_out()
warnings.filterwarnings("ignore", category=DeprecationWarning)


class StopSignal(KeyboardInterrupt):
    """A signal that asks to stop, as Ctrl-C does; `number` is its own."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number


@lasting_output()
def run(main: Callable[[], int]) -> int:
    """Call a command and turn its errors into one message; it goes on if nobody reads what it prints.

    Exit code 2 is for what the user asked for, 1 for a run that failed, 128 and its number for a signal.
    """
    import tensorflow as tf

    from detector.freeze_proof import FreezeProofError
    from detector.training_loop import NonFiniteLossError

    settle_process()
    try:
        return main()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (NonFiniteLossError, FreezeProofError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except tf.errors.ResourceExhaustedError as error:
        print(f"error: {_exhaustion(error.message)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print("stopped", file=sys.stderr)
        return 128 + (stop.number if isinstance(stop, StopSignal) else signal.SIGINT)


# How TensorFlow's allocators and operations begin to say that there is no memory left.
_OUT_OF_MEMORY = re.compile(
    r"(OOM when allocating|(failed|unable) to allocate|out of memory|cannot allocate memory).*", re.IGNORECASE
)


def _exhaustion(message: str) -> str:
    """Say in one line what ran out: memory, or what else TensorFlow has the same error for, a full disk."""
    message = re.sub(r"\{\{.*?\}\}|\[Op:.*", "", message)
    found = _OUT_OF_MEMORY.search(message)
    if found is None:
        return message.strip().partition("\n")[0]
    return (
        f"out of memory ({found[0].strip()}): lower train.batch_size (evaluate.batch_size in evaluation) or "
        "model.resizer, set train.recompute, freeze more, or set model.precision=bfloat16"
    )


@cache
def settle_process() -> None:
    """Make TensorFlow quiet and its start short, once everything is imported; once a process."""
    import tensorflow as tf

    from detector import graph_rewriting

    tf.get_logger().setLevel("ERROR")
    # Half a million objects that live as long as the process: tracing a step makes enough new ones for a full
    # collection, which took 0.3 s for finding nothing.
    gc.freeze()
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        # The memory that is needed, and not nearly all at once: the processes of a sweep or a benchmark share
        # it.  Where this one has computed before, it is too late.
        with contextlib.suppress(RuntimeError):
            tf.config.experimental.set_memory_growth(gpu, True)
    if gpus:  # and so for the processes that this one starts
        os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    graph_rewriting.leave_out_what_does_not_pay()

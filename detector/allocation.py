"""What the C library does with freed memory.  Imports no TensorFlow.

A step allocates the maps of all its layers anew.  glibc gives large blocks back to the system as they are
freed, and the system hands them out again page by page, each filled with zeros first: detection with
Inception v2 at 512x512 takes an eighth longer for it on two cores, a training step of ResNet-50 a tenth.
"""

import ctypes
import os
import sys
from collections.abc import Mapping

# mallopt's parameters, by malloc.h, and what is asked for.
_SETTINGS = (
    (-8, 1),  # M_ARENA_MAX: one heap for all threads, so that what one has freed serves the others
    (-4, 0),  # M_MMAP_MAX: every block is of the heap, the large ones, too
    (-1, 2**31 - 1),  # M_TRIM_THRESHOLD: what is free at the heap's end stays
)


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Let the process keep the memory that it frees, for what it allocates next; whether it will.

    Call it before threads are started, so before TensorFlow is imported.  It changes nothing without glibc,
    nor where `environment` has settings of malloc's own: MALLOC_ARENA_MAX and the like, or those of
    GLIBC_TUNABLES.
    """
    is_set = any(name.startswith("MALLOC_") for name in environment)
    if is_set or "glibc.malloc" in environment.get("GLIBC_TUNABLES", "") or sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all([mallopt(name, value) == 1 for name, value in _SETTINGS])

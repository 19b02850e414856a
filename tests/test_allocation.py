import ctypes
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc"
)

# Counts the pages that the system hands out for a block of 64 MiB that was allocated and freed before.
FAULTS = """
import ctypes, resource
import launch

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p

def fill_and_free():
    block = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(64 << 20)))
    ctypes.memset(block, 1, 64 << 20)
    libc.free(block)

fill_and_free()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
fill_and_free()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(**settings):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", FAULTS],
        env={**environment, **settings},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


def test_a_tool_keeps_the_memory_that_it_frees():
    assert faults() < 10


@pytest.mark.parametrize(
    "settings", [{"MALLOC_ARENA_MAX": "2"}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}], ids=str
)
def test_settings_of_the_users_own_hold(settings):
    assert faults(**settings) > 20  # of 4 KiB, or of 2 MiB

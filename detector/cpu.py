"""What Linux tells of an x86 CPU, and whether TensorFlow computes on it with oneDNN.  Imports no TensorFlow.

TensorFlow 2.20 switches oneDNN's kernels on by the CPU's instructions (tensorflow/core/util/port.cc).  In a
CPU with one of them and without AVX-512, as Intel's Core processors from the 12th generation on, that is a
loss.  TensorFlow fuses a convolution with the batch norm that follows wherever nothing trains, and oneDNN
3.7.3 has a quick way to compute that for AVX-512 alone: with AVX2 a 3x3 convolution of a 128x128x64 map takes
75 ms and, fused, 550 ms; without oneDNN 25 ms.
"""

import os
from collections.abc import MutableMapping
from functools import cache
from pathlib import Path

# The instructions with one of which TensorFlow switches oneDNN on, as Linux names them.
_ONEDNN_FLAGS = ("avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16")
_SWITCH = "TF_ENABLE_ONEDNN_OPTS"


def cpuinfo() -> str | None:
    """Return Linux's /proc/cpuinfo; None where there is none."""
    page = Path("/proc/cpuinfo")
    return page.read_text(encoding="utf-8", errors="replace") if page.is_file() else None


def instruction_sets(cpuinfo: str | None) -> set[str]:
    """Return an x86 CPU's instruction sets; empty for others."""
    line = next((line for line in (cpuinfo or "").splitlines() if line.startswith("flags")), "")
    return set(line.partition(":")[2].split())


@cache
def has_onednn() -> bool:
    """Whether TensorFlow computes with oneDNN's kernels on this CPU, rather than with its own."""
    return onednn_of(cpuinfo(), os.environ.get(_SWITCH))


def onednn_of(cpuinfo: str | None, wanted: str | None) -> bool:
    """Tell by Linux's /proc/cpuinfo and by what TF_ENABLE_ONEDNN_OPTS asks for, None where it is not set."""
    if wanted is not None:
        return wanted.strip().lower() in ("1", "true")
    return not instruction_sets(cpuinfo).isdisjoint(_ONEDNN_FLAGS)


def leave_onednn_off_where_slow(cpuinfo: str | None, environment: MutableMapping[str, str]) -> None:
    """Set TF_ENABLE_ONEDNN_OPTS=0 for a CPU without AVX-512, unless `environment` says something.

    TensorFlow reads it as it is imported.
    """
    if onednn_of(cpuinfo, None) and "avx512f" not in instruction_sets(cpuinfo):
        environment.setdefault(_SWITCH, "0")

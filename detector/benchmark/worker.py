"""The worker's side of the protocol: lines of JSON on standard input and output.

One process measures one workload and is idle, waiting for a line, while others measure theirs:

    it reads    {"kind": "train", "batch_size": 1, "height": 512, "width": 512, "classes": 90, "boxes": 8,
                 "started_at": 8123.4}
    it writes   {"ready": true, "import_seconds": 4.1, "start_seconds": 6.5, "first_step_seconds": 3.2}
    it reads    {"run": 6}
    it writes   {"seconds": [0.31, 0.30, 0.31, 0.30, 0.30, 0.31]}
    …           as often as asked
    it reads    {"quit": true}
    it writes   {"peak_memory_bytes": 1610612736}

The help of `tools/benchmark.py` describes every key.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

# Exceptions that are the user's mistake or the machine's, not the worker's: told without a traceback.
_TOLD = (ValueError, OSError)


@dataclass(frozen=True)
class Prepared:
    """A workload that is ready to be repeated.

    `repeat` does it once and returns when it is done: its seconds, or None to take those of the call.
    `images` is how many images a repetition works on; 0 if it has none.  `flops`, called after the last
    repetition, counts the floating-point operations of one.
    """

    repeat: Callable[[], float | None]
    images: int
    flops: Callable[[], float] | None = None


Start = Callable[[], Prepared]
Prepare = Callable[[Mapping[str, Any]], Start]
"""Makes what only the benchmark needs (random images, an exported model); what it returns is timed."""


Load = Callable[[Mapping[str, Any]], None]
"""Imports what the workload takes and others do not: it would be in their memory."""


def serve(prepare: Prepare, load: Load | None = None) -> None:
    """Answer the parent on standard input and output until it quits.

    Whatever else prints to standard output is sent to standard error, where it cannot disturb the answers.
    """
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        _serve(prepare, load, sys.stdin, answers)
    except _TOLD as error:
        _answer(answers, {"error": str(error)})
        sys.exit(1)


def peak_memory_bytes() -> int:
    """Return the largest resident memory that this process has had so far."""
    status = Path("/proc/self/status")
    if status.is_file():
        # Not getrusage: there a child starts with the peak of the process that started it.
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _serve(prepare: Prepare, load: Load | None, requests: TextIO, answers: TextIO) -> None:
    spec = json.loads(requests.readline())
    if load is not None:
        load(spec)
    imported_at = time.monotonic()
    start = prepare(spec)
    began = time.perf_counter()
    prepared = start()
    first_step_seconds = _timed(prepared)
    start_seconds = time.perf_counter() - began
    _answer(
        answers,
        {
            "ready": True,
            "import_seconds": imported_at - spec["started_at"],
            "start_seconds": start_seconds,
            "first_step_seconds": first_step_seconds,
            "images": prepared.images,
        },
    )
    for line in requests:
        request = json.loads(line)
        if "quit" in request:
            # The peak first: counting operations traces graphs of its own.
            final: dict[str, Any] = {"peak_memory_bytes": peak_memory_bytes()}
            if prepared.flops is not None:
                final["flops"] = prepared.flops()
            _answer(answers, final)
            return
        _answer(answers, {"seconds": [_timed(prepared) for _ in range(request["run"])]})


def _timed(prepared: Prepared) -> float:
    began = time.perf_counter()
    seconds = prepared.repeat()
    return time.perf_counter() - began if seconds is None else seconds


def _answer(answers: TextIO, values: Mapping[str, Any]) -> None:
    answers.write(json.dumps(values) + "\n")
    answers.flush()

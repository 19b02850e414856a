"""Signals that ask a run to stop: it ends when what is under way is finished and saved."""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any


class Stopped(RuntimeError):  # noqa: N818 - it is no error: it was asked for
    """What was under way was given up, as the run was asked to stop; nothing of it is kept."""


@contextmanager
def stop_requests(note: Callable[[str], None]) -> Iterator[Sequence[int]]:
    """Within it, SIGTERM, Ctrl-C and SIGHUP do not end the process but are listed in what it yields.

    SIGHUP comes when the terminal is closed.  Under nohup it is ignored, and stays so.
    """
    requested: list[int] = []

    def request(number: int, frame: Any) -> None:
        requested.append(number)
        # The run is to be saved whether or not this can be said: nobody may read it any more (Ctrl-C ends
        # `tee`, too), and the signal may have come amid another line.
        if len(requested) == 1:
            with suppress(OSError, RuntimeError):
                note("stopping: what is under way is finished and saved first")

    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    try:
        previous = {number: signal.signal(number, request) for number in numbers}
    except ValueError:  # not in the main thread, where signals do not arrive
        previous = {}
    try:
        yield requested
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

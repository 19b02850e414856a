"""Signals that ask a run to stop: it ends when what is under way is finished and saved."""

import contextlib
import os
import signal
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any


@contextmanager
def stop_requests(note: Callable[[str], None]) -> Iterator[Sequence[int]]:
    """Within it, SIGTERM, Ctrl-C and SIGHUP do not end the process but are listed in what it yields.

    SIGHUP comes when the terminal is closed.  Under nohup it is ignored, and stays so.
    """
    requested: list[int] = []

    def request(number: int, frame: Any) -> None:
        if number == signal.SIGHUP:
            _forget_closed_terminal()
        if not requested:
            note("stopping: what is under way is finished and saved first")
        requested.append(number)

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


def _forget_closed_terminal() -> None:
    """Send to nowhere what would go to a terminal that was closed: writing to one fails, amid a save, too."""
    with open(os.devnull, "wb") as nowhere:
        for stream in (1, 2):
            with contextlib.suppress(OSError):  # it is closed itself
                # A device for characters that is no terminal, or is none any more; files and pipes stay.
                if stat.S_ISCHR(os.fstat(stream).st_mode) and not os.isatty(stream):
                    os.dup2(nowhere.fileno(), stream)

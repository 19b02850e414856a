"""Standard output and error that outlast their readers, as in `train.py | head`.

`print` raises where nobody reads any more, and rich ends the process: hours of training for a line of text.
Here what cannot be written is dropped, and work goes on.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO, cast


class _LastingStream:
    """A text stream that leads nowhere once it cannot be written to: a closed pipe, terminal or disk."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._drop()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _drop(self) -> None:
        # Its file, not the stream: what is still in the buffer would fail again as the process ends.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


def lasting(stream: TextIO) -> TextIO:
    """Return `stream` such that writing to it never raises `OSError`."""
    return cast(TextIO, _LastingStream(stream))


@contextmanager
def lasting_output() -> Iterator[None]:
    """Within it, standard output and standard error are `lasting`."""
    with redirect_stdout(lasting(sys.stdout)) as output, redirect_stderr(lasting(sys.stderr)) as errors:
        try:
            yield
        finally:
            output.flush()
            errors.flush()

"""Folders that are there whole or not at all: written beside their place, and moved there once complete."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tensorflow as tf


@contextmanager
def written_whole(place: Path, what: str) -> Iterator[Path]:
    """Yield an empty folder to write to, which becomes `place`; whatever fails, nothing of it stays.

    Args:
        place: what is there makes way, and goes only when the new folder stands.
        what: is written, for the message.

    Raises:
        OSError: it cannot be written; `place` is as it was before.
    """
    partial, old = (place.with_name(f".{place.name}.{end}") for end in ("partial", "old"))
    try:
        _delete(partial)
        partial.mkdir(parents=True)
        yield partial
        for file in filter(Path.is_file, partial.rglob("*")):
            with open(file, "rb") as written:
                os.fsync(written.fileno())
        _delete(old)
        if place.exists():
            os.replace(place, old)
        os.replace(partial, place)
    except (OSError, tf.errors.OpError) as error:
        remedy = "make room for it or name another place"
        raise OSError(f"{what} could not be written to {place}: {_reason(error)}; {remedy}") from None
    finally:
        _delete(partial)
        if old.exists() and not place.exists():
            os.replace(old, place)
    _delete(old)


def clear_up(parent: Path, pattern: str) -> None:
    """Delete what killed processes left beside the folders PATTERN in `parent`, for who alone writes there.

    Where it was killed between the two moves, what was in the place comes back.
    """
    for old in parent.glob(f".{pattern}.old"):
        place = parent / old.name.removeprefix(".").removesuffix(".old")
        if place.exists():
            _delete(old)
        else:
            os.replace(old, place)
    for partial in parent.glob(f".{pattern}.partial"):
        _delete(partial)


def _delete(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _reason(error: OSError | tf.errors.OpError) -> str:
    """Return what went wrong in one line: without the operation, and without the partial folder's files."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    first = (error.message.splitlines() or [type(error).__name__])[0]
    return re.sub(r"^\{\{.*?\}\} | \[Op:\w+\]$", "", first).rpartition("; ")[-1]

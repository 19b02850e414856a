"""Working folders that belong to a living process, so that those of a killed one can be told and deleted.

The owner holds a lock on a file in its folder; the kernel releases it when the process ends, however it ends.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from detector.held_file import is_in_place

_LOCK = "owner.lock"


@contextmanager
def owned_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Make a folder `parent`/PREFIX… that is this process's within the block, and delete it after that."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        try:
            lock = open(folder / _LOCK, "ab")  # noqa: SIM115 - closed below
        except FileNotFoundError:
            continue  # taken for an orphan before it was locked
        # A file system without locks has no orphans either: none that can be told.
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        if is_in_place(lock, folder / _LOCK):
            break
        lock.close()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()


def delete_orphans(parent: Path, prefix: str) -> int:
    """Delete the folders `parent`/PREFIX… whose owner is gone; return how many bytes that freed."""
    freed = 0
    for folder in parent.glob(f"{prefix}*"):
        # Nobody can lock the file, or it cannot be locked: somebody owns the folder, or it cannot be told.
        with suppress(OSError), open(folder / _LOCK, "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_in_place(lock, folder / _LOCK):
                freed += bytes_in(folder)
                shutil.rmtree(folder, ignore_errors=True)
    return freed


def owned_before(own: Path, prefix: str) -> list[Path]:
    """Return the folders PREFIX… beside `own`, one's own folder, that were made before it."""

    def age(folder: Path) -> tuple[int, str]:
        return (folder / _LOCK).stat().st_mtime_ns, folder.name  # nobody writes to it

    older = []
    for folder in own.parent.glob(f"{prefix}*"):
        with suppress(FileNotFoundError):  # it is not yet owned, or is deleted just now
            if age(folder) < age(own):
                older.append(folder)
    return older


def bytes_in(folder: Path) -> int:
    """Return how many bytes the files in and below `folder` have; others may delete some meanwhile."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(parent, name)).st_size
    return total

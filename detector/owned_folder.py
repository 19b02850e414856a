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
from typing import IO

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
        if _is_in_place(lock, folder):
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
            if _is_in_place(lock, folder):
                freed += sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
                shutil.rmtree(folder, ignore_errors=True)
    return freed


def _is_in_place(lock: IO[bytes], folder: Path) -> bool:
    """Whether the lock that is held is still the one of the folder: it may have been deleted meanwhile."""
    try:
        return os.path.samestat(os.fstat(lock.fileno()), os.stat(folder / _LOCK))
    except FileNotFoundError:
        return False

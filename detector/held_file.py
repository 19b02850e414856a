"""Files that are held: who reads a folder holds a file in it, and who would delete the folder asks first.

Any number of processes hold a file, or one has it alone.  The locks are the kernel's: it lets go of them when
the file is closed or the process ends, however that ends.
"""

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import IO


def hold(path: Path) -> IO[bytes] | None:
    """Open a file and hold it until it is closed; None if it is not there, or is deleted by who has it alone.

    On a file system without locks it is opened all the same: nobody gets the file alone there.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed by who holds it
    except FileNotFoundError:
        return None
    with suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_SH)  # waits for who has it alone, which is not for long
    return _kept_in_place(file, path)


def take_alone(path: Path) -> IO[bytes] | None:
    """Open a file and have it alone until it is closed; None if somebody holds it, or that cannot be told."""
    try:
        file = open(path, "r+b")  # noqa: SIM115 - to write: NFS gives nobody else a file alone
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return _kept_in_place(file, path)


def is_in_place(file: IO[bytes], path: Path) -> bool:
    """Whether an open file is still the one at `path`: before it was locked, it may have been deleted."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _kept_in_place(file: IO[bytes], path: Path) -> IO[bytes] | None:
    if is_in_place(file, path):
        return file
    file.close()
    return None

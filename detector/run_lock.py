"""One process at a time trains in a run's folder: the lock that says which.

It is the kernel's, so it goes when the process does, however that ends.
"""

import errno
import fcntl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FILE = ".lock"
# What file systems without locks say: some network drives, FUSE, Lustre as it is often mounted.
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}


class RunBusyError(ValueError):
    """Another process trains in the folder; the message names it and says what to do."""


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's folder, which is made if it is not there.

    Where the file system has no locks there is a warning on standard error instead.

    Raises:
        RunBusyError: another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / _FILE, "a", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunBusyError(
                f"another process trains in {folder}: let it end, or stop it, and try again"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            print(
                f"warning: {folder} cannot be locked ({error.strerror}): see to it that no other process "
                "trains in it",
                file=sys.stderr,
            )
        yield

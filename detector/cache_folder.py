"""The folder where all caches lie: which are there, who uses them, and a budget for all of them.

A cache is a folder with a page, `cache.json`, among its files.  Who uses one holds its page, and only a cache
that nobody holds is deleted.  It comes to its place whole, and leaves it whole: what is half made or half
deleted lies in `.partial-…`, which belongs to the process that does it.
"""

import errno
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from detector.held_file import hold, take_alone
from detector.owned_folder import bytes_in, delete_orphans, owned_before, owned_folder

PAGE = "cache.json"
_PARTIAL = ".partial-"
_REMEDY = "use fewer views, store float16, or freeze further"
# What a disk says that has no room, or none for this user.
_FULL = (errno.ENOSPC, errno.EDQUOT)

MakeRoom = Callable[[int, int], None]
"""(bytes that a new cache will take, bytes that it takes already) -> None; see `CacheFolder.make`"""


class CacheTooLargeError(ValueError):
    """A cache does not fit into the budget or on the disk; the message says what would help."""


class CacheFolder:
    """All caches in one folder, of which those longest unused make room for new ones."""

    def __init__(self, path: Path, limit_bytes: int):
        """Take `path`, which need not be there, and `limit_bytes`, the budget of all that lies in it."""
        self.path = path
        self._limit = limit_bytes

    def find(self, name: str) -> IO[bytes] | None:
        """Return the page of a cache, which nobody deletes until that is closed; None if it is not there."""
        page = hold(self.path / name / PAGE)
        if page is not None:
            os.utime(page.fileno())
        return page

    def make(self, name: str, write: Callable[[Path, MakeRoom], None]) -> IO[bytes]:
        """Make a cache and return its page, as `find` does.

        Args:
            name: of the cache.
            write: writes its files, the page among them, into the folder that it is given.  As it goes on, it
                tells how many bytes they will take, as far as it knows, and how many they take already, for
                which others make room.

        Raises:
            CacheTooLargeError: there is no room for it.  Whatever is raised, nothing half made stays.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with owned_folder(self.path, _PARTIAL) as own:
                made = own / "cache"
                made.mkdir()
                write(made, lambda needed, written: self._make_room(own, needed, written))
                # Held before it is where others see it, and might delete it.
                page = hold(made / PAGE)
                assert page is not None
                try:
                    made.rename(self.path / name)
                except OSError:
                    page.close()
                    # Another process was faster: its cache has the same contents.
                    page = self.find(name)
                    if page is None:
                        raise
                return page
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise CacheTooLargeError(
                f"the disk of {self.path} is full: name another train.cache_folder, {_REMEDY}"
            ) from None

    def delete_half_made(self) -> int:
        """Delete what killed processes left half made or half deleted; return how many bytes that freed."""
        return delete_orphans(self.path, _PARTIAL)

    def _make_room(self, own: Path, needed: int, written: int) -> None:
        """Delete the caches longest unused until the one that is made in `own` fits.

        What others began to make earlier counts with the bytes that it has so far.  Of two that do not fit
        side by side the later one gives way, so that not both do.
        """
        what = f"they take {gigabytes(needed)}, and the limit is {gigabytes(self._limit)}"
        remedy = f"raise train.cache_limit_gb, {_REMEDY}"
        if needed > self._limit:
            raise CacheTooLargeError(f"{what}: {remedy}")
        sizes = self._by_last_use()
        others = sum(sizes.values()) + sum(map(bytes_in, owned_before(own, _PARTIAL)))
        if others + needed > self._limit:
            idle = [name for name in sizes if self._is_idle(name)]
            in_use = others - sum(sizes[name] for name in idle)
            if in_use + needed <= self._limit:  # otherwise none would go for anything
                for name in idle:
                    if others + needed > self._limit and self._delete(name, own):
                        others -= sizes[name]
            if others + needed > self._limit:
                raise CacheTooLargeError(f"{what}, of which {gigabytes(in_use)} are in use: {remedy}")
        free = shutil.disk_usage(self.path).free
        if needed - written > free:
            raise CacheTooLargeError(
                f"they take {gigabytes(needed)}, but the disk has {gigabytes(free + written)} left: "
                f"name another train.cache_folder, {_REMEDY}"
            )

    def _by_last_use(self) -> dict[str, int]:
        """Return {name: bytes} of all caches, those longest unused first."""
        used = {}
        for page in self.path.glob(f"*/{PAGE}"):
            with suppress(FileNotFoundError):  # another process deletes it
                used[page.parent.name] = page.stat().st_mtime
        return {name: bytes_in(self.path / name) for name in sorted(used, key=used.__getitem__)}

    def _is_idle(self, name: str) -> bool:
        page = take_alone(self.path / name / PAGE)
        if page is not None:
            page.close()
        return page is not None

    def _delete(self, name: str, own: Path) -> bool:
        """Delete a cache by way of one's `own` folder; False if somebody uses it by now."""
        page = take_alone(self.path / name / PAGE)
        if page is None:
            return False
        with page:
            (self.path / name).rename(own / name)
        shutil.rmtree(own / name, ignore_errors=True)
        return True


def gigabytes(count: float) -> str:
    """Return a number of bytes for people: 1.25 GB, or 12.5 MB below a tenth of one."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"

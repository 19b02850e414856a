"""Paths that TensorFlow can read from: its readers take a checkpoint's path for a pattern, as shells do.

So it writes to `runs/a[1]` and does not find there what it wrote: to its readers that is `runs/a1`.  `*` and
`?` stand for themselves, too, and do no harm.
"""

from pathlib import Path

_REFUSED = "[\\"


def require_plain(path: str | Path) -> Path:
    """Return `path`, at which TensorFlow can read what it writes; raises `ValueError` for one it cannot."""
    if any(character in str(path) for character in _REFUSED):
        raise ValueError(
            f"{path}: TensorFlow does not find what lies at a path with [ or \\, which it takes for a "
            "pattern's: rename the folder, or name another"
        )
    return Path(path)

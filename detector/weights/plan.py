"""What an importer says: where in a file each variable's value is, and what becomes of the rest."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

FEATURES_ONLY = "the type restores the feature extractor and the tower alone"
NO_DETECTOR = "a classification checkpoint has no RPN and no box predictor"


@dataclass(frozen=True)
class Origin:
    """A variable's value: the entry `names[0]`, or `compute` of all the entries.

    The first entry must have `shape`, the variable's own where it is None.
    """

    names: tuple[str, ...]
    compute: Callable[..., np.ndarray] | None = None
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Plan:
    """Of one file and one model.

    `format` names the format.  `origins` holds an origin by path; `fresh` why a path has none; `left` why
    an entry of the file is not used.  A path in neither of the first two, or an entry in none of the three,
    is an error.
    """

    format: str
    origins: dict[str, Origin]
    fresh: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)


def left_by_pattern(names: Iterable[str], patterns: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return {name: why} for the names that a (regular expression, why) pair finds; the first pair counts."""
    compiled = [(re.compile(pattern), why) for pattern, why in patterns]
    return {
        name: next(why for pattern, why in compiled if pattern.search(name))
        for name in names
        if any(pattern.search(name) for pattern, _ in compiled)
    }

"""Provenance: where the values of each component came from, as runs, checkpoints and SavedModels tell it."""

from collections.abc import Collection
from typing import Any

from detector.faster_rcnn import COMPONENTS


def provenance_of(
    restored: Collection[str],
    fresh: Collection[str],
    checkpoint: str | None = None,
    format: str | None = None,
) -> dict[str, dict[str, Any]]:
    """Return per component where its values came from, as JSON values.

    That is {component: {"checkpoint": its name, or None if all is fresh; "format": the same of what it was
    recognised as; "restored": how many variables; "fresh": the paths of the others}}.

    Args:
        restored: the paths of the variables whose values came from the checkpoint.
        fresh: those of all others.
        checkpoint: its name, or None where there was none.
        format: what it was recognised as.
    """
    parts: dict[str, dict[str, Any]] = {}
    for component in COMPONENTS:
        count = sum(path.startswith(f"{component}/") for path in restored)
        parts[component] = {
            "checkpoint": checkpoint if count else None,
            "format": format if count else None,
            "restored": count,
            "fresh": [path for path in fresh if path.startswith(f"{component}/")],
        }
    return parts

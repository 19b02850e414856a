"""What a published pipeline.config leaves open or has otherwise: paths, classes, settings not taken over."""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from detector.config import Config
    from detector.pipeline_config import PipelineConfig
    from detector.pipeline_fields import Note

# Keys that have an option of their own, beside `--set`.
_OPTIONS = {"freeze.freeze": "--freeze", "freeze.train_only": "--train-only"}


def check_paths(config: "Config", *parts: str) -> None:
    """Raise one ValueError for all the paths that still have to be filled in.

    `parts` are the keys to look below: `data`, `train.restore`.
    """
    from detector.pipeline_config import PLACEHOLDER, placeholders

    found = [
        key
        for key in placeholders(config.model_dump(mode="json"))
        if any(key.startswith(f"{part}.") for part in parts)
    ]
    if not found:
        return
    without = "; --set data.evaluate=null trains without scores"
    raise ValueError(
        f"{PLACEHOLDER} stands where paths of yours belong: set {', '.join(found)}, each like "
        f"--set {found[0]}=FILE, or write them into the file"
        + (without if any(key.startswith("data.evaluate.") for key in found) else "")
    )


def print_spare_classes(console: "Console", config: "Config") -> None:
    """Print that `model.num_classes` asks for more classes than the label map has, if it does.

    A label map's gaps are none: published ones have them, and detectors have a class for each.
    """
    from detector.label_map import read_label_map

    source, wanted = config.data.train, config.model.num_classes
    if source is None or source.format != "tfrecord" or source.label_map is None or wanted is None:
        return
    last = max(read_label_map(source.label_map))
    if wanted > last:
        console.print(
            f"model.num_classes is {wanted}, and {source.label_map} ends at {last}: classes {last + 1} … "
            f"{wanted} are predicted, and nothing is labelled with them; --set model.num_classes={last} "
            "leaves them out",
            markup=False,
            soft_wrap=True,
        )


def print_notes(loaded: "PipelineConfig", settings: "Config", arguments: argparse.Namespace) -> None:
    """Print what is not taken over as the file says it, in `settings`, with the options laid over it."""
    from detector.pipeline_config import format_notes

    if loaded.notes:
        final = settings.model_dump(mode="json")
        notes = [_as_replaced(note, loaded.values, final, arguments) for note in loaded.notes]
        print(f"{arguments.pipeline_config}: not taken over as it stands:", file=sys.stderr)
        print(format_notes(notes), file=sys.stderr)


def _as_replaced(
    note: "Note", values: Mapping[str, Any], settings: Mapping[str, Any], arguments: argparse.Namespace
) -> "Note":
    """Return `note`; or, where an option changed what the file's `values` have at its key, that it did."""
    if note.key is None or _at(values, note.key) == _at(settings, note.key):
        return note
    option = _OPTIONS.get(note.key)
    is_given = option is not None and getattr(arguments, option.strip("-").replace("-", "_"), None)
    return replace(note, consequence=f"replaced by {option if is_given else f'--set {note.key}'}")


def _at(values: Mapping[str, Any], key: str) -> Any:
    place: Any = values
    for name in key.split("."):
        place = place[name]
    return place

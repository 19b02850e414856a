"""Checkpoints: a folder with a TensorFlow checkpoint whose keys are paths, and a JSON page about it.

    step-000500/variables.index, variables.data-…   every variable of the model, and the optimizer's state
    step-000500/checkpoint.json                     step, classes, configuration, plan, provenance, digests

A checkpoint is written beside its place and moved there whole, so a killed run leaves none that is half
written; every value is checked against its digest when it is read.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from detector.digest import digest, digests
from detector.plain_path import require_plain
from detector.whole_folder import written_whole

FORMAT = 1
_OPTIMIZER = "optimizer/"


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or does not fit; the message says what was expected and what came."""


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says of itself.

    `categories`: [{"id", "name"}] in the order of the class scores.  `model`: the model configuration.
    `plan`: the freeze plan's manifest, or None.  `provenance`: per component where its values came from.
    `training`: whatever the training loop needs to go on (seed, best score, …).  `digests`: SHA-256 by key.
    """

    step: int
    categories: list[dict[str, Any]]
    model: dict[str, Any]
    plan: dict[str, Any] | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)

    @property
    def class_names(self) -> list[str]:
        """The classes' names, in the order of the class scores."""
        return [category["name"] for category in self.categories]


def is_checkpoint(path: str | Path) -> bool:
    """Whether `path` is a folder that this module wrote."""
    return (Path(path) / "checkpoint.json").is_file()


def save(
    path: str | Path,
    info: CheckpointInfo,
    variables: Mapping[str, tf.Variable],
    optimizer_state: Mapping[str, tf.Variable] | None = None,
) -> Path:
    """Write a checkpoint to the folder `path`, which appears only when it is complete.

    Args:
        path: the folder; an older checkpoint there is replaced.
        info: the page about it; its digests are filled in here.
        variables: the model's, by path.
        optimizer_state: the optimizer's, by name, where training is to go on from here.

    Raises:
        OSError: it cannot be written (a full disk); what was at `path` is as it was before.
        ValueError: TensorFlow could not read it there; see `detector.plain_path`.
    """
    path = require_plain(path)
    state = {f"{_OPTIMIZER}{name}": variable for name, variable in (optimizer_state or {}).items()}
    values = {**variables, **state}
    page = {"format": FORMAT, **asdict(info), "digests": digests(values)}

    with written_whole(path, f"the checkpoint of step {info.step}") as folder:
        prefix = str(folder / "variables")
        tf.raw_ops.SaveV2(
            prefix=prefix + "_part",
            tensor_names=list(values),
            shape_and_slices=[""] * len(values),
            tensors=[tf.convert_to_tensor(value) for value in values.values()],
        )
        tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=[prefix + "_part"], destination_prefix=prefix)
        (folder / "checkpoint.json").write_text(json.dumps(page, indent=1), encoding="utf-8")
    return path


def replace_page(path: str | Path, info: CheckpointInfo) -> None:
    """Replace what a checkpoint's page says by `info`, but for the digests: its values stay as they are.

    Raises:
        CheckpointError: there is no checkpoint.
        OSError: it cannot be written (a full disk); the older page is there then.
    """
    path = Path(path)
    page = {"format": FORMAT, **asdict(replace(info, digests=read_info(path).digests))}
    partial = path / ".checkpoint.json.partial"
    try:
        with open(partial, "w", encoding="utf-8") as file:
            json.dump(page, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path / "checkpoint.json")
    finally:
        partial.unlink(missing_ok=True)


def read_info(path: str | Path) -> CheckpointInfo:
    """Read the page about a checkpoint.

    Raises:
        CheckpointError: there is none, it is of another format, or has other keys than `CheckpointInfo`.
    """
    page_path = Path(path) / "checkpoint.json"
    if not page_path.is_file():
        raise CheckpointError(f"{path} is no checkpoint of this package: it has no checkpoint.json")
    try:
        page = json.loads(page_path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{page_path} is damaged: {error}") from None
    if not isinstance(page, dict):
        raise CheckpointError(f"{page_path} is damaged: expected a mapping, got {type(page).__name__}")
    if page.pop("format", None) != FORMAT:
        raise CheckpointError(f"{page_path} is not of format {FORMAT}; it was written by another version")
    known = {
        key.name: key.default is MISSING and key.default_factory is MISSING for key in fields(CheckpointInfo)
    }
    for key in page:
        if key not in known:
            raise CheckpointError(
                f"{page_path} has an unknown key {key!r}; it was written by another version, or changed since"
            )
    for key, is_required in known.items():
        if is_required and key not in page:
            raise CheckpointError(f"{page_path} lacks the key {key!r}; it was changed since it was written")
    return CheckpointInfo(**page)


def read_values(path: str | Path, info: CheckpointInfo | None = None) -> dict[str, np.ndarray]:
    """Read and verify every value of a checkpoint: {path: array}, the optimizer's under `optimizer/`.

    Raises:
        CheckpointError: a file is missing or damaged, or a value is not the one that was written.
        ValueError: TensorFlow cannot read from there; see `detector.plain_path`.
    """
    info = info or read_info(path)
    require_plain(path)
    try:
        reader = tf.train.load_checkpoint(str(Path(path) / "variables"))
        values = {key: reader.get_tensor(key) for key in info.digests}
    except (tf.errors.OpError, ValueError, RuntimeError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path} is damaged or incomplete ({reason}); use an earlier one") from None
    changed = [key for key, value in values.items() if digest(value) != info.digests[key]]
    if changed:
        raise CheckpointError(
            f"{path} is damaged: {len(changed)} values differ from their digests, first {changed[0]}; "
            "use an earlier one"
        )
    return values


def restore(
    path: str | Path,
    variables: Mapping[str, tf.Variable],
    optimizer_state: Mapping[str, tf.Variable] | None = None,
) -> CheckpointInfo:
    """Assign a checkpoint's values to the variables of a model of the same architecture and classes.

    Raises:
        CheckpointError: the checkpoint is damaged, or a variable is missing, left over or of another shape;
            nothing is assigned then.
    """
    info = read_info(path)
    values = read_values(path, info)
    targets = dict(variables)
    if optimizer_state is not None:
        targets |= {f"{_OPTIMIZER}{name}": variable for name, variable in optimizer_state.items()}
    else:
        values = {key: value for key, value in values.items() if not key.startswith(_OPTIMIZER)}
    problems = [f"missing in the checkpoint: {key}" for key in targets if key not in values]
    problems += [f"left over in the checkpoint: {key}" for key in values if key not in targets]
    problems += [
        f"{key}: the model has shape {tuple(target.shape)}, the checkpoint {values[key].shape}"
        for key, target in targets.items()
        if key in values and tuple(target.shape) != values[key].shape
    ]
    if problems:
        more = f"\n  … and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(f"{path} does not fit the model:\n  " + "\n  ".join(problems[:5]) + more)
    for key, target in targets.items():
        target.assign(values[key])
    return info

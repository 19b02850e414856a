"""Going on with a run of tools/train.py: whether it can, from which checkpoint, and on the same data."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data.dataset import DetectionDataset
    from detector.checkpoint import CheckpointInfo
    from detector.run_log import RunLog


def run_and_checkpoint(path: Path) -> tuple[Path, Path | None]:
    """Return the run's folder that `path` is, or that it is a checkpoint of, and in this case that one."""
    from detector.checkpoint import is_checkpoint

    if path.parent.name == "checkpoints" and is_checkpoint(path):
        own = path.resolve().name  # `last` and `best` are to point at others
        if not own.startswith("step-"):
            raise ValueError(
                f"{path} is a copy of a checkpoint; name the one beside it: {path.parent}/step-…"
            )
        return path.parent.parent, path.parent / own
    return path, None


@contextlib.contextmanager
def naming_earlier_ones(run: "RunLog", start: Path | None) -> Iterator[None]:
    """Have an error of the checkpoint `start` say from which earlier ones the run can go on."""
    from detector.checkpoint import CheckpointError

    try:
        yield
    except CheckpointError as error:
        folders = list(run.by_step().values())
        before = folders[: folders.index(start)][::-1] if start in folders else []
        remedy = "; to go back: python tools/train.py --resume " if before else ""
        raise ValueError(f"{error}{remedy}{', or '.join(map(str, before))}") from None


def lock_resumable(folder: Path, earlier: Path | None, locks: contextlib.ExitStack) -> Path:
    """Lock the folder of a run that can go on, and return its configuration's file."""
    from detector.run_lock import run_lock
    from detector.run_log import RunLog

    if not (folder / "config.yaml").is_file():
        raise ValueError(f"{folder} is no run's folder: it has no config.yaml")
    if not (folder / "config.yaml").stat().st_size:
        raise ValueError(
            f"{folder}/config.yaml is damaged: it is empty; put a copy back, or start a new run with "
            f"--set train.restore.path={folder}"
        )
    locks.enter_context(run_lock(folder))
    run = RunLog(folder)
    run.forget_half_written()
    if earlier is None and run.last is None:
        raise ValueError(
            f"{folder} was cut off before its first checkpoint; "
            f"start it again with --config {folder}/config.yaml --run {folder}"
        )
    return folder / "config.yaml"


def require_same_data(
    folder: Path, resume_from: "CheckpointInfo", train_set: "DetectionDataset", labels: dict[str, str]
) -> None:
    """Refuse to go on with other labels than the run began with: what it learned would change its meaning."""
    from detector.run_page import read_page

    categories = [{"id": category.id, "name": category.name} for category in train_set.categories]
    if categories != resume_from.categories:
        raise ValueError(
            f"{folder} began with the classes {_named(resume_from.categories)}, and {train_set.name} now has "
            f"{_named(categories)}: bring the labels back, or start a new run"
        )
    page = folder / "data.json"
    if not page.is_file():  # of a version that did not write one
        return
    before = read_page(
        page,
        lambda values: dict(values["labels_sha256"]),
        "put a copy back, or delete it if the labels are those that the run began with",
    )
    for name in sorted({*before, *labels}):
        if before.get(name) != labels.get(name):
            raise ValueError(
                f"the images or boxes of data.{name} are not those that {folder} began with: "
                "bring them back, or start a new run"
            )


def _named(categories: "Sequence[dict[str, Any]]") -> str:
    return ", ".join(f"{category['name']!r} ({category['id']})" for category in categories)

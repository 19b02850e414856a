"""A run's folder: what was asked for, what happened step by step, and where its checkpoints are.

config.yaml  plan.json  data.json  environment.json     what was asked for, of which labels, and with what
metrics.jsonl  tensorboard/                   one line per logged step and per evaluation
checkpoints/step-000500  last  best           `last` and `best` point at folders of `detector.checkpoint`
detections.json  evaluation.json  freeze_proof.json
"""

import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import tensorflow as tf

from detector import checkpoint
from detector.checkpoint import CheckpointError
from detector.plain_path import require_plain
from detector.run_page import read_metrics
from detector.whole_folder import clear_up

Which = Literal["best", "last"]

# What is written at the end of a run.
_RESULTS = ("detections.json", "evaluation.json", "freeze_proof.json")

_PACKAGES = ("tensorflow", "tf-keras", "tf-models-official", "albumentations", "pycocotools", "numpy")


class RunLog:
    """Writes a run's folder; everything in it is there as soon as the call returns."""

    def __init__(self, folder: str | Path):
        """Make the folder, if it is not there.

        Raises:
            ValueError: TensorFlow could not read checkpoints in it; see `detector.plain_path`.
        """
        self.folder = require_plain(folder)
        self.checkpoints = self.folder / "checkpoints"
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self._metrics_path = self.folder / "metrics.jsonl"
        self._board = tf.summary.create_file_writer(str(self.folder / "tensorboard"))

    def write_json(self, name: str, value: Any) -> Path:
        """Write one of the folder's JSON files, whole or not at all."""
        return self._write(name, json.dumps(value, indent=1))

    def write_text(self, name: str, text: str) -> Path:
        """Write one of the folder's text files, whole or not at all."""
        return self._write(name, text)

    def metrics(self, step: int, values: Mapping[str, float | None]) -> None:
        """Append the numbers of a step to `metrics.jsonl` and to TensorBoard."""
        with open(self._metrics_path, "a", encoding="utf-8") as lines:
            lines.write(json.dumps({"step": step, **values}) + "\n")
        with self._board.as_default():
            for name, value in values.items():
                if value is not None:
                    tf.summary.scalar(name, value, step=step)
        self._board.flush()

    def note(self, step: int, name: str, text: str) -> None:
        """Write a text, Markdown, beside the curves of TensorBoard; its name must be no number's."""
        with self._board.as_default():
            tf.summary.text(name, text, step=step)
        self._board.flush()

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the rows of `metrics.jsonl`, none before anything is logged; see `run_page.read_metrics`."""
        return read_metrics(self._metrics_path) if self._metrics_path.is_file() else []

    def forget_after(self, step: int, is_evaluated: bool = True) -> None:
        """Drop the metrics that a run which resumes at `step` will write again.

        They are those past it, and its scores unless it `is_evaluated`.
        """

        def is_kept(row: Mapping[str, Any]) -> bool:
            is_score = any(name.startswith("evaluation/") for name in row)
            return row["step"] < step + (is_evaluated or not is_score)

        rows = [row for row in self.read_metrics() if is_kept(row)]
        self._write("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    def checkpoint_path(self, step: int) -> Path:
        """Return the folder of the checkpoint of `step`."""
        return self.checkpoints / f"step-{step:06d}"

    @property
    def last(self) -> Path | None:
        """The newest checkpoint, or None."""
        return self._pointed("last")

    @property
    def best(self) -> Path | None:
        """The checkpoint with the best AP so far, or None."""
        return self._pointed("best")

    def point(self, name: str, checkpoint: Path) -> None:
        """Make `last` or `best` point at a checkpoint, in one step."""
        link = self.checkpoints / name
        if link.is_dir() and not link.is_symlink():  # of a run that was copied without its links
            shutil.rmtree(link)
        partial = self.checkpoints / f".{name}.partial"
        partial.unlink(missing_ok=True)
        partial.symlink_to(checkpoint.name)
        os.replace(partial, link)

    def keep_newest(self, count: int) -> None:
        """Delete all but the newest `count` checkpoints, by step, and the best one."""
        kept = {self.best, self.last}
        for folder in list(self.by_step().values())[:-count]:
            if folder not in kept:
                shutil.rmtree(folder)

    def by_step(self) -> dict[int, Path]:
        """Return {step: folder} of the checkpoints that are there, steps rising."""
        # By number: from step 1,000,000 on names are longer and sort otherwise.
        steps = {
            int(name[1]): folder
            for folder in self.checkpoints.iterdir()
            if (name := re.fullmatch(r"step-(\d+)", folder.name))
        }
        return dict(sorted(steps.items()))

    def go_back(self, checkpoint: Path, best_step: int | None) -> list[Path]:
        """Make a checkpoint of the run its last, as if it had been cut off there; return those dropped.

        Args:
            checkpoint: one of `by_step`.
            best_step: of the best checkpoint so far when it was written.
        """
        self.point("last", checkpoint)
        for name in _RESULTS:
            (self.folder / name).unlink(missing_ok=True)
        steps = self.by_step()
        here = next(step for step, folder in steps.items() if folder.name == checkpoint.name)
        later = [folder for step, folder in steps.items() if step > here]
        if self.best in later:
            if best_step in steps:
                self.point("best", steps[best_step])
            else:
                (self.checkpoints / "best").unlink()
        for folder in later:
            shutil.rmtree(folder)
        return later

    def forget_half_written(self) -> None:
        """Delete checkpoints that a killed run left half written; only for who holds the run's lock."""
        clear_up(self.checkpoints, "step-*")

    def _pointed(self, name: str) -> Path | None:
        link = self.checkpoints / name
        if link.is_symlink():
            return self.checkpoints / os.readlink(link) if link.exists() else None
        return link if link.is_dir() else None

    def _write(self, name: str, text: str) -> Path:
        path = self.folder / name
        partial = path.with_name(f".{name}.partial")
        try:
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        return path


def find_checkpoint(path: str | Path, which: Which | None = None) -> Path:
    """Return the checkpoint at `path`: itself, or a run's best one, or its last where none was scored.

    Args:
        path: a checkpoint's folder or a run's.
        which: of a run, insist on the best or the last.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        CheckpointError: it is neither, or the run has no such checkpoint.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"there is nothing at {path}; expected a SavedModel, a checkpoint or a run's folder (weights of "
            "another project become a checkpoint by tools/import_weights.py)"
        )
    if checkpoint.is_checkpoint(path):
        return path
    if not is_run(path):
        raise CheckpointError(
            f"{path} is no SavedModel, no checkpoint and no run's folder; "
            "weights of another project become a checkpoint by tools/import_weights.py"
        )
    for name in [which] if which else ["best", "last"]:
        found = path / "checkpoints" / name
        if checkpoint.is_checkpoint(found):
            return found.parent / found.resolve().name  # what `best` points at may change
    remedy = "; try --checkpoint last" if which == "best" else "; the run was cut off before it saved one"
    raise CheckpointError(f"the run {path} has no {which or 'last'} checkpoint{remedy}")


def is_run(path: str | Path) -> bool:
    """Whether `path` is a run's folder: a mere folder of checkpoints is none."""
    path = Path(path)
    return (path / "checkpoints").is_dir() and any(
        (path / name).is_file() for name in ("config.yaml", "metrics.jsonl")
    )


def environment() -> dict[str, Any]:
    """Say with what a run was made: packages, Python, machine, and this project's commit in a checkout."""
    root = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=10
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    # An installed package may lie inside somebody else's repository, whose commit says nothing of this code.
    is_checkout = (root / "pyproject.toml").is_file()
    status = git("status", "--porcelain") if is_checkout else None
    return {
        "git_commit": git("rev-parse", "HEAD") if is_checkout else None,
        "git_modified": None if status is None else bool(status),
        "python": platform.python_version(),
        "machine": platform.platform(),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
    }

"""A small run with a SavedModel that `tools/export.py` made and checked, for all tests that look at one."""

import fcntl
import shutil
from dataclasses import dataclass
from pathlib import Path

import export as export_tool
import numpy as np
import pytest
from conftest import CLASS_NAMES, TINY, rewriting_graphs

from detector import checkpoint, export_check
from detector.builder import build_model
from detector.checkpoint import CheckpointInfo
from detector.config import Config, override
from detector.digest import digests
from detector.faster_rcnn import FasterRCNN
from detector.run_log import RunLog

IDS = (7, 3, 90)
CATEGORIES = [{"id": id, "name": name} for id, name in zip(IDS, CLASS_NAMES, strict=True)]
STEP = 12
KEEP_ASPECT = {"kind": "keep_aspect_ratio", "min_dimension": 64, "max_dimension": 96}


def config_with(resizer: dict) -> Config:
    """Return the configuration of the run, but for its resizer."""
    # Random weights favour one class; of each are kept a few.
    box_classifier = {**TINY["model"]["box_classifier"], "max_detections_per_class": 6}
    model = {**TINY["model"], "resizer": resizer, "box_classifier": box_classifier}
    return override({**TINY, "model": model}, (), "tiny")


def build() -> FasterRCNN:
    """Return the run's model."""
    return build_model(config_with(KEEP_ASPECT).model, CLASS_NAMES, seed=3)


@dataclass(frozen=True)
class ExportedRun:
    """The run's folder, not to be changed, and what its SavedModel gave in a process of its own, by case."""

    folder: Path
    alone: dict[str, np.ndarray]

    @property
    def saved_model(self) -> Path:
        return self.folder / "saved_model"


def exported_in(place: Path) -> ExportedRun:
    """Return the run in a folder that processes may share: the first to ask makes it, and others wait."""
    folder = place / "exported_run"
    with open(place / "exported_run.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            partial = place / "exported_run.partial"
            shutil.rmtree(partial, ignore_errors=True)
            _make(partial)
            partial.rename(folder)
    with np.load(folder / "alone.npz") as alone:
        return ExportedRun(folder, dict(alone))


def _make(folder: Path) -> None:
    """Save the model as if two variables had been frozen, export it, and keep what checking that computed."""
    variables = build().variables_by_path
    info = CheckpointInfo(
        step=STEP,
        categories=CATEGORIES,
        model=config_with(KEEP_ASPECT).model.model_dump(mode="json"),
        plan={"freeze": ["made up"]},
        provenance={"rpn": {"checkpoint": None, "restored": 0, "fresh": []}},
        training={"frozen_digests": digests(dict(list(variables.items())[:2]))},
    )
    run = RunLog(folder)
    run.write_text("config.yaml", "")
    run.point("last", checkpoint.save(run.checkpoint_path(STEP), info, variables))

    alone: dict[str, np.ndarray] = {}
    original = export_check._run_alone

    def noted(*arguments):
        alone.update(original(*arguments))
        return alone

    with pytest.MonkeyPatch.context() as patch, rewriting_graphs():
        patch.setattr(export_check, "_run_alone", noted)
        assert export_tool.main([str(folder)]) == 0
    np.savez(folder / "alone.npz", **alone)

"""Loading a detector by its place on disk: a SavedModel, a checkpoint's folder, or a run's folder."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from pydantic import ValidationError

from detector import checkpoint
from detector.builder import build_model, build_resizer
from detector.checkpoint import CheckpointError, CheckpointInfo
from detector.export import ENCODED_SIGNATURE, LABEL_MAP, is_saved_model, label_map_ids, serving_functions
from detector.faster_rcnn import FasterRCNN
from detector.graph_rewriting import without_memory_optimizer
from detector.label_map import read_label_map
from detector.model_config import ModelConfig, Precision
from detector.plain_path import require_plain
from detector.resizer import Resizer
from detector.run_log import Which, find_checkpoint, is_run


@dataclass(frozen=True)
class ImageDetections:
    """The D detections on one image, best first.

    `boxes_yxyx` float32 [D, 4], parts of the image's height and width; `scores` float32 [D]; `classes`
    int64 [D], 0 … C-1.
    """

    boxes_yxyx: np.ndarray
    scores: np.ndarray
    classes: np.ndarray

    def boxes_in_pixels(self, height: int, width: int) -> np.ndarray:
        """Return the boxes float32 [D, 4] in pixels of an image of this size."""
        return self.boxes_yxyx * np.array([height, width, height, width], np.float32)


@dataclass(frozen=True)
class LoadedDetector:
    """A detector that takes images as they lie in files.

    `label_map` is {id: name}, ids rising; a class of the detections is a place in it.
    """

    label_map: dict[int, str]
    serve: Callable[[tf.Tensor], dict[str, tf.Tensor]]
    """The encoded signature of `detector.export`."""
    owner: Any
    """What holds the variables: a function of a SavedModel does not keep them alive."""

    def detect(self, encoded: Sequence[bytes]) -> list[ImageDetections]:
        """Detect on a batch of encoded images.

        Raises:
            ValueError: an image cannot be decoded.
        """
        try:
            with without_memory_optimizer():
                outputs = self.serve(tf.constant(encoded, tf.string))
            found = {name: value.numpy() for name, value in outputs.items()}
        except tf.errors.InvalidArgumentError as error:
            raise ValueError(f"an image cannot be decoded: {_reason(error)}") from None
        counts = found["num_detections"].astype(np.int64)
        classes = np.searchsorted(list(self.label_map), found["detection_classes"])
        return [
            ImageDetections(
                found["detection_boxes"][row, :count],
                found["detection_scores"][row, :count],
                classes[row, :count],
            )
            for row, count in enumerate(counts)
        ]


def load_detector(path: str | Path, which: Which | None = None) -> LoadedDetector:
    """Load a SavedModel of `detector.export`, a checkpoint, or a run's checkpoint (see `find_checkpoint`).

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: it is none of the three, or damaged, or a SavedModel of another origin.
    """
    path = Path(path)
    if is_saved_model(path):
        return _load_saved_model(path)
    model, resizer, info = load_checkpoint(find_checkpoint(path, which))
    ids = label_map_ids(info.categories)
    serve = serving_functions(model, resizer, ids)[ENCODED_SIGNATURE]
    label_map = dict(sorted(zip(ids, info.class_names, strict=True)))
    return LoadedDetector(label_map, serve, model)


def load_checkpoint(
    path: str | Path, precision: Precision | None = None, max_proposals: int | None = None
) -> tuple[FasterRCNN, Resizer, CheckpointInfo]:
    """Build the model that a checkpoint is of and restore it.

    Args:
        path: the checkpoint's folder.
        precision: computes in this one; None for the one it was trained in.
        max_proposals: makes this many proposals an image, from 1 on; None for as many as it was trained with.

    Raises:
        CheckpointError: the checkpoint is damaged, or of another version of this package.
    """
    info = checkpoint.read_info(path)
    try:
        config = ModelConfig.model_validate(info.model)
    except ValidationError as error:
        reason = str(error).splitlines()[2].strip()
        raise CheckpointError(f"{path}: its model configuration is not this version's: {reason}") from None
    if precision is not None:
        config = config.model_copy(update={"precision": precision})
    if max_proposals is not None:
        rpn = config.rpn.model_copy(update={"max_proposals": max_proposals})
        config = config.model_copy(update={"rpn": rpn})
    model = build_model(config, info.class_names)
    checkpoint.restore(path, model.variables_by_path)
    return model, build_resizer(config), info


def run_of(path: str | Path) -> Path | None:
    """Return the run's folder that `path` is or lies in (as a checkpoint or an export of it), or None."""
    path, here = Path(path).resolve(), Path.cwd()
    found = next((folder for folder in (path, *path.parents[:2]) if is_run(folder)), None)
    return found.relative_to(here) if found is not None and found.is_relative_to(here) else found


def place_beside(model: str | Path, kind: str) -> Path:
    """Return where what is made of a checkpoint or SavedModel goes: `KIND-NAME` in its run, else beside it.

    Never among a run's checkpoints, whose folder is tidied while the run goes on.
    """
    return (run_of(model) or Path(model).parent) / f"{kind}-{Path(model).resolve().name}"


def _reason(error: tf.errors.OpError) -> str:
    """Return what an operation of a graph said: before it is where it was made, behind it which one it is."""
    said = error.message.partition("\n\t [[")[0].rpartition("\n")[-1]
    return re.sub(r"^assertion failed: \[(.*)\]$", r"\1", said)


def _load_saved_model(path: Path) -> LoadedDetector:
    if not (path / LABEL_MAP).is_file():
        raise ValueError(f"{path} is not of tools/export.py: it has no {LABEL_MAP}")
    require_plain(path)
    try:
        loaded = tf.saved_model.load(str(path))
    except (OSError, tf.errors.OpError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {str(error).splitlines()[0]}; export it again") from None
    if ENCODED_SIGNATURE not in loaded.signatures:
        raise ValueError(
            f"{path} is not of tools/export.py: it has the signatures {sorted(loaded.signatures)}, "
            f"not {ENCODED_SIGNATURE}"
        )
    return LoadedDetector(read_label_map(path / LABEL_MAP), loaded.signatures[ENCODED_SIGNATURE], loaded)

"""Weights from a file into a model: recognise the format, check everything, then assign, and account for all.

Every variable of the model ends as restored or fresh, every entry of the file as used or left, each with its
reason; whatever is neither is an error, and then nothing has been assigned.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from detector.faster_rcnn import FasterRCNN
from detector.provenance import provenance_of
from detector.weights import (
    keras_applications,
    keras_inception,
    model_garden,
    native,
    slim_classification,
    tf1_zoo,
    tf2_zoo,
)
from detector.weights.plan import Origin, Plan
from detector.weights.source import Source, WeightsError, open_source

KINDS = ("classification", "detection", "full")
_FORMATS: tuple[ModuleType, ...] = (
    native,
    tf1_zoo,
    tf2_zoo,
    slim_classification,
    model_garden,
    keras_applications,
    keras_inception,
)
_CLASS_SCORES, _BOXES = "box_classifier/predictor/class_scores/", "box_classifier/predictor/box_refinement/"
_SHOWN = 8  # problems an error lists before it counts the rest


@dataclass(frozen=True)
class ImportReport:
    """What became of every variable.

    `source` is the file and `format` what it was recognised as.  `restored` says for the paths of the model
    whose values come from the file which entry that is, `fresh` for the others why they do not; `left` why
    an entry of the file is not used.  `classes` are the model's if its predictor has the file's values by
    place, the first class those of the file's first: other projects' files do not name their classes.
    """

    source: str
    format: str
    restored: dict[str, str]
    fresh: dict[str, str]
    left: dict[str, str]
    classes: tuple[str, ...] = ()

    def provenance(self) -> dict[str, dict[str, Any]]:
        """Return per component where its values came from; see `detector.provenance`."""
        return provenance_of(self.restored, self.fresh, self.source, self.format)


def import_weights(model: FasterRCNN, path: str | Path, kind: str | None = None) -> ImportReport:
    """Give the model's variables their values from a file, and say which.

    Args:
        model: with fresh weights.
        path: what `source.open_source` takes.
        kind: the Object Detection API's `fine_tune_checkpoint_type`, with its meaning there
            (`meta_architectures/faster_rcnn_meta_arch.py`, `restore_map` and `restore_from_objects`):
            "classification" restores the feature extractor and the tower from an image classifier;
            "detection" restores those two, and nothing else, from a detector;
            "full" restores all of a detector.
            None stands for "classification" or "full", as the file may be.
            Where the number of classes differs, the predictor's variables are fresh; where it does not, a
            detector of another project keeps them class by class, whatever the classes are called.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsError: the file is damaged or of no known format, of another kind or network, or an entry is
            missing, unknown or of another shape; nothing is assigned then.
    """
    if kind not in (None, *KINDS):
        raise WeightsError(f"the type of a checkpoint is one of {', '.join(KINDS)}; got {kind!r}")
    source = open_source(path)
    importer = _recognise(source)
    kind = _kind(source, importer, kind)
    plan = importer.plan(model, source, kind)
    variables = model.variables_by_path
    shapes = {name: tuple(variable.shape) for name, variable in variables.items()}
    plan = _without_other_classes(plan, source, shapes)
    _check(plan, source, shapes)
    values = {name: _value(origin, source) for name, origin in plan.origins.items()}
    for name, value in values.items():
        variables[name].assign(value)
    return ImportReport(
        source.path,
        plan.format,
        {name: plan.origins[name].names[0] for name in shapes if name in values and name not in plan.fresh},
        {name: plan.fresh[name] for name in shapes if name in plan.fresh},
        dict(sorted(plan.left.items())),
        model.class_names if importer is not native and f"{_CLASS_SCORES}bias" in plan.origins else (),
    )


def model_of(path: str | Path) -> tuple[dict[str, Any], list[str]]:
    """Return the model that the weights in a file are for, as far as they tell.

    Returns the `model` section of a configuration, and its classes by name: as they are called in a
    checkpoint of this package, by number, from "1" on, in other detectors, none in classifiers.

    Raises as `import_weights` does.
    """
    source = open_source(path)
    importer = _recognise(source)
    if source.info is not None:
        return source.info.model, source.info.class_names
    settings: dict[str, Any] = {"feature_extractor": importer.feature_extractor(source)}
    predictor = importer.predictor_shapes(source) if hasattr(importer, "predictor_shapes") else None
    if predictor is None:
        return settings, []
    scores, boxes = predictor
    classes = scores[-1] - 1
    settings["box_classifier"] = {"share_box_across_classes": boxes[-1] == 4 and classes > 1}
    return settings, [str(number) for number in range(1, classes + 1)]


def _recognise(source: Source) -> ModuleType:
    for importer in _FORMATS:
        if importer.recognises(source):
            return importer
    sample = ", ".join(sorted(source.shapes)[:3]) or "nothing"
    raise WeightsError(
        f"{source.path} is of no known format: it holds {sample}{', …' if len(source.shapes) > 3 else ''}; "
        "expected an Object Detection API detector (TF1 or TF2), a slim classifier, a Model Garden backbone, "
        "a ResNet or Inception of tf_keras.applications, or a checkpoint of this package"
    )


def _kind(source: Source, importer: ModuleType, kind: str | None) -> str:
    """Return `kind`, or the one that the file asks for; raise WeightsError if they do not go together."""
    is_detector = importer in (native, tf1_zoo) or (importer is tf2_zoo and tf2_zoo.holds_a_detector(source))
    if kind is None:
        return "full" if is_detector else "classification"
    if is_detector and kind == "classification":
        raise WeightsError(
            f"{source.path} is a detector's checkpoint, not a classifier's: use the type 'full' to restore "
            "all of it, or 'detection' to restore its feature extractor and tower alone "
            "(train.restore.type, or --type of tools/import_weights.py)"
        )
    if not is_detector and kind != "classification":
        raise WeightsError(
            f"{source.path} is a classifier's checkpoint, which the type {kind!r} cannot restore: use the "
            "type 'classification'; the RPN and the predictor will be fresh"
        )
    return kind


def _without_other_classes(plan: Plan, source: Source, shapes: Mapping[str, tuple[int, ...]]) -> Plan:
    """Make the predictor's variables fresh where the file has another number of classes."""
    scores = plan.origins.get(f"{_CLASS_SCORES}bias")
    if scores is None or scores.compute or scores.names[0] not in source.shapes:
        return plan
    theirs, ours = source.shapes[scores.names[0]][-1] - 1, shapes[f"{_CLASS_SCORES}bias"][-1] - 1
    if theirs == ours:
        return plan
    why = f"{theirs} classes in the file, {ours} in the model"
    origins, fresh, left = dict(plan.origins), dict(plan.fresh), dict(plan.left)
    for path, origin in plan.origins.items():
        # What has a part for every class, on both sides; a box that all classes share has not.
        widths = (theirs + 1, ours + 1) if path.startswith(_CLASS_SCORES) else (4 * theirs, 4 * ours)
        shape = source.shapes.get(origin.names[0])
        expected = (*shapes[path][:-1], widths[0]), (*shapes[path][:-1], widths[1])
        if path.startswith((_CLASS_SCORES, _BOXES)) and (shape, shapes[path]) == expected:
            del origins[path]
            fresh[path] = left[origin.names[0]] = why
    return Plan(plan.format, origins, fresh, left)


def _check(plan: Plan, source: Source, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise one WeightsError that lists everything that is missing, of another shape, or unexpected."""
    problems = []
    used = set(plan.left)
    for path, origin in plan.origins.items():
        used.update(origin.names)
        missing = [name for name in origin.names if name not in source.shapes]
        problems += [f"missing in the file: {name} (for {path})" for name in missing]
        if missing:
            continue
        theirs, ours = source.shapes[origin.names[0]], origin.shape or shapes[path]
        if theirs != ours:
            problems.append(
                f"another shape: {origin.names[0]} is {list(theirs)} in the file, {path} {list(ours)} in the "
                f"model{_shape_hint(path, theirs, ours)}"
            )
    problems += [
        f"no rule for the model's {path}"
        for path in shapes
        if path not in plan.origins and path not in plan.fresh
    ]
    problems += [f"unexpected in the file: {name}" for name in sorted(source.shapes) if name not in used]
    if problems:
        more = [f"… and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise WeightsError(
            f"{source.path} ({plan.format}) does not fit the model, {len(problems)} "
            f"{'difference' if len(problems) == 1 else 'differences'}:\n  "
            + "\n  ".join(problems[:_SHOWN] + more)
        )


def _shape_hint(path: str, theirs: tuple[int, ...], ours: tuple[int, ...]) -> str:
    if path.startswith(_BOXES) and theirs[:-1] == ours[:-1]:
        shared = "true" if theirs[-1] == 4 else "false"
        return f": set model.box_classifier.share_box_across_classes={shared}"
    if path.startswith("rpn/") and "/conv/" not in path and theirs[:-1] == ours[:-1]:
        return ": the number of anchors per cell differs, see model.anchors"
    return ""


def _value(origin: Origin, source: Source) -> np.ndarray:
    entries = [source.read(name) for name in origin.names]
    return origin.compute(*entries) if origin.compute else entries[0]

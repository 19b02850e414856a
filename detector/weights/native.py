"""This package's own checkpoints, into a model of the same architecture whose classes may be others.

Classes are matched by name.  A class that both have keeps its column of `class_scores` and
`box_refinement`, as the background does; a class that only the model has keeps its fresh values there.  A
variable with any fresh column counts as fresh, because freezing it would freeze those too.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from detector.checkpoint import CheckpointInfo
from detector.faster_rcnn import FasterRCNN
from detector.label_map import are_numbered
from detector.weights.architecture import Architecture, architecture_of, backbone_paths
from detector.weights.plan import FEATURES_ONLY, Origin, Plan, left_by_pattern
from detector.weights.source import Source, WeightsError

_LEFT = ((r"^optimizer/", "the optimizer's state"),)
_PREDICTOR = "box_classifier/predictor/"
_NAMED = 6  # classes that a reason names before it counts the rest


def recognises(source: Source) -> bool:
    """Whether the file is a checkpoint of this package."""
    return source.kind == "native"


def plan(model: FasterRCNN, source: Source, kind: str) -> Plan:
    """Say where each variable is.  Raises WeightsError on another network."""
    info = source.info
    assert info is not None
    extractor = info.model.get("feature_extractor", {})
    is_resnet = str(extractor.get("type", "")).startswith("resnet")
    theirs = Architecture(str(extractor.get("type")), extractor.get("topology") if is_resnet else None)
    if extractor and theirs != architecture_of(model):
        raise WeightsError(
            f"{source.path} holds {theirs}, but the model is {architecture_of(model)}: set "
            f"model.feature_extractor.type={theirs.network}"
            + (f" model.feature_extractor.topology={theirs.topology}" if theirs.topology else "")
        )
    variables = model.variables_by_path
    left = left_by_pattern(source.shapes, _LEFT)
    origins = {path: Origin((path,)) for path in variables}
    fresh: dict[str, str] = {}
    if kind == "detection":
        backbone = set(backbone_paths(model))
        left |= {path: FEATURES_ONLY for path in variables if path not in backbone and path in source.shapes}
        fresh = {path: FEATURES_ONLY for path in variables if path not in backbone}
        origins = {path: origin for path, origin in origins.items() if path in backbone}
    elif tuple(info.class_names) != model.class_names:
        for path in variables:
            if path.startswith(_PREDICTOR):
                _match_classes(path, variables[path], model.class_names, source, origins, fresh)
    fresh |= {
        path: "fresh in the checkpoint too, and never trained" for path in _untrained(info) & origins.keys()
    }
    return Plan("checkpoint of this package", origins, fresh, left)


def _untrained(info: CheckpointInfo) -> set[str]:
    """Return the paths that still hold an initializer's value: fresh at the start, and moved by no step.

    What the page does not say of a trained checkpoint counts as trained.
    """
    fresh = {path for part in info.provenance.values() for path in part.get("fresh", ())}
    earlier = info.training.get("proofs", [])  # of the freeze stages that ended
    stood_still = [proof["variables"].keys() for proof in earlier]
    # A stage that was stopped before its first step moved nothing, whatever it trains.
    if info.step > (earlier[-1]["step"] if earlier else 0):
        stood_still.append(info.training.get("frozen_digests", {}).keys())
    return fresh.intersection(*stood_still)


def _match_classes(
    path: str,
    variable: tf.Variable,
    ours: Sequence[str],
    source: Source,
    origins: dict[str, Origin],
    fresh: dict[str, str],
) -> None:
    """Set the origin of a predictor's variable, and why it is fresh where it is."""
    assert source.info is not None
    theirs = source.info.class_names
    per_class = 1 if "/class_scores/" in path else 4
    background = 1 if per_class == 1 else 0
    # The last axis: background, then the classes; or four numbers a class.
    if path not in source.shapes or source.shapes[path][-1] != per_class * (len(theirs) + background):
        return  # one box for all classes; anything else is a shape mismatch
    if variable.shape[-1] != per_class * (len(ours) + background):
        return
    row_of = {name: row for row, name in enumerate(theirs)}

    def matched(value: np.ndarray) -> np.ndarray:
        result = variable.numpy()
        result[..., :background] = value[..., :background]
        for row, name in enumerate(ours):
            if name in row_of:
                to, at = (background + per_class * number for number in (row, row_of[name]))
                result[..., to : to + per_class] = value[..., at : at + per_class]
        return result

    origins[path] = Origin((path,), matched, (*variable.shape[:-1], source.shapes[path][-1]))
    new = [name for name in ours if name not in row_of]
    if new:
        kept = [name for name in ours if name in row_of]
        fresh[path] = f"new: {_listed(new)}; keep their values: {_listed(kept) or 'none but the background'}"
        if not kept and are_numbered(theirs):
            fresh[path] += (
                f"; the file's classes are called 1 … {len(theirs)}: to name them, import it again with "
                "tools/import_weights.py --label-map"
            )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more

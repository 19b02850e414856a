"""ImageNet weights of `tf_keras.applications` Inception v3 and Inception-ResNet v2 (`.h5`).

With the top and without.  Keras numbers most of their layers (`conv2d_17`), through all models of a process,
and files that were converted may have other names altogether.  So Keras reads such a file by the order of its
layers, and so does this: it puts ours in the order that `tf_keras.Model.layers` has.
"""

from collections.abc import Iterable
from typing import NamedTuple

import tf_keras

from detector.component import child_layers
from detector.faster_rcnn import FasterRCNN
from detector.feature_extractors.convolution import Chain, Conv
from detector.feature_extractors.inception import Mixed
from detector.feature_extractors.inception_resnet_v2 import Residual
from detector.feature_extractors.inception_v3 import Fork
from detector.weights.architecture import backbone_paths, detector_paths, require
from detector.weights.plan import NO_DETECTOR, Origin, Plan, left_by_pattern
from detector.weights.source import Source, WeightsError

_LEFT = ((r"^predictions/", "the classifier on top"),)
_NETWORKS = {94: "inception_v3", 244: "inception_resnet_v2"}  # by number of convolutions


def recognises(source: Source) -> bool:
    """Whether the file is such a network's: by its number of convolutions, and batch norms without scale."""
    return (
        source.kind == "h5"
        and _convolutions(source) in _NETWORKS
        and not any(name.endswith("/gamma") for name in source.shapes)
    )


def plan(model: FasterRCNN, source: Source, kind: str) -> Plan:
    """Say where each variable is; raises WeightsError on another network."""
    require(model, source, _NETWORKS[_convolutions(source)])
    left = left_by_pattern(source.shapes, _LEFT)
    theirs = list(dict.fromkeys(name.rpartition("/")[0] for name in source.shapes if name not in left))
    ours = layers_with_weights(model)
    if len(theirs) != len(ours):
        raise WeightsError(
            f"{source.path} has {len(theirs)} layers with weights below the classifier; expected {len(ours)}"
        )
    layer_of = dict(zip(ours, theirs, strict=True))
    origins = {}
    for path in backbone_paths(model):
        layer, _, leaf = path.rpartition("/")
        origins[path] = Origin((f"{layer_of[layer]}/{leaf}",))
    return Plan("Keras applications", origins, dict.fromkeys(detector_paths(model), NO_DETECTOR), left)


def feature_extractor(source: Source) -> dict[str, str]:
    """Return the `model.feature_extractor` that the file is for."""
    return {"type": _NETWORKS[_convolutions(source)]}


def layers_with_weights(model: FasterRCNN) -> list[str]:
    """Return the paths of the convolutions and batch norms in the order of Keras's functional model.

    Keras sorts layers by their distance from the output, the longest way counting, and those of one distance
    branch by branch.
    """
    network = _in_series(
        _span(stage, f"{prefix}/{name}")
        for prefix, component in (
            ("feature_extractor", model.feature_extractor),
            ("box_classifier/tower", model.box_classifier.tower),
        )
        for name, stage in component.stages.items()
    )
    return sorted(network.distances, key=lambda path: -network.distances[path])


class _Span(NamedTuple):
    """A part of Keras's graph: the distance of its layers with weights from its end, and its length."""

    distances: dict[str, int]
    length: int


_PLAIN = _Span({}, 1)  # a layer without weights


def _span(layer: tf_keras.layers.Layer, path: str) -> _Span:
    if isinstance(layer, Conv):
        relu = [_PLAIN] if layer.relu else []
        return _in_series([_Span({path: 0}, 1), _Span({f"{path}/BatchNorm": 0}, 1), *relu])
    if isinstance(layer, tf_keras.layers.Conv2D):
        return _Span({path: 0}, 1)
    parts = [_span(child, f"{path}/{name}") for name, child in child_layers(layer)]
    if isinstance(layer, Fork):
        return _in_series([*parts[:-2], _side_by_side(parts[-2:])])
    if isinstance(layer, Chain):
        return _in_series(parts)
    if isinstance(layer, Mixed):
        return _side_by_side(parts)
    if isinstance(layer, Residual):
        *branches, projection = parts
        relu = [_PLAIN] if layer.relu else []
        return _in_series([_side_by_side(branches), projection, _PLAIN, *relu])  # the plain one adds
    return _PLAIN


def _in_series(parts: Iterable[_Span]) -> _Span:
    parts = list(parts)
    length = sum(part.length for part in parts)
    distances: dict[str, int] = {}
    behind = length
    for part in parts:
        behind -= part.length
        distances |= {path: behind + distance for path, distance in part.distances.items()}
    return _Span(distances, length)


def _side_by_side(parts: Iterable[_Span]) -> _Span:
    """Branches and the layer that concatenates them."""
    parts = list(parts)
    distances = {path: 1 + distance for part in parts for path, distance in part.distances.items()}
    return _Span(distances, 1 + max(part.length for part in parts))


def _convolutions(source: Source) -> int:
    return sum(name.endswith("/kernel") and len(shape) == 4 for name, shape in source.shapes.items())

"""Classification checkpoints of slim's Inceptions and ResNet v1: the feature extractor and the tower.

Slim's Inception v2 (`nets/inception_utils.py`, `inception_arg_scope`) has no scale in its batch norms, and
in its first layer, which is separable, a bias and no batch norm.  Both are a batch norm's special case: a
scale of 1, and a batch norm that subtracts 0, divides by 1 and adds the bias.  So the network computes what
it did.  (The Object Detection API leaves that first batch norm at its initial values and drops the bias.)
"""

import re

import numpy as np

from detector.faster_rcnn import FasterRCNN
from detector.weights.architecture import (
    architecture_of,
    backbone_paths,
    batch_norm_epsilon,
    detector_paths,
    require,
)
from detector.weights.object_detection_api import SLIM_SCOPES, slim_name
from detector.weights.plan import NO_DETECTOR, Origin, Plan, left_by_pattern
from detector.weights.source import Source
from detector.weights.tf1_zoo import TF1_TRAINING_STATE

_LEFT = (
    *TF1_TRAINING_STATE,
    (r"^(Inception\w+/Logits|resnet_v1_\d+/logits)/", "the classifier on top"),
    (r"^Inception\w+/AuxLogits/", "the auxiliary classifier"),
    (r"^resnet_v1_\d+/mean_rgb$", "a constant of the preprocessing"),
)


def recognises(source: Source) -> bool:
    """Whether the file is such a checkpoint."""
    return source.kind == "tensorflow" and _network(source) is not None


def plan(model: FasterRCNN, source: Source, kind: str) -> Plan:
    """Say where each variable is; raises WeightsError on another network."""
    network = _network(source)
    assert network is not None
    # The units of both topologies have the same variables, but the strides lie elsewhere: the weights of
    # one make a network of another meaning in the other.
    require(model, source, network, None if network in SLIM_SCOPES else "slim")
    architecture = architecture_of(model)
    backbone = backbone_paths(model)
    epsilon = batch_norm_epsilon(model)
    origins = {path: _origin(slim_name(architecture, path), source, epsilon) for path in backbone}
    return Plan(
        "slim classification",
        origins,
        dict.fromkeys(detector_paths(model), NO_DETECTOR),
        left_by_pattern(source.shapes, _LEFT),
    )


def _origin(name: str, source: Source, epsilon: float) -> Origin:
    layer, _, leaf = name.rpartition("/BatchNorm/")
    if name in source.shapes or not layer:
        return Origin((name,))
    bias, offset = f"{layer}/biases", f"{layer}/BatchNorm/beta"
    if bias in source.shapes:
        identity = {
            "gamma": np.ones_like,
            "beta": None,
            "moving_mean": np.zeros_like,
            "moving_variance": lambda values: np.full_like(values, 1.0 - epsilon),
        }
        return Origin((bias,), identity[leaf])
    has_scale = any(other.endswith("/BatchNorm/gamma") for other in source.shapes)
    if leaf == "gamma" and not has_scale:
        return Origin((offset,), np.ones_like)
    return Origin((name,))


def feature_extractor(source: Source) -> dict[str, str]:
    """Return the `model.feature_extractor` that the file is for."""
    network = _network(source)
    assert network is not None
    return {"type": network} if network in SLIM_SCOPES else {"type": network, "topology": "slim"}


def _network(source: Source) -> str | None:
    networks = {scope: network for network, scope in SLIM_SCOPES.items()}
    for name in source.shapes:
        if network := networks.get(name.partition("/")[0]):
            return network
        if match := re.match(r"resnet_v1_(50|101|152)/", name):
            return f"resnet{match[1]}"
    return None

"""ImageNet weights of `tf_keras.applications` ResNet-50, -101 and -152 (`.h5`), with and without the top.

Three differences are folded into the values, so that the same pixels give the same activations:

- its convolutions have biases, ours have none: the batch norm's moving mean is less by the bias;
- its batch norm adds 1.001e-5 to the variance, ours less: the moving variance is more by the difference;
- it was trained on blue, green, red (`imagenet_utils.preprocess_input`, mode "caffe"; the means are the
  same): the channels of the first kernel are turned round.

The last is exact up to the order of a sum.  Its first max pool pads by one pixel on every side, ours
"SAME", as the Object Detection API's ResNets do on the same weights.
"""

import re

import numpy as np

from detector.faster_rcnn import FasterRCNN
from detector.weights.architecture import (
    backbone_paths,
    batch_norm_epsilon,
    detector_paths,
    inner_path,
    require,
)
from detector.weights.plan import NO_DETECTOR, Origin, Plan, left_by_pattern
from detector.weights.source import Source, WeightsError

EPSILON = 1.001e-5  # `applications/resnet.py`
_SLOTS = {"shortcut": 0, "conv1": 1, "conv2": 2, "conv3": 3}
_LEFT = ((r"^(predictions|probs|fc\d+)/", "the classifier on top"),)
_NETWORKS = {(4, 6): "resnet50", (4, 23): "resnet101", (8, 36): "resnet152"}  # blocks of conv3 and conv4


def recognises(source: Source) -> bool:
    """Whether the file is a Keras ResNet's."""
    return source.kind == "h5" and "conv1_conv/kernel" in source.shapes


def plan(model: FasterRCNN, source: Source, kind: str) -> Plan:
    """Say where each variable is; raises WeightsError on another network or a larger epsilon."""
    require(model, source, _network(source), "keras")
    backbone = backbone_paths(model)
    more_variance = EPSILON - _epsilon(model, source)
    return Plan(
        "Keras applications",
        {path: _origin(path, more_variance) for path in backbone},
        dict.fromkeys(detector_paths(model), NO_DETECTOR),
        left_by_pattern(source.shapes, _LEFT),
    )


def feature_extractor(source: Source) -> dict[str, str]:
    """Return the `model.feature_extractor` that the file is for."""
    return {"type": _network(source), "topology": "keras"}


def _origin(path: str, more_variance: float) -> Origin:
    convolution, batch_norm = _layer_names(path)
    leaf = path.rpartition("/")[2]
    if leaf == "kernel":
        turned = (lambda kernel: kernel[:, :, ::-1, :]) if convolution == "conv1_conv" else None
        return Origin((f"{convolution}/kernel",), turned)
    entry = f"{batch_norm}/{leaf}"
    if leaf == "moving_mean":
        return Origin((entry, f"{convolution}/bias"), lambda mean, bias: mean - bias)
    if leaf == "moving_variance":
        # In float64: the difference is less than a float32's last place at a variance of 1.
        return Origin(
            (entry,), lambda variance: (variance.astype(np.float64) + more_variance).astype(np.float32)
        )
    return Origin((entry,))


def _layer_names(path: str) -> tuple[str, str]:
    """Return the names of the convolution and the batch norm of the layer with the variable at `path`."""
    stage, *rest = inner_path(path).split("/")
    name = stage if stage == "conv1" else f"{stage}_{rest[0]}_{_SLOTS[rest[1]]}"
    return f"{name}_conv", f"{name}_bn"


def _network(source: Source) -> str:
    if any("_preact_bn/" in name for name in source.shapes):
        raise WeightsError(
            f"{source.path} holds a ResNet v2; expected a ResNet v1: ResNet50, ResNet101 or ResNet152"
        )
    blocks = {
        stage: {int(m[1]) for n in source.shapes if (m := re.match(rf"{stage}_block(\d+)_", n))}
        for stage in ("conv3", "conv4")
    }
    counts = (len(blocks["conv3"]), len(blocks["conv4"]))
    if counts not in _NETWORKS:
        raise WeightsError(
            f"{source.path} has {counts[0]} and {counts[1]} blocks in conv3 and conv4; expected "
            + ", ".join(f"{a} and {b} ({network})" for (a, b), network in _NETWORKS.items())
        )
    return _NETWORKS[counts]


def _epsilon(model: FasterRCNN, source: Source) -> float:
    epsilon = batch_norm_epsilon(model)
    if epsilon > EPSILON:
        # The variance would have to shrink, perhaps below zero.
        raise WeightsError(
            f"{source.path} is for a batch_norm_epsilon of {EPSILON:g} or less, the model has {epsilon:g}: "
            "leave model.feature_extractor.batch_norm_epsilon out"
        )
    return epsilon

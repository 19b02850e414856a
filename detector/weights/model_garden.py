"""Checkpoints of the TensorFlow Model Garden's ResNet-50, -101 and -152 backbones (`backbone/…`), by key.

They are for the topology "garden", which computes what they were trained to compute.

The Model Garden divides pixels by 255, takes a mean and divides by a deviation per colour
(`official/vision/ops/preprocess_ops.py`), where this package takes another mean only.  Both are folded into
the first kernel and its batch norm: exactly, but for the first convolution's padding at the image's edge,
which stands for another grey.

The batch norm's epsilon is not in the file; the published ones have 1e-5, which is the default here.
"""

import re

import numpy as np

from detector.faster_rcnn import FasterRCNN
from detector.feature_extractors.resnet import CHANNEL_MEANS_RGB
from detector.weights.architecture import backbone_paths, detector_paths, inner_path, require
from detector.weights.keras_order import BATCH_NORM_LEAVES
from detector.weights.plan import NO_DETECTOR, Origin, Plan, left_by_pattern
from detector.weights.source import Source, WeightsError
from detector.weights.tf2_zoo import TF2_TRAINING_STATE, VALUE

# `preprocess_ops.MEAN_RGB` and `STDDEV_RGB`.
MEAN_RGB = (0.485 * 255, 0.456 * 255, 0.406 * 255)
STDDEV_RGB = (0.229 * 255, 0.224 * 255, 0.225 * 255)

_SCOPE = "backbone"
_LEFT = (*TF2_TRAINING_STATE, (rf"^(?!{_SCOPE}/)", "another part of the Model Garden's model"))
# Within a block; the norm of the shortcut is `_norm0`.
_CONVOLUTIONS = {"conv1": "_conv1", "conv2": "_conv2", "conv3": "_conv3", "shortcut": "_shortcut"}
_NORMS = {"conv1": "_norm1", "conv2": "_norm2", "conv3": "_norm3", "shortcut": "_norm0"}
_NETWORKS = {16: "resnet50", 33: "resnet101", 50: "resnet152"}  # by number of blocks


def recognises(source: Source) -> bool:
    """Whether the file holds a Model Garden backbone."""
    return source.kind == "tensorflow" and any(
        name.startswith(f"{_SCOPE}/layer_with_weights-") for name in source.shapes
    )


def plan(model: FasterRCNN, source: Source, kind: str) -> Plan:
    """Say where each variable is; raises WeightsError on another network."""
    require(model, source, _network(source), "garden")
    backbone = backbone_paths(model)
    blocks = list(dict.fromkeys(block for path in backbone if (block := _block(path))))
    return Plan(
        "Model Garden backbone",
        {path: _origin(path, blocks) for path in backbone},
        dict.fromkeys(detector_paths(model), NO_DETECTOR),
        left_by_pattern(source.shapes, _LEFT),
    )


def feature_extractor(source: Source) -> dict[str, str]:
    """Return the `model.feature_extractor` that the file is for."""
    return {"type": _network(source), "topology": "garden"}


def _origin(path: str, blocks: list[str]) -> Origin:
    layer_path, _, leaf = path.rpartition("/")
    is_norm = leaf in BATCH_NORM_LEAVES
    layer = layer_path.removesuffix("/BatchNorm").rpartition("/")[2]
    block = _block(path)
    if block:
        name = (_NORMS if is_norm else _CONVOLUTIONS)[layer]
        return Origin((f"{_SCOPE}/layer_with_weights-{2 + blocks.index(block)}/{name}/{leaf}{VALUE}",))
    first_kernel = f"{_SCOPE}/layer_with_weights-0/kernel{VALUE}"
    if leaf == "kernel":
        return Origin(
            (first_kernel,), lambda kernel: kernel / np.array(STDDEV_RGB, np.float32)[:, np.newaxis]
        )
    entry = f"{_SCOPE}/layer_with_weights-1/{leaf}{VALUE}"
    if leaf == "moving_mean":
        return Origin((entry, first_kernel), _shift_mean)
    return Origin((entry,))


def _shift_mean(mean: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Take from the moving mean what our pixels, less other means, bring less than the Model Garden's."""
    colour = (np.array(CHANNEL_MEANS_RGB) - MEAN_RGB) / STDDEV_RGB
    return (mean - np.einsum("hwcf,c->f", kernel.astype(np.float64), colour)).astype(np.float32)


def _block(path: str) -> str:
    stage, block, *_ = inner_path(path).split("/")
    return "" if stage == "conv1" else f"{stage}/{block}"


def _network(source: Source) -> str:
    blocks = {
        m[1] for name in source.shapes if (m := re.match(rf"{_SCOPE}/layer_with_weights-(\d+)/_conv3/", name))
    }
    stem = source.shapes.get(f"{_SCOPE}/layer_with_weights-0/kernel{VALUE}")
    if len(blocks) not in _NETWORKS or stem != (7, 7, 3, 64):
        raise WeightsError(
            f"{source.path} has {len(blocks)} bottleneck blocks behind a first kernel of {stem}; expected "
            + ", ".join(f"{count} ({network})" for count, network in _NETWORKS.items())
            + " behind (7, 7, 3, 64): stem v0, width 1, no ResNet-D or -RS"
        )
    return _NETWORKS[len(blocks)]

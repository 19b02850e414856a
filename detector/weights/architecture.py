"""Which published network a model's feature extractor is, read off its layers."""

from dataclasses import dataclass

from detector.batch_norm import BatchNorm
from detector.component import child_layers, walk_layers
from detector.faster_rcnn import FasterRCNN
from detector.weights.source import Source, WeightsError

# By a stage that no other network has.
_INCEPTIONS = {"Mixed_5a": "inception_v2", "Mixed_7c": "inception_v3", "Block8": "inception_resnet_v2"}
# Blocks of conv2 … conv5, arXiv:1512.03385 table 1.
_RESNETS = {(3, 4, 6, 3): "resnet50", (3, 4, 23, 3): "resnet101", (3, 8, 36, 3): "resnet152"}


@dataclass(frozen=True)
class Architecture:
    """`network` is the configuration's `model.feature_extractor.type`; `topology` is of ResNets alone."""

    network: str
    topology: str | None = None

    def __str__(self) -> str:
        return f"{self.network} ({self.topology} topology)" if self.topology else self.network

    @property
    def is_resnet(self) -> bool:
        """Whether it is a ResNet."""
        return self.network.startswith("resnet")


def architecture_of(model: FasterRCNN) -> Architecture:
    """Return what `model` is built on."""
    stages = {**model.feature_extractor.stages, **model.box_classifier.tower.stages}
    for stage, network in _INCEPTIONS.items():
        if stage in stages:
            return Architecture(network)
    blocks = {name: dict(child_layers(stages[name])) for name in ("conv2", "conv3", "conv4", "conv5")}
    network = _RESNETS[
        (len(blocks["conv2"]), len(blocks["conv3"]), len(blocks["conv4"]), len(blocks["conv5"]))
    ]
    # The size is halved in the last block of conv2 (slim), or in the first of conv3, in its 1x1 or its 3x3.
    if blocks["conv2"][f"block{len(blocks['conv2'])}"].stride > 1:
        return Architecture(network, "slim")
    return Architecture(network, "keras" if blocks["conv3"]["block1"].conv1.strides[0] > 1 else "garden")


def require(model: FasterRCNN, source: Source, network: str, topology: str | None = None) -> None:
    """Raise WeightsError unless the model's extractor is `network`, in `topology` where one is given."""
    ours = architecture_of(model)
    theirs = Architecture(network, topology)
    if ours.network == network and topology in (None, ours.topology):
        return
    remedy = f"model.feature_extractor.type={network}" + (
        f" model.feature_extractor.topology={topology}" if topology else ""
    )
    raise WeightsError(f"{source.path} holds {theirs}, but the model is {ours}: set {remedy}")


def backbone_paths(model: FasterRCNN) -> list[str]:
    """Return the paths of the extractor's and the tower's variables, in the order of the forward pass."""
    return [
        path
        for path in model.variables_by_path
        if path.startswith(("feature_extractor/", "box_classifier/tower/"))
    ]


def detector_paths(model: FasterRCNN) -> list[str]:
    """Return the paths of all other variables: the RPN's and the predictor's."""
    backbone = set(backbone_paths(model))
    return [path for path in model.variables_by_path if path not in backbone]


def batch_norm_epsilon(model: FasterRCNN) -> float:
    """Return what the extractor's batch norms add to the variance; all add the same."""
    (epsilon,) = {
        layer.epsilon for _, layer in walk_layers(model.feature_extractor) if isinstance(layer, BatchNorm)
    }
    return epsilon


def inner_path(path: str) -> str:
    """Return a backbone's path without its component: `Mixed_3b/Branch_0/…`, `conv2/block1/…`."""
    return path.removeprefix("feature_extractor/").removeprefix("box_classifier/tower/")

"""Checkpoints of the Object Detection API's TF1 detectors: Inception v2 and slim's ResNet v1, by name."""

import re

from detector.faster_rcnn import FasterRCNN
from detector.weights.architecture import backbone_paths, require
from detector.weights.object_detection_api import FIRST_STAGE, api_names
from detector.weights.plan import FEATURES_ONLY, Origin, Plan, left_by_pattern
from detector.weights.source import Source, WeightsError

# What a TF1 training run saves beside the network.
TF1_TRAINING_STATE = (
    (r"(^|/)global_step$", "the training step"),
    (r"/ExponentialMovingAverage$", "a moving average of the weights; the weights themselves are restored"),
    (
        r"/(Momentum|RMSProp(_\d)?|Adam(_\d)?|Adagrad|Adadelta(_\d)?|Ftrl(_\d)?)$|^(beta\d_power|learning_rate)",
        "the optimizer's state",
    ),
)
_LEFT = (
    *TF1_TRAINING_STATE,
    # The original builds slim's whole ResNet for the first stage and uses it through block3.
    (rf"^{FIRST_STAGE}/resnet_v1_\d+/block4/", "the original's first stage has it and does not use it"),
    (rf"^{FIRST_STAGE}/resnet_v1_\d+/mean_rgb$", "a constant of the preprocessing"),
)


def recognises(source: Source) -> bool:
    """Whether the file is such a checkpoint."""
    return source.kind == "tensorflow" and any(name.startswith(f"{FIRST_STAGE}/") for name in source.shapes)


def plan(model: FasterRCNN, source: Source, kind: str) -> Plan:
    """Say where each variable is.  Raises WeightsError on another network."""
    network, topology = _network(source)
    require(model, source, network, topology)
    names = api_names(model)
    backbone = set(backbone_paths(model))
    left = left_by_pattern(source.shapes, _LEFT)
    if kind == "detection":
        left |= {
            name: FEATURES_ONLY
            for path, name in names.items()
            if path not in backbone and name in source.shapes
        }
    return Plan(
        "Object Detection API, TF1 detector",
        {path: Origin((name,)) for path, name in names.items() if kind == "full" or path in backbone},
        {path: FEATURES_ONLY for path in names if kind == "detection" and path not in backbone},
        left,
    )


def feature_extractor(source: Source) -> dict[str, str]:
    """Return the `model.feature_extractor` that the file is for."""
    network, topology = _network(source)
    return {"type": network, **({"topology": topology} if topology else {})}


def predictor_shapes(source: Source) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return the shapes of the predictor's biases, of class scores and boxes, if the file has them."""
    scores, boxes = (
        source.shapes.get(f"SecondStageBoxPredictor/{name}/biases")
        for name in ("ClassPredictor", "BoxEncodingPredictor")
    )
    return (scores, boxes) if scores and boxes else None


def _network(source: Source) -> tuple[str, str | None]:
    scopes = sorted({name.split("/")[1] for name in source.shapes if name.startswith(f"{FIRST_STAGE}/")})
    if "InceptionV2" in scopes:
        return "inception_v2", None
    for scope in scopes:
        if match := re.fullmatch(r"resnet_v1_(50|101|152)", scope):
            return f"resnet{match[1]}", "slim"
    raise WeightsError(
        f"{source.path} is a detector on {', '.join(scopes)}; expected InceptionV2 or resnet_v1_50, 101, 152"
    )

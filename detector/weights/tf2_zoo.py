"""Object-based checkpoints of the Object Detection API's TF2 detectors on ResNet-50, -101, -152, by key.

Two kinds: a detector (`model/…`), and the ResNet that the API saves for, and restores with, the type
`classification` (`feature_extractor/…`, whose layers are numbered through both halves).
"""

import re

from detector.faster_rcnn import FasterRCNN
from detector.weights.architecture import backbone_paths, detector_paths, require
from detector.weights.keras_order import layers_with_weights, leaves
from detector.weights.plan import FEATURES_ONLY, NO_DETECTOR, Origin, Plan, left_by_pattern
from detector.weights.source import Source, WeightsError

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"

# What a TF2 training run saves beside the network.
TF2_TRAINING_STATE = (
    (r"^_CHECKPOINTABLE_OBJECT_GRAPH$", "the checkpoint's table of contents"),
    (r"^save_counter/", "the number of checkpoints saved"),
    (r"^(global_)?step/", "the training step"),
    (r"(^|/)\.OPTIMIZER_SLOT/|^optimizer/", "the optimizer's state"),
)

_FIRST_HALF = "model/_feature_extractor_for_proposal_features"
_SECOND_HALF = "model/_feature_extractor_for_box_classifier_features"
_WHOLE = "feature_extractor"

_HEADS = {
    "rpn/conv": "model/_first_stage_box_predictor_first_conv/layer_with_weights-0",
    "rpn/objectness": "model/_first_stage_box_predictor/_prediction_heads/"
    "class_predictions_with_background/0/_class_predictor_layers/0",
    "rpn/box_encodings": "model/_first_stage_box_predictor/_prediction_heads/"
    "box_encodings/0/_box_encoder_layers/0",
    # {}: 1, behind the layer that flattens, or 2, behind a dropout too.
    "box_classifier/predictor/class_scores": "model/_mask_rcnn_box_predictor/_class_prediction_head/"
    "_class_predictor_layers/{}",
    "box_classifier/predictor/box_refinement": "model/_mask_rcnn_box_predictor/_box_prediction_head/"
    "_box_encoder_layers/{}",
}
# Layers with weights of the first half: 2 for conv1, 6 for a block, 2 more for the first of each stage.
_NETWORKS = {2 + 6 * 13 + 6: "resnet50", 2 + 6 * 30 + 6: "resnet101", 2 + 6 * 47 + 6: "resnet152"}
_SECOND_HALF_LAYERS = 6 * 3 + 2


def recognises(source: Source) -> bool:
    """Whether the file is a detector or a classification backbone of the API's."""
    return source.kind == "tensorflow" and _is_detector(source) | _is_backbone(source)


def holds_a_detector(source: Source) -> bool:
    """Whether the file is a detector."""
    return _is_detector(source)


def plan(model: FasterRCNN, source: Source, kind: str) -> Plan:
    """Say where each variable is; raises WeightsError on another network."""
    backbone = set(backbone_paths(model))
    others = detector_paths(model)
    training_state = left_by_pattern(source.shapes, TF2_TRAINING_STATE)
    if not _is_detector(source):
        count = _layers(source, _WHOLE)
        require(model, source, _network(source, count - _SECOND_HALF_LAYERS), "keras")
        layers = layers_with_weights(model, "feature_extractor/")
        origins = _numbered(layers + layers_with_weights(model, "box_classifier/tower/"), _WHOLE)
        return Plan(
            "Object Detection API, TF2 backbone", origins, dict.fromkeys(others, NO_DETECTOR), training_state
        )

    require(model, source, _network(source, _layers(source, _FIRST_HALF)), "keras")
    names = {path: name + VALUE for path, name in key_names(model, source).items()}
    left = training_state
    if kind == "detection":
        left = left | {names[path]: FEATURES_ONLY for path in others if names[path] in source.shapes}
    return Plan(
        "Object Detection API, TF2 detector",
        {path: Origin((name,)) for path, name in names.items() if kind == "full" or path in backbone},
        dict.fromkeys(others, FEATURES_ONLY) if kind == "detection" else {},
        left,
    )


def feature_extractor(source: Source) -> dict[str, str]:
    """Return the `model.feature_extractor` that the file is for."""
    if _is_detector(source):
        network = _network(source, _layers(source, _FIRST_HALF))
    else:
        network = _network(source, _layers(source, _WHOLE) - _SECOND_HALF_LAYERS)
    return {"type": network, "topology": "keras"}


def predictor_shapes(source: Source) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return the shapes of the predictor's biases, of class scores and boxes, if the file has them."""
    found = []
    for layer in ("box_classifier/predictor/class_scores", "box_classifier/predictor/box_refinement"):
        names = [f"{_HEADS[layer].format(number)}/bias{VALUE}" for number in (1, 2)]
        found += [source.shapes[name] for name in names if name in source.shapes]
    return (found[0], found[1]) if len(found) == 2 else None


def key_names(model: FasterRCNN, source: Source | None = None) -> dict[str, str]:
    """Return {path: key without `VALUE`} of a detector; `source` tells whether it has a dropout layer."""
    origins = _numbered(layers_with_weights(model, "feature_extractor/"), _FIRST_HALF)
    origins |= _numbered(layers_with_weights(model, "box_classifier/tower/"), _SECOND_HALF)
    names = {path: origin.names[0].removesuffix(VALUE) for path, origin in origins.items()}
    for layer, key in _HEADS.items():
        dropout = source is not None and any(name.startswith(key.format(2) + "/") for name in source.shapes)
        for leaf in ("kernel", "bias"):
            names[f"{layer}/{leaf}"] = f"{key.format(2 if dropout else 1)}/{leaf}"
    return names


def _numbered(layers: list[str], scope: str) -> dict[str, Origin]:
    return {
        f"{layer}/{leaf}": Origin((f"{scope}/layer_with_weights-{number}/{leaf}{VALUE}",))
        for number, layer in enumerate(layers)
        for leaf in leaves(layer)
    }


def _is_detector(source: Source) -> bool:
    return any(name.startswith(f"{_FIRST_HALF}/") for name in source.shapes)


def _is_backbone(source: Source) -> bool:
    return f"{_WHOLE}/layer_with_weights-0/kernel{VALUE}" in source.shapes


def _layers(source: Source, scope: str) -> int:
    numbers = (re.match(rf"{scope}/layer_with_weights-(\d+)/", name) for name in source.shapes)
    return max(int(number[1]) for number in numbers if number) + 1


def _network(source: Source, first_half_layers: int) -> str:
    if first_half_layers not in _NETWORKS:
        raise WeightsError(
            f"{source.path} has {first_half_layers} layers with weights before the crops; expected "
            + ", ".join(f"{count} ({network})" for count, network in _NETWORKS.items())
        )
    return _NETWORKS[first_half_layers]

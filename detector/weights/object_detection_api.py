"""The names that the Object Detection API's TF1 graphs give the variables: slim's, within the API's scopes.

They are what published checkpoints of the TF1 zoo hold and what `freeze_variables` patterns were written for.

A ResNet of the TF2 zoo (`topology: keras`) has the same names here as its TF1 twin, unit for block: the
API's TF2 trainer reads no `freeze_variables` at all, so the only patterns that ever had an effect are those
for these names.  Inception v3, on which the API has no Faster R-CNN, is named by the same rule.
"""

from detector.faster_rcnn import FasterRCNN
from detector.weights.architecture import Architecture, architecture_of, inner_path

# Scopes of `meta_architectures/faster_rcnn_meta_arch.py`.
FIRST_STAGE = "FirstStageFeatureExtractor"
SECOND_STAGE = "SecondStageFeatureExtractor"

SLIM_SCOPES = {
    "inception_v2": "InceptionV2",
    "inception_v3": "InceptionV3",
    "inception_resnet_v2": "InceptionResnetV2",
}
_HEADS = {
    "rpn/conv": "Conv",
    "rpn/objectness": "FirstStageBoxPredictor/ClassPredictor",
    "rpn/box_encodings": "FirstStageBoxPredictor/BoxEncodingPredictor",
    "box_classifier/predictor/class_scores": "SecondStageBoxPredictor/ClassPredictor",
    "box_classifier/predictor/box_refinement": "SecondStageBoxPredictor/BoxEncodingPredictor",
}
_LEAVES = {
    "kernel": "weights",
    "bias": "biases",
    "depthwise_kernel": "depthwise_weights",
    "pointwise_kernel": "pointwise_weights",
}


def api_names(model: FasterRCNN) -> dict[str, str]:
    """Return {path: name} of every variable of the model."""
    architecture = architecture_of(model)
    return {path: _api_name(architecture, path) for path in model.variables_by_path}


def slim_name(architecture: Architecture, path: str) -> str:
    """Return the name of the backbone variable at `path` in slim's classification network."""
    *layers, leaf = inner_path(path).split("/")
    leaf = _LEAVES.get(leaf, leaf)
    if not architecture.is_resnet:
        return "/".join([SLIM_SCOPES[architecture.network], *layers, leaf])
    scope = "resnet_v1_" + architecture.network.removeprefix("resnet")
    if layers[0] != "conv1":
        stage, block, *layers = layers
        layers = [
            f"block{int(stage[-1]) - 1}",
            f"unit_{block.removeprefix('block')}",
            "bottleneck_v1",
            *layers,
        ]
    return "/".join([scope, *layers, leaf])


def _api_name(architecture: Architecture, path: str) -> str:
    layer, _, leaf = path.rpartition("/")
    if layer in _HEADS:
        return f"{_HEADS[layer]}/{_LEAVES[leaf]}"
    name = slim_name(architecture, path)
    if path.startswith("feature_extractor/"):
        return f"{FIRST_STAGE}/{name}"
    # The API builds the tower by itself, so that its repetition is the first within its scope.
    return f"{SECOND_STAGE}/{name.replace('/Repeat_2/', '/Repeat/')}"

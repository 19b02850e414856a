"""A detector in small, as rows of variables to select from."""

from detector.freeze import VariableRow

# (layer path, its variables, its position among the component's layers and their number).  The gap at
# feature_extractor's position 2 is a pooling layer, and the last one of its five layers holds nothing either.
NORM = ("gamma", "beta", "moving_mean", "moving_variance")
LAYERS = [
    ("feature_extractor/Conv2d_1a/conv", ("kernel",), 0, 5),
    ("feature_extractor/Conv2d_1a/BatchNorm", NORM, 1, 5),
    ("feature_extractor/Mixed_3b/conv", ("kernel",), 3, 5),
    ("rpn/conv", ("kernel", "bias"), 0, 2),
    ("rpn/objectness", ("kernel", "bias"), 1, 2),
    ("box_classifier/tower/Mixed_5a/conv", ("kernel",), 0, 5),
    ("box_classifier/tower/Mixed_5a/BatchNorm", NORM, 1, 5),
    ("box_classifier/tower/Mixed_5b/conv", ("kernel",), 2, 5),
    ("box_classifier/predictor/class_scores", ("kernel", "bias"), 3, 5),
    ("box_classifier/predictor/box_refinement", ("kernel", "bias"), 4, 5),
]
API_NAMES = {
    "feature_extractor/Mixed_3b/conv/kernel": "FirstStageFeatureExtractor/InceptionV2/Mixed_3b/conv/weights",
    "rpn/conv/kernel": "Conv/weights",
    "rpn/conv/bias": "Conv/biases",
}


def make_rows(fresh=()):
    return [
        VariableRow(
            path=f"{layer}/{leaf}",
            shape=(2, 3),
            restored=not any(f"{layer}/{leaf}".startswith(prefix) for prefix in fresh),
            api_name=API_NAMES.get(f"{layer}/{leaf}"),
            statistic=leaf.startswith("moving_"),
            layer_index=index,
            layer_count=count,
        )
        for layer, leaves, index, count in LAYERS
        for leaf in leaves
    ]


ROWS = make_rows()
PATHS = [row.path for row in ROWS]
STATISTICS = {row.path for row in ROWS if row.statistic}


def below(*layers):
    """Every path that starts with one of the texts; an independent reading of a prefix."""
    return {path for path in PATHS if path.startswith(layers)}

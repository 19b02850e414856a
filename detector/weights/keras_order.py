"""A ResNet's layers in the order in which Keras's functional model numbers them."""

from detector.faster_rcnn import FasterRCNN
from detector.weights.architecture import backbone_paths

BATCH_NORM_LEAVES = ("gamma", "beta", "moving_mean", "moving_variance")


def layers_with_weights(model: FasterRCNN, prefix: str) -> list[str]:
    """Return the paths of the convolutions and batch norms under `prefix`, in the order of Keras.

    `layer_with_weights-N` counts in it.  Keras sorts the layers of a model by their distance from its output,
    and those of one distance in the order in which they were made.  So a convolution comes before its batch
    norm, except where a block has a shortcut: the convolutions of the shortcut and of `conv3` come first,
    then the batch norms of both.
    """
    convolutions = [
        path.rpartition("/")[0]
        for path in backbone_paths(model)
        if path.startswith(prefix) and path.endswith("/kernel")
    ]
    layers: list[str] = []
    pending: list[str] = []
    for path in convolutions:
        pending.append(path)
        if path.endswith("/shortcut"):
            continue
        layers += pending
        layers += [f"{convolution}/BatchNorm" for convolution in pending]
        pending = []
    return layers


def leaves(layer: str) -> tuple[str, ...]:
    """Return the names of the variables of a layer of `layers_with_weights`."""
    return BATCH_NORM_LEAVES if layer.endswith("/BatchNorm") else ("kernel",)

"""A small detector and a dozen of the embedded data set's images, for tests of what trains it."""

import yaml

from data.shapes import IMAGE_COUNTS, make_shapes
from detector import checkpoint

SMALL_MODEL = {
    "feature_extractor": {"depth_multiplier": 0.1, "min_depth": 4, "batch_norm_momentum": 0.9},
    "resizer": {"kind": "fixed_shape", "height": 64, "width": 64},
    "anchors": {"base_size_hw": [32, 32], "scales": [0.5, 1.0]},
    "rpn": {"conv_depth": 8, "minibatch_size": 16, "max_proposals": 16},
    "box_classifier": {"crop_size": 8, "batch_size": 8, "max_detections": 10},
}


def drawn_shapes(folder, split, count):
    """Draw `count` images of a split; return them as a `data` section has them.

    By their file, so that processes of their own do not draw all of the embedded data set.
    """
    shapes = make_shapes(folder / "shapes", {**dict.fromkeys(IMAGE_COUNTS, 1), split: count})[split]
    annotations, images = shapes / "annotations.json", shapes / "images"
    return {"format": "coco", "annotations": str(annotations), "images": str(images)}


def small_config(folder):
    """Write a configuration of the shapes' target domain, from scratch, evaluated on its training set."""
    source = drawn_shapes(folder, "target/train", 12)
    values = {
        "model": SMALL_MODEL,
        "data": {"train": source, "evaluate": source, "augment": [{"name": "HorizontalFlip", "p": 0.5}]},
        "train": {"steps": 12, "batch_size": 2, "checkpoint_every": 2, "log_every": 1, "clip_norm": 1.0},
        "evaluate": {"batch_size": 12},
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def values_of(run):
    info = checkpoint.read_info(run / "checkpoints" / "last")
    return checkpoint.read_values(run / "checkpoints" / "last", info)

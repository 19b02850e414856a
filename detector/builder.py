"""From a configuration to a model: the one place where settings become constructor arguments."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from detector.anchors import AnchorGrid
from detector.box_classifier import BoxClassifier, Predictor
from detector.component import Component
from detector.faster_rcnn import BoxClassifierSettings, FasterRCNN, RpnSettings
from detector.feature_extractors import inception_resnet_v2, inception_v2, inception_v3, resnet
from detector.model_config import FeatureExtractorConfig, FixedShapeConfig, ModelConfig
from detector.resizer import FixedShapeResizer, KeepAspectRatioResizer, Resizer
from detector.rpn import Rpn

# tf_keras's dtype policy by precision: in what layers compute.  Variables are float32 under both.
_POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}

_INCEPTIONS: dict[str, Any] = {
    "inception_v2": inception_v2,
    "inception_v3": inception_v3,
    "inception_resnet_v2": inception_resnet_v2,
}


def build_model(config: ModelConfig, class_names: Sequence[str], seed: int = 0) -> FasterRCNN:
    """Build the detector for `class_names` with fresh weights, a function of `seed`.

    TensorFlow's global generator is seeded with it, too; Python's and NumPy's are left as they are.

    Raises:
        ValueError: there are no classes, a name stands twice, or `num_classes` says another number.
    """
    if not class_names or len(set(class_names)) != len(class_names):
        raise ValueError(f"class names must be there and differ: {list(class_names)}")
    if config.num_classes is not None and config.num_classes != len(class_names):
        raise ValueError(
            f"model.num_classes is {config.num_classes}, but the data has {len(class_names)} classes: "
            f"{', '.join(class_names)}; leave num_classes out or mend the label map"
        )
    _seed_initializers(seed)
    anchor_grid = AnchorGrid(**config.anchors.model_dump())
    rpn = config.rpn.model_dump()
    box_classifier = config.box_classifier.model_dump()
    for settings in (rpn, box_classifier):
        settings.pop("l2")  # of training, not of the model
    with _layers_computing_in(config.precision):
        first_stage, tower, preprocess = _feature_extractor(config.feature_extractor)
        rpn_component = Rpn(
            anchor_grid.per_cell, **{key: rpn.pop(key) for key in ("conv_depth", "kernel_size", "winograd")}
        )
        predictor = Predictor(
            len(class_names),
            share_box_across_classes=box_classifier.pop("share_box_across_classes"),
            dropout_rate=box_classifier.pop("dropout_rate"),
        )
        second_stage = BoxClassifier(tower, predictor, winograd=box_classifier.pop("winograd"))
    # Outside: the model takes pixels and does the arithmetic of boxes, both in float32.
    model = FasterRCNN(
        first_stage,
        rpn_component,
        second_stage,
        preprocess=preprocess,
        class_names=class_names,
        anchor_grid=anchor_grid,
        rpn_settings=RpnSettings(**rpn),
        box_classifier_settings=BoxClassifierSettings(**box_classifier),
    )
    first_stage.build([None, None, None, 3])
    features = first_stage.compute_output_shape([None, None, None, 3])
    rpn_component.build(features)
    second_stage.build(features)
    return model


def build_resizer(config: ModelConfig) -> Resizer:
    """Return the resizer that the configuration names."""
    resizer = config.resizer
    if isinstance(resizer, FixedShapeConfig):
        return FixedShapeResizer(resizer.height, resizer.width)
    return KeepAspectRatioResizer(resizer.min_dimension, resizer.max_dimension, resizer.pad)


def _feature_extractor(
    config: FeatureExtractorConfig,
) -> tuple[Component, Component, Callable[[tf.Tensor], tf.Tensor]]:
    batch_norm: dict[str, Any] = {
        name: value
        for name, value in (
            ("batch_norm_momentum", config.batch_norm_momentum),
            ("batch_norm_epsilon", config.batch_norm_epsilon),
        )
        if value is not None
    }
    if inception := _INCEPTIONS.get(config.type):
        width = {"depth_multiplier": config.depth_multiplier, "min_depth": config.min_depth, **batch_norm}
        return inception.first_stage(**width), inception.tower(**width), inception.preprocess
    depth = int(config.type.removeprefix("resnet"))
    shape = {"topology": config.topology, **batch_norm}
    return resnet.first_stage(depth, **shape), resnet.tower(depth, **shape), resnet.preprocess


def _seed_initializers(seed: int) -> None:
    """Seed what initial values are drawn from: generators of TensorFlow and of tf_keras.

    The one function of tf_keras for it seeds Python's and NumPy's too.  Those are the caller's, and are put
    back.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    tf_keras.utils.set_random_seed(seed)
    random.setstate(python_state)
    np.random.set_state(numpy_state)


@contextmanager
def _layers_computing_in(precision: str) -> Iterator[None]:
    """Within it, layers are made to compute in `precision`."""
    before = tf_keras.mixed_precision.global_policy()
    tf_keras.mixed_precision.set_global_policy(_POLICIES[precision])
    try:
        yield
    finally:
        tf_keras.mixed_precision.set_global_policy(before)

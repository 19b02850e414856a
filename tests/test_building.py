"""Building makes the variables that a run would, and knows the shapes of what a run computes."""

import pytest
import tensorflow as tf

from detector.builder import build_model
from detector.model_config import ModelConfig

NETWORKS = {
    "inception_v2": {"type": "inception_v2", "depth_multiplier": 0.1},
    "inception_v3": {"type": "inception_v3", "depth_multiplier": 0.1},
    "inception_resnet_v2": {"type": "inception_resnet_v2", "depth_multiplier": 0.1},
    "resnet50, keras": {"type": "resnet50", "topology": "keras"},
    "resnet50, slim": {"type": "resnet50", "topology": "slim"},
    "resnet50, garden": {"type": "resnet50", "topology": "garden"},
}


@pytest.fixture(scope="module", params=NETWORKS)
def model(request):
    return build_model(ModelConfig.model_validate({"feature_extractor": NETWORKS[request.param]}), ["a", "b"])


def test_a_run_finds_every_variable_made_and_the_shapes_foretold(model):
    built = dict(model.variables_by_path)
    # Odd sides: padding and rounding up show.
    images = tf.zeros([1, 75, 101, 3])
    features = model.feature_extractor(images)
    assert features.shape == model.feature_extractor.compute_output_shape(images.shape)
    model.rpn(features)
    crops, tower = tf.zeros([2, 7, 5, features.shape[-1]]), model.box_classifier.tower
    on_crops = tower(crops)
    assert on_crops.shape == tower.compute_output_shape(crops.shape)
    model.box_classifier.predictor(on_crops)
    ran = model.variables_by_path
    assert list(ran) == list(built)
    assert all(ran[path] is built[path] for path in built)


def test_sides_that_are_not_known_stay_unknown(model):
    shape = model.feature_extractor.compute_output_shape([None, None, None, 3])
    known = model.feature_extractor.compute_output_shape([1, 64, 64, 3])
    assert shape.as_list() == [None, None, None, known[-1]]

"""A training step's arithmetic by hand: L2 and clipping, on variables of which no model is needed."""

import numpy as np
import pytest
import tensorflow as tf

from detector.optimizer import GroupedOptimizer
from detector.training_step import make_step

pytestmark = pytest.mark.usefixtures("eagerly")
RATE = 0.1


def stepped(variables, tiny_config, **settings):
    """Take a step on the sum of all values, whose gradient is 1 everywhere; return it and the new values."""
    trained = {path: tf.Variable(value) for path, value in variables.items()}
    optimizer = GroupedOptimizer(tiny_config("train.optimizer.momentum=0").train.optimizer, trained)

    def named_losses(batch, seed):
        return {"sum": tf.add_n([tf.reduce_sum(variable) for variable in trained.values()])}

    step = make_step(None, trained, optimizer, named_losses=named_losses, **settings)
    losses = step({}, tf.constant([0, 0]), tf.constant(RATE))
    return losses, {path: variable.numpy() for path, variable in trained.items()}


def test_l2_is_half_the_weighted_sum_of_squares_of_the_kernels_below_a_prefix(tiny_config):
    variables = {
        "rpn/conv/kernel": [[1.0, 2.0], [3.0, 4.0]],  # squares add up to 30
        "rpn/conv/bias": [5.0],
        "rpn/conv/gamma": [6.0],
        "rpn_of_another/kernel": [7.0],
        "box_classifier/tower/kernel": [8.0],
        "box_classifier/predictor/class_scores/kernel": [3.0, 1.0],  # 10
    }
    weights = {"rpn": 0.5, "box_classifier/predictor": 2.0, "feature_extractor": 1.0}
    losses, after = stepped(variables, tiny_config, clip_norm=None, l2=weights)
    assert float(losses["l2"]) == pytest.approx(0.5 * 30 / 2 + 2.0 * 10 / 2)
    assert float(losses["loss"]) == pytest.approx(float(losses["sum"]) + float(losses["l2"]))
    pull = {"rpn/conv/kernel": 0.5, "box_classifier/predictor/class_scores/kernel": 2.0}
    for path, value in variables.items():
        expected = np.array(value) - RATE * (1 + pull.get(path, 0.0) * np.array(value))
        np.testing.assert_allclose(after[path], expected, rtol=1e-6, err_msg=path)


def test_without_weights_there_is_no_l2(tiny_config):
    losses, _ = stepped({"rpn/kernel": [1.0]}, tiny_config, clip_norm=None, l2={"rpn": 0.0})
    assert "l2" not in losses


def test_gradients_are_scaled_down_to_the_limit_and_never_up(tiny_config):
    variables = {"a": [0.0, 0.0, 0.0], "b": [[0.0]]}  # four gradients of 1: a norm of 2
    free, unlimited = stepped(variables, tiny_config, clip_norm=None)
    _, roomy = stepped(variables, tiny_config, clip_norm=2.0**20)
    losses, clipped = stepped(variables, tiny_config, clip_norm=0.5)
    assert float(free["gradient_norm"]) == float(losses["gradient_norm"]) == 2.0
    for path in variables:
        np.testing.assert_allclose(unlimited[path], -RATE, rtol=1e-6)
        assert roomy[path].tobytes() == unlimited[path].tobytes()
        np.testing.assert_allclose(clipped[path], -RATE * 0.5 / 2, rtol=1e-6)

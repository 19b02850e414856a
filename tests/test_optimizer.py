import numpy as np
import pytest
import tensorflow as tf

from detector.config import ConfigError, OptimizerConfig, override
from detector.optimizer import GroupedOptimizer

SGD = OptimizerConfig(kind="sgd", momentum=0.9)
ADAMW = OptimizerConfig(kind="adamw", weight_decay=0.1)


def variables(*paths):
    return {path: tf.Variable([1.0, 2.0]) for path in paths}


@pytest.mark.parametrize("config", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_a_factor_scales_the_step_whatever_the_optimizer(config):
    both = variables("a/kernel", "b/kernel")
    optimizer = GroupedOptimizer(config, both, lr_factors={"b/kernel": 0.1})
    for _ in range(3):
        before = {path: variable.numpy() for path, variable in both.items()}
        optimizer.apply(dict.fromkeys(both, tf.constant([0.3, -4.0])), 1e-3)
        moved = {path: variable.numpy() - before[path] for path, variable in both.items()}
        np.testing.assert_allclose(moved["b/kernel"], 0.1 * moved["a/kernel"], rtol=0.01)
        assert np.all(moved["a/kernel"] != 0)


@pytest.mark.parametrize("config", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_what_stands_still_keeps_its_slots_and_its_count(config):
    both = variables("a/kernel", "b/kernel")
    optimizer = GroupedOptimizer(config, both, moves_with={"a/kernel": (0, 1), "b/kernel": (1,)})
    gradient = tf.constant([1.0, 1.0])
    optimizer.apply({"a/kernel": gradient}, 0.1)
    slots = {name: variable.numpy() for name, variable in optimizer.state.items()}
    assert np.any(slots[next(name for name in slots if name.endswith("a/kernel"))] != 0)
    assert np.all(slots[next(name for name in slots if name.endswith("b/kernel"))] == 0)
    np.testing.assert_array_equal(both["b/kernel"], [1.0, 2.0])
    optimizer.apply({"a/kernel": gradient, "b/kernel": gradient}, 0.1)
    assert [int(optimizer.state[f"iterations/{group}"]) for group in (0, 1)] == [2, 1]


def test_a_group_moves_as_a_whole():
    optimizer = GroupedOptimizer(SGD, variables("a/kernel", "b/kernel"))
    with pytest.raises(ValueError, match="b/kernel has no gradient"):
        optimizer.apply({"a/kernel": tf.ones([2])}, 0.1)


@pytest.mark.parametrize(("factor", "message"), [("0", "freeze it"), ("-1", "expected a positive factor")])
def test_a_factor_that_does_not_move_is_refused(factor, message):
    with pytest.raises(ConfigError, match=message):
        override({}, [f"train.lr_factors={{rpn: {factor}}}"], "test")

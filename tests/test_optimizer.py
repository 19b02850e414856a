import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from detector.config import ConfigError, override
from detector.optimizer import GroupedOptimizer
from detector.train_config import OptimizerConfig

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


def kerass_own(config):
    if config.kind == "sgd":
        return tf_keras.optimizers.SGD(0.01, momentum=config.momentum, nesterov=config.nesterov)
    own = tf_keras.optimizers.AdamW(0.01, config.weight_decay, config.beta_1, config.beta_2, config.epsilon)
    own.exclude_from_weight_decay(var_names=["bias"])
    return own


@pytest.mark.parametrize(
    "config",
    [
        SGD,
        OptimizerConfig(kind="sgd", momentum=0.0),
        OptimizerConfig(kind="sgd", momentum=0.8, nesterov=True),
        ADAMW,
        OptimizerConfig(kind="adamw", beta_1=0.7, beta_2=0.95, epsilon=1e-3),
    ],
    ids=["sgd", "plain", "nesterov", "adamw", "constants"],
)
def test_values_and_slots_are_those_of_keras(config):
    mine, theirs = (
        {path: tf.Variable([1.0, -2.0], name=path) for path in ("a/kernel", "a/bias")} for _ in range(2)
    )
    optimizer, own = GroupedOptimizer(config, mine), kerass_own(config)
    own.build(list(theirs.values()))
    apply = tf.function(optimizer.apply)
    for step in range(4):
        gradients = [tf.constant([0.3, -4.0]) / (step + 1), tf.constant([-1.0, 0.01])]
        scale = tf.constant(1.0 / (1 + step % 3))
        apply(dict(zip(mine, gradients, strict=True)), tf.constant(0.01), scale)
        scaled = [gradient * scale for gradient in gradients]
        own.apply_gradients(zip(scaled, theirs.values(), strict=True))
    for path in mine:
        np.testing.assert_allclose(mine[path], theirs[path], rtol=1e-6)
    slots = [slot for name, slot in optimizer.state.items() if "iterations" not in name]
    expected = own.momentums if config.kind == "sgd" else own._momentums + own._velocities
    for slot, value in zip(slots, expected, strict=True):
        np.testing.assert_allclose(slot, value, rtol=3e-5)  # 1 - beta_2 has few digits in float32


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

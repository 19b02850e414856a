"""The optimizer of a run, and its slots by name, so that a checkpoint can hold them."""

from collections.abc import Mapping

import tensorflow as tf
import tf_keras

from detector.config import OptimizerConfig

# Weight decay pulls weights towards 0, which is where neither a scale nor an offset wants to be.
_NO_DECAY = ("bias", "gamma", "beta")


def build_optimizer(
    config: OptimizerConfig, trained: Mapping[str, tf.Variable]
) -> tf_keras.optimizers.Optimizer:
    """Return the optimizer with slots for exactly the trained variables, {path: variable}."""
    # The rate is assigned by the training step; 0 makes a step that forgets to do so visible.
    if config.kind == "sgd":
        optimizer = tf_keras.optimizers.SGD(0.0, momentum=config.momentum, nesterov=config.nesterov)
    else:
        optimizer = tf_keras.optimizers.AdamW(
            0.0,
            weight_decay=config.weight_decay,
            beta_1=config.beta_1,
            beta_2=config.beta_2,
            epsilon=config.epsilon,
        )
        optimizer.exclude_from_weight_decay(
            var_list=[variable for path, variable in trained.items() if path.rsplit("/", 1)[1] in _NO_DECAY]
        )
    optimizer.build(list(trained.values()))
    return optimizer


def optimizer_state(
    optimizer: tf_keras.optimizers.Optimizer, trained: Mapping[str, tf.Variable]
) -> dict[str, tf.Variable]:
    """Return the optimizer's variables by name: `iterations`, and `slot/path` for each trained variable."""
    state = {"iterations": optimizer.iterations}
    if isinstance(optimizer, tf_keras.optimizers.SGD):
        slots = {"momentum": optimizer.momentums}
    else:
        slots = {"first_moment": optimizer._momentums, "second_moment": optimizer._velocities}
    for name, variables in slots.items():
        state |= {f"{name}/{path}": slot for path, slot in zip(trained, variables, strict=True)}
    return state

"""The optimizer of a run: one tf_keras optimizer per group of variables that always move together.

Groups are what lets learning rates differ by component (the rate is scaled, and with it the step, which for
adaptive optimizers is not the same as scaling the gradient), and what lets a freeze schedule start and stop
variables without touching the slots of the others.  A frozen variable is in no group: it has no slot.
"""

from collections.abc import Hashable, Iterable, Mapping

import tensorflow as tf
import tf_keras

from detector.config import OptimizerConfig

# Weight decay pulls weights towards 0, which is where neither a scale nor an offset wants to be.
_NO_DECAY = ("bias", "gamma", "beta")


class GroupedOptimizer:
    """Moves groups of variables, each as a whole or not at all."""

    def __init__(
        self,
        config: OptimizerConfig,
        trained: Mapping[str, tf.Variable],
        *,
        moves_with: Mapping[str, Hashable] | None = None,
        lr_factors: Mapping[str, float] | None = None,
    ):
        """Make slots for exactly the trained variables.

        Args:
            config: the kind of optimizer and its constants.
            trained: {path: variable} of everything that any step of the run moves.
            moves_with: {path: key}; variables of equal keys are always moved together.  None: all are.
            lr_factors: {path: what the learning rate is multiplied with}; 1 where left out.
        """
        groups: dict[tuple[Hashable, float], dict[str, tf.Variable]] = {}
        for path, variable in trained.items():
            key = (moves_with[path] if moves_with else None, (lr_factors or {}).get(path, 1.0))
            groups.setdefault(key, {})[path] = variable
        self._groups = [
            (variables, factor, _build(config, variables)) for (_, factor), variables in groups.items()
        ]

    def apply(self, gradients: Mapping[str, tf.Tensor], learning_rate: tf.Tensor) -> None:
        """Move the variables by their gradients, {path: gradient}; groups without gradients stand still.

        Raises:
            ValueError: a group has gradients for a part of its variables only.
        """
        for variables, factor, optimizer in self._groups:
            given = [path for path in variables if path in gradients]
            if not given:
                continue
            if len(given) < len(variables):
                missing = next(path for path in variables if path not in gradients)
                raise ValueError(f"a group of variables moves together, but {missing} has no gradient")
            optimizer.learning_rate.assign(learning_rate * factor)
            optimizer.apply_gradients([(gradients[path], variables[path]) for path in given])

    @property
    def state(self) -> dict[str, tf.Variable]:
        """The optimizer's variables by name: each group's step count, and `slot/path` for each variable."""
        state: dict[str, tf.Variable] = {}
        for number, (variables, _, optimizer) in enumerate(self._groups):
            state[f"iterations/{number}"] = optimizer.iterations
            for name, slots in _slots(optimizer).items():
                state |= {f"{name}/{path}": slot for path, slot in zip(variables, slots, strict=True)}
        return state


class _SGD(tf_keras.optimizers.SGD):
    """`tf_keras.optimizers.SGD` whose update of a variable with momentum is one operation, not six."""

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable) -> None:
        """Move `variable` and its momentum."""
        if not self.momentum:
            super().update_step(gradient, variable)
            return
        slot = self.momentums[self._index_dict[self._var_key(variable)]]
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=variable.handle,
            accum=slot.handle,
            lr=tf.convert_to_tensor(self.learning_rate),
            grad=gradient,
            momentum=self.momentum,
            use_nesterov=self.nesterov,
        )


class _AdamW(tf_keras.optimizers.AdamW):
    """`tf_keras.optimizers.AdamW` whose update of a variable is one operation behind the decay, not thirty.

    With hundreds of variables their number is most of a step's graph, and of the time to its first run.
    """

    def apply_gradients(self, grads_and_vars: Iterable[tuple[tf.Tensor, tf.Variable]], **arguments):
        """Move the variables."""
        step = tf.cast(self.iterations + 1, tf.float32)
        self._of_step = {
            "beta1_power": tf.pow(self.beta_1, step),
            "beta2_power": tf.pow(self.beta_2, step),
            "lr": tf.convert_to_tensor(self.learning_rate),
            "beta1": tf.constant(self.beta_1),
            "beta2": tf.constant(self.beta_2),
            "epsilon": tf.constant(self.epsilon),
        }
        return super().apply_gradients(grads_and_vars, **arguments)

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable) -> None:
        """Move `variable` and its moments."""
        index = self._index_dict[self._var_key(variable)]
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].handle,
            v=self._velocities[index].handle,
            grad=gradient,
            **self._of_step,
        )


def _build(config: OptimizerConfig, variables: Mapping[str, tf.Variable]) -> tf_keras.optimizers.Optimizer:
    # The rate is assigned by every step; 0 makes a step that forgets to do so visible.
    if config.kind == "sgd":
        optimizer = _SGD(0.0, momentum=config.momentum, nesterov=config.nesterov)
    else:
        optimizer = _AdamW(
            0.0,
            weight_decay=config.weight_decay,
            beta_1=config.beta_1,
            beta_2=config.beta_2,
            epsilon=config.epsilon,
        )
        optimizer.exclude_from_weight_decay(
            var_list=[variable for path, variable in variables.items() if path.endswith(_NO_DECAY)]
        )
    optimizer.build(list(variables.values()))
    return optimizer


def _slots(optimizer: tf_keras.optimizers.Optimizer) -> dict[str, list[tf.Variable]]:
    if isinstance(optimizer, tf_keras.optimizers.SGD):
        return {"momentum": optimizer.momentums}
    return {"first_moment": optimizer._momentums, "second_moment": optimizer._velocities}

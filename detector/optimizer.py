"""The optimizer of a run: slots and a step count per group of variables that always move together.

Groups are what lets learning rates differ by component (the rate is scaled, and with it the step, which for
adaptive optimizers is not the same as scaling the gradient), and what lets a freeze schedule start and stop
variables without touching the slots of the others.  A frozen variable is in no group: it has no slot.

A variable is moved by one of TensorFlow's own operations.  The arithmetic is that of tf_keras's optimizers,
which take a dozen operations for it; with hundreds of variables they were most of a step's graph, and of the
time to its first run.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping

import tensorflow as tf

from detector.train_config import OptimizerConfig

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
        kind = _Sgd if config.kind == "sgd" else _AdamW
        self._groups = [(kind(config, variables), factor) for (_, factor), variables in groups.items()]

    def apply(
        self,
        gradients: Mapping[str, tf.Tensor],
        learning_rate: tf.Tensor,
        gradient_scale: tf.Tensor | float = 1.0,
    ) -> None:
        """Move the variables by their gradients; groups without gradients stand still.

        Args:
            gradients: {path: gradient}.
            learning_rate: float32, a scalar.
            gradient_scale: what every gradient is multiplied with first, a scalar; the clipping's.

        Raises:
            ValueError: a group has gradients for a part of its variables only.
        """
        for group, factor in self._groups:
            missing = [path for path in group.variables if path not in gradients]
            if len(missing) == len(group.variables):
                continue
            if missing:
                raise ValueError(f"a group of variables moves together, but {missing[0]} has no gradient")
            group.move(gradients, learning_rate * factor, gradient_scale)

    @property
    def state(self) -> dict[str, tf.Variable]:
        """The optimizer's variables by name: each group's step count, and `slot/path` for each variable."""
        state: dict[str, tf.Variable] = {}
        for number, (group, _) in enumerate(self._groups):
            state[f"iterations/{number}"] = group.iterations
            for name, slots in group.slots.items():
                state |= {f"{name}/{path}": slot for path, slot in slots.items()}
        return state


class _Group(ABC):
    """Variables that move together: how many times they did, and their slots, {name: {path: slot}}."""

    slot_names: tuple[str, ...]

    def __init__(self, config: OptimizerConfig, variables: Mapping[str, tf.Variable]):
        self.config = config
        self.variables = dict(variables)
        self.iterations = tf.Variable(0, trainable=False, dtype=tf.int64, name="iterations")
        # One name for all: TensorFlow prepares what creates variables anew for every other name,
        # and what tells slots apart is `state`.
        self.slots = {
            name: {
                path: tf.Variable(tf.zeros_like(variable), trainable=False, name=name)
                for path, variable in variables.items()
            }
            for name in self.slot_names
        }

    @abstractmethod
    def move(
        self, gradients: Mapping[str, tf.Tensor], learning_rate: tf.Tensor, scale: tf.Tensor | float
    ) -> None:
        """Move every variable by its gradient, {path: gradient}, times `scale`, and count the step."""


class _Sgd(_Group):
    """Stochastic gradient descent with momentum, as `tf_keras.optimizers.SGD`."""

    slot_names = ("momentum",)

    def move(
        self, gradients: Mapping[str, tf.Tensor], learning_rate: tf.Tensor, scale: tf.Tensor | float
    ) -> None:
        # The gradient counts as its product with the rate alone: one scalar takes the factor for all of them.
        scaled_rate = learning_rate * scale
        for path, slot in self.slots["momentum"].items():
            tf.raw_ops.ResourceApplyKerasMomentum(
                var=self.variables[path].handle,
                accum=slot.handle,
                lr=scaled_rate,
                grad=gradients[path],
                momentum=self.config.momentum,
                use_nesterov=self.config.nesterov,
            )
        self.iterations.assign_add(1)


class _AdamW(_Group):
    """Adam behind decoupled weight decay, as `tf_keras.optimizers.AdamW`."""

    slot_names = ("first_moment", "second_moment")

    def move(
        self, gradients: Mapping[str, tf.Tensor], learning_rate: tf.Tensor, scale: tf.Tensor | float
    ) -> None:
        config = self.config
        if config.weight_decay:
            decay = config.weight_decay * learning_rate
            for path, variable in self.variables.items():
                if not path.endswith(_NO_DECAY):
                    tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=decay, delta=variable)
        self.iterations.assign_add(1)
        step = tf.cast(self.iterations, tf.float32)
        of_step = {
            "beta1_power": tf.pow(config.beta_1, step),
            "beta2_power": tf.pow(config.beta_2, step),
            "lr": learning_rate,
            "beta1": tf.constant(config.beta_1),
            "beta2": tf.constant(config.beta_2),
            "epsilon": tf.constant(config.epsilon),
        }
        for path, first_moment in self.slots["first_moment"].items():
            tf.raw_ops.ResourceApplyAdam(
                var=self.variables[path].handle,
                m=first_moment.handle,
                v=self.slots["second_moment"][path].handle,
                grad=gradients[path] * scale,
                **of_step,
            )

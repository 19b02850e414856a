"""One training step: batch -> named losses -> gradients of what the plan trains -> clip -> apply."""

from collections.abc import Callable, Mapping

import tensorflow as tf

from detector.faster_rcnn import FasterRCNN
from detector.optimizer import GroupedOptimizer

Batch = Mapping[str, tf.Tensor]
Step = Callable[[Batch, tf.Tensor, tf.Tensor], dict[str, tf.Tensor]]
NamedLosses = Callable[[Batch, tf.Tensor], dict[str, tf.Tensor]]


def make_step(
    model: FasterRCNN,
    trained: Mapping[str, tf.Variable],
    optimizer: GroupedOptimizer,
    *,
    clip_norm: float | None,
    l2: Mapping[str, float] | None = None,
    named_losses: NamedLosses | None = None,
) -> Step:
    """Return the training step, a `tf.function` of (batch, seed, learning rate).

    The step takes a batch of the design's section 4, `seed` int32 [2] (run seed and step) and the learning
    rate, a float32 scalar.  It moves the trained variables and the BatchNorm statistics that the plan
    leaves free, and returns the named losses, their sum `loss` and the gradients' joint norm, scalars.

    Args:
        model: with its freeze plan applied.
        trained: {path: variable} of what gets gradients, and nothing else does.
        optimizer: with slots for `trained` at least.
        clip_norm: the largest joint norm of the gradients; None for no limit.
        l2: {path prefix: weight} of the L2 loss on trained kernels under the prefix.
        named_losses: from (batch, seed) to the losses; None takes `model.named_losses`.
    """
    named_losses = named_losses or model.named_losses
    regularized = [
        (weight, variable)
        for prefix, weight in (l2 or {}).items()
        if weight
        for path, variable in trained.items()
        if path.startswith(prefix + "/") and path.endswith("/kernel")
    ]
    variables = list(trained.values())

    @tf.function(reduce_retracing=True, autograph=False)
    def step(batch: Batch, seed: tf.Tensor, learning_rate: tf.Tensor) -> dict[str, tf.Tensor]:
        # Only what trains is watched: nothing before the first trained variable is differentiated.
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            losses = named_losses(batch, seed)
            if regularized:
                # slim's and TensorFlow's L2 loss: half the sum of squares.
                losses["l2"] = tf.add_n(
                    [weight * tf.nn.l2_loss(variable) for weight, variable in regularized]
                )
            loss = tf.add_n(list(losses.values()))
        gradients = tape.gradient(loss, variables)
        _require_gradients(trained, gradients)
        norm = tf.linalg.global_norm(gradients)
        # As `tf.clip_by_global_norm`, whose factor the optimizer can apply to more than one gradient at once.
        scale = 1.0 if clip_norm is None else clip_norm * tf.minimum(1.0 / norm, 1.0 / clip_norm)
        optimizer.apply(dict(zip(trained, gradients, strict=True)), learning_rate, scale)
        return {**losses, "loss": loss, "gradient_norm": norm}

    return step


def _require_gradients(trained: Mapping[str, tf.Variable], gradients: list[tf.Tensor | None]) -> None:
    missing = [path for path, gradient in zip(trained, gradients, strict=True) if gradient is None]
    if missing:
        raise ValueError(
            f"no gradient reaches {len(missing)} variables that the plan trains, first {missing[0]}: "
            "no loss depends on them"
        )

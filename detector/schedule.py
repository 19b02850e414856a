"""The learning rate by step: plain numbers in, a plain number out."""

import bisect
import math
from collections.abc import Callable

from detector.train_config import LearningRateConfig


def other_end(config: LearningRateConfig, steps: int) -> str | None:
    """Say how the schedule goes with a run of `steps` steps if the two do not end together; None if they do.

    Raises as `learning_rate_schedule` does.
    """
    rate = learning_rate_schedule(config, steps)
    total = config.total_steps or steps
    last = f"with a rate of {rate(steps - 1):.3g}"
    if config.warmup_steps >= steps:
        return f"its warmup takes {config.warmup_steps:,} steps, and the run ends at {steps:,}, {last}"
    if config.schedule == "cosine" and total != steps:
        told = f"its cosine ends at step {total:,}, and the run at {steps:,}, {last}"
        if total < steps:
            told = f"its cosine is 0 from step {total:,} on, and the run goes on to {steps:,}"
        return f"{told}: train.learning_rate.total_steps=null ends it with the run"
    late = [boundary for boundary in config.boundaries if boundary >= steps]
    if late:
        return (
            f"{len(late)} of its {len(config.boundaries)} steps come after the run's end at {steps:,}, the "
            f"first at {late[0]:,}; the run ends {last}"
        )
    return None


def learning_rate_schedule(config: LearningRateConfig, steps: int) -> Callable[[int], float]:
    """Return the function from a step (counted from 0) to its learning rate.

    Args:
        config: the schedule; warmup is linear and followed by the schedule as it stands at that step, as in
            the Object Detection API (`cosine_decay_with_warmup`, `manual_stepping`).
        steps: the run's length, which is where a cosine without `total_steps` ends.

    Raises:
        ValueError: the warmup is as long as the cosine.
    """
    total = config.total_steps or steps
    if config.schedule == "cosine" and config.warmup_steps >= total:
        raise ValueError(
            f"warmup_steps {config.warmup_steps} leave nothing of the cosine's {total} steps; shorten it"
        )

    def rate(step: int) -> float:
        if step < config.warmup_steps:
            part = step / config.warmup_steps
            return config.warmup_start + (config.base - config.warmup_start) * part
        if config.schedule == "cosine":
            part = min((step - config.warmup_steps) / (total - config.warmup_steps), 1.0)
            return config.base * 0.5 * (1.0 + math.cos(math.pi * part))
        if config.schedule == "step":
            passed = bisect.bisect_right(config.boundaries, step)
            return config.values[passed - 1] if passed else config.base
        return config.base

    return rate

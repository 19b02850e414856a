"""The learning rate by step: plain numbers in, a plain number out."""

import bisect
import math
from collections.abc import Callable

from detector.train_config import LearningRateConfig


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

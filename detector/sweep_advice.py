"""What to freeze, in one plain sentence that claims no difference its interval does not carry."""

import math
import shlex
from collections.abc import Sequence

from detector.paired_interval import Interval
from detector.sweep import SweepResult, VariantResult

# Step times of one variant differ by a few percent from run to run; less than this is not called cheaper.
_CHEAPER = 0.95


def advise(result: SweepResult) -> str:
    """Return the advice that follows from the intervals of the differences from full fine-tuning.

    A variant shown to be better, by the interval and by every seed, is advised: of several the one that
    scored highest.  Otherwise it is the cheapest, by step time (a schedule's is a mean over its stages), of
    those that the interval does not show to be worse, with how much worse it may yet be.
    """
    full = result.reference
    if full is None:
        return "No run of full fine-tuning finished, so there is nothing to compare with."
    compared = [(variant, variant.difference) for variant in result.variants if variant.difference]
    if not compared:
        return "Only full fine-tuning finished, so there is nothing to compare it with."
    better = [
        (variant, interval) for variant, interval in compared if interval.above_zero and interval.seeds_agree
    ]
    if better:
        best, interval = max(better, key=lambda pair: pair[1].difference)
        others = f", the highest of the {len(better)} variants shown to be better" if len(better) > 1 else ""
        return (
            f"Train with {_options(best)}: its AP is {_points(interval)} above that of full "
            f"fine-tuning{others}{_saving(best, full)}.{_one_seed(best)}"
        )
    equal = [(variant, interval) for variant, interval in compared if not interval.below_zero]
    cheaper = [(variant, interval) for variant, interval in equal if _cost(variant) < _CHEAPER * _cost(full)]
    if not equal:
        return f"Train everything: {_all(len(compared))} shown to lower AP."
    if not cheaper:
        return (
            "Train everything: no variant was shown to raise AP, and none that may keep it makes a step "
            f"at least {1 - _CHEAPER:.0%} shorter."
        )
    choice, interval = min(cheaper, key=lambda pair: _cost(pair[0]))
    shown = "lower" if interval.above_zero else "change"
    return (
        f"Train with {_options(choice)}: it is not shown to {shown} AP ({_bounds(interval)} against full "
        f"fine-tuning, so it may cost up to {max(0.0, -interval.low):.3f})"
        f"{_saving(choice, full)}{_shared_doubt(compared)}.{_one_seed(choice)}"
    )


def _shared_doubt(compared: Sequence[tuple[VariantResult, Interval]]) -> str:
    if any(interval.below_zero or interval.above_zero for _, interval in compared):
        return ""
    return "; no variant differs from full fine-tuning by more than these images can tell"


def _one_seed(variant: VariantResult) -> str:
    """Say that the intervals are over images: one seed tells nothing of how much another run would differ."""
    return (
        " One seed was trained; another may rank the variants otherwise." if len(variant.seeds) == 1 else ""
    )


def _saving(variant: VariantResult, full: VariantResult) -> str:
    if _cost(variant) < _CHEAPER * _cost(full):
        on_average = " on average" if variant.boundaries else ""
        return f", and a step takes {1 - _cost(variant) / _cost(full):.0%} less time{on_average}"
    return ""


def _options(variant: VariantResult) -> str:
    return shlex.join(variant.options)


def _cost(variant: VariantResult) -> float:
    return math.inf if variant.step_seconds is None else variant.step_seconds


def _all(count: int) -> str:
    return "the one variant tried was" if count == 1 else f"each of the {count} variants tried was"


def _points(interval: Interval) -> str:
    return f"{interval.difference:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _bounds(interval: Interval) -> str:
    return f"{interval.difference:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"

"""A freeze suggested by a diagnosis: a rule of thumb, which knows the measures and nothing else.

Only training the variants tells which freeze is best.
"""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from detector.diagnose import RECALL_IOUS, Diagnosis
from detector.selectors import VariableRow, largest_prefixes

# The rule's two numbers: how far below their medians a stage's measures have to be on average, and the recall
# at IoU 0.5 below which the RPN is left to learn.  Chosen by judgement, not fitted to sweeps.
SMALL = 0.85
ENOUGH_RECALL = 0.9


@dataclass(frozen=True)
class Suggestion:
    """Selectors for `--freeze` (`none` where nothing should be frozen), and why: a line per stage."""

    freeze: tuple[str, ...]
    reasons: tuple[str, ...]


def suggest(diagnosis: Diagnosis) -> Suggestion:
    """Suggest a freeze: a rule of thumb, the same for the same diagnosis.

    A stage is frozen if its relative gradient and its shift (where it has BatchNorm) are both less than the
    medians over the stages, and on average less than `SMALL` times those: it is asked to move less than most,
    and sees a smaller domain gap than most.  The average keeps a stage near one of the medians from changing
    sides with the draw of the batches.  A stage with a fresh variable always trains, and so does the RPN if
    its proposals find less than `ENOUGH_RECALL` of the objects at IoU 0.5: the second stage never sees what
    they miss.  Since not every stage can lie below the median, something always trains.

    What it does not know: how much a stage would change under an adaptive optimizer, which takes steps of
    about one size whatever the gradient; how much data there is to learn from; and that of two stages that
    could adapt, one may be enough.  It compares the stages of one detector with each other, so at least half
    of them train even where the data is what the detector was trained on; and it says nothing about how much
    accuracy a freeze costs: `tools/sweep.py` does.
    """
    restored = [stage for stage in diagnosis.stages if not stage.fresh]
    if not restored:
        return Suggestion(("none",), ("train everything: no part came whole from a checkpoint",))
    gradient_median = statistics.median(stage.relative_gradient for stage in diagnosis.stages)
    seen = [stage.shift for stage in diagnosis.stages if stage.shift is not None]
    shift_median = statistics.median(seen) if seen else 0.0
    recall = diagnosis.recall[RECALL_IOUS[0]]

    frozen, reasons = [], []
    for stage in diagnosis.stages:
        measures = [("gradient", stage.relative_gradient, gradient_median)]
        if stage.shift is not None:
            measures.append(("shift", stage.shift, shift_median))
        large = [measure for measure in measures if not measure[1] < measure[2]]
        if stage.fresh:
            reason = "has values that come from an initializer"
        elif stage.path == "rpn" and (recall is None or recall < ENOUGH_RECALL):
            reason = "there are no objects to try its proposals on"
            if recall is not None:
                reason = f"its proposals find {recall:.0%} of the objects, less than {ENOUGH_RECALL:.0%}"
        elif large:
            reason = _against_medians(large)
        elif statistics.fmean(value / median for _, value, median in measures) >= SMALL:
            reason = f"{_against_medians(measures)}: close to it"
        else:
            frozen.append(stage)
            reason = _against_medians(measures)
        reasons.append(f"{'freeze' if stage in frozen else 'train'} {stage.path}: {reason}")
    # The fewest selectors: stages stand in for the variables below them.
    rows = [VariableRow(stage.path, (), restored=True) for stage in diagnosis.stages]
    selectors = largest_prefixes(rows, [stage.path for stage in frozen])
    return Suggestion(tuple(selectors) or ("none",), tuple(reasons))


def _against_medians(measures: Iterable[tuple[str, float, float]]) -> str:
    parts = [
        f"{name} {value / median:.2f}" if median else f"{name} {value:.2g}, median 0"
        for name, value, median in measures
    ]
    return f"{' and '.join(parts)} of the median"

"""Compares a fresh result with a stored one, ratio by ratio."""

from collections.abc import Iterator
from dataclasses import dataclass

from detector.benchmark.result import BenchmarkResult

TOLERANCE = 0.10
"""A ratio may be worse by so much; neighbours on a shared machine alone make for half of it."""


@dataclass(frozen=True)
class Change:
    """One ratio, then and now; `factor` is how much worse it is now, below 1 better."""

    what: str
    stored: float
    fresh: float | None
    factor: float

    @property
    def is_regression(self) -> bool:
        """Whether it is worse by more than the tolerance, or is not measured any more."""
        return self.fresh is None or self.factor > 1.0 + TOLERANCE

    def __str__(self) -> str:
        if self.fresh is None:
            return f"{self.what}: was {self.stored:.3f}, is not measured any more"
        change = self.factor - 1.0
        word = "worse" if change > 0 else "better"
        return f"{self.what}: {self.stored:.3f} -> {self.fresh:.3f} ({abs(change):.0%} {word})"


def changes(stored: BenchmarkResult, fresh: BenchmarkResult) -> list[Change]:
    """Return how each stored ratio has changed, in their order.

    Compared are times and peak memory in parts of the reference's, and what is reached of the float32 peak.
    First steps are not: they are measured once a call; a workload of kind `startup` measures them in rounds.
    """
    now = dict(_lower_is_better(fresh))
    found = []
    for what, value in _lower_is_better(stored):
        new = now.get(what)
        found.append(Change(what, value, new, float("inf") if new is None else new / value))
    now = dict(_higher_is_better(fresh))
    for what, value in _higher_is_better(stored):
        new = now.get(what)
        found.append(Change(what, value, new, float("inf") if new is None else value / new))
    return found


def same_machine(stored: BenchmarkResult, fresh: BenchmarkResult) -> bool:
    """Whether both ran on the same kind of CPU with as many cores."""
    return all(stored.machine.get(key) == fresh.machine.get(key) for key in ("cpu", "cores"))


def _lower_is_better(result: BenchmarkResult) -> Iterator[tuple[str, float]]:
    for ratio in result.ratios:
        yield f"{ratio.workload} / {ratio.reference}, time", ratio.time.median
        if ratio.memory is not None:
            yield f"{ratio.workload} / {ratio.reference}, peak memory", ratio.memory


def _higher_is_better(result: BenchmarkResult) -> Iterator[tuple[str, float]]:
    for workload in result.workloads:
        if workload.peak_part is not None:
            yield f"{workload.name}, part of the float32 peak", workload.peak_part.median

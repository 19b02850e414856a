"""The cost curve: how a workload's time grows with the batch, the canvas, or the number of images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from detector.benchmark.result import WorkloadResult

# The price of one more changes by so much at a bend; below, it is noise and rounding of shapes to blocks.
_BEND = 0.2

Axis = Literal["batch size", "megapixels", "images"]
_UNITS: dict[Axis, str] = {"batch size": "image", "megapixels": "megapixel", "images": "image"}


@dataclass(frozen=True)
class ScalingPoint:
    """One workload on the curve.

    `average` is its seconds per unit, `marginal` those that each unit beyond the point before costs (None for
    the first); `is_bend`: it differs by a fifth or more from what those up to the point before cost.
    """

    at: float
    seconds: float
    average: float
    marginal: float | None
    memory_bytes: int | None
    is_bend: bool


@dataclass(frozen=True)
class Scaling:
    """Workloads that differ along one axis only, in its order."""

    kind: str
    axis: Axis
    points: tuple[ScalingPoint, ...]

    @property
    def unit(self) -> str:
        """What one more of is."""
        return _UNITS[self.axis]


def scaling_of(workloads: Sequence[WorkloadResult]) -> list[Scaling]:
    """Return the curves with three points or more among the workloads."""
    found: list[Scaling] = []
    for axis in _UNITS:
        curves: dict[tuple[object, ...], list[WorkloadResult]] = {}
        for workload in workloads:
            curves.setdefault(_all_but(axis, workload), []).append(workload)
        for curve in curves.values():
            by_place = {_place(axis, workload): workload for workload in curve}
            if len(by_place) >= 3 and len(by_place) == len(curve):
                found.append(_scaling(axis, [by_place[at] for at in sorted(by_place)]))
    return found


def _scaling(axis: Axis, curve: Sequence[WorkloadResult]) -> Scaling:
    points: list[ScalingPoint] = []
    for workload in curve:
        at, seconds = _place(axis, workload), workload.seconds.median
        marginal, is_bend = None, False
        if points:
            before = points[-1]
            marginal = (seconds - before.seconds) / (at - before.at)
            if before.marginal is not None:
                is_bend = abs(marginal - before.marginal) >= _BEND * abs(before.marginal)
        points.append(ScalingPoint(at, seconds, seconds / at, marginal, workload.peak_memory_bytes, is_bend))
    return Scaling(f"{curve[0].peer or ''} {curve[0].kind}".strip(), axis, tuple(points))


def _place(axis: Axis, workload: WorkloadResult) -> float:
    if axis == "batch size":
        return workload.batch_size
    if axis == "images":
        return workload.images
    return round(workload.batch_size * workload.height * workload.width / 1e6, 3)


def _all_but(axis: Axis, workload: WorkloadResult) -> tuple[object, ...]:
    """Return what workloads of one curve have in common."""
    shape: tuple[object, ...] = (workload.kind, workload.peer, workload.settings)
    if axis == "batch size":
        return (*shape, workload.height, workload.width)
    if axis == "megapixels":
        return (*shape, workload.batch_size, None)
    return (*shape, workload.batch_size, workload.height, workload.width, workload.kind == "evaluate")

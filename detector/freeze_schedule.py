"""Freeze schedules: a run as a list of freeze stages, each with its plan and learning-rate factor.

Here a stage is a span of steps.  A schedule is plain data; `detector.train.fit` follows it.
"""

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from detector.freeze import RESTORE, FreezePlan, resolve
from detector.freeze_config import FreezeConfig, FreezeStageConfig
from detector.selectors import FreezeError, VariableRow, select


@dataclass(frozen=True)
class FreezeStage:
    """From `from_step` on: what trains, and how fast.

    `lr_factor` scales the run's learning rate; over the stage's first `warmup_steps` it rises from 0.
    """

    from_step: int
    plan: FreezePlan
    lr_factor: float = 1.0
    warmup_steps: int = 0

    def rate_factor(self, step: int) -> float:
        """Return what the learning rate of `step` is multiplied with."""
        into = step - self.from_step
        return self.lr_factor * (min(1.0, into / self.warmup_steps) if self.warmup_steps else 1.0)


@dataclass(frozen=True)
class FreezeSchedule:
    """Freeze stages in the order of their steps; the first starts at step 0."""

    stages: tuple[FreezeStage, ...]

    @classmethod
    def of(cls, plan: FreezePlan) -> "FreezeSchedule":
        """Return the schedule of a run with one plan."""
        return cls((FreezeStage(0, plan),))

    def to_dict(self) -> dict[str, Any]:
        """Return the schedule as JSON values, for the run's `plan.json`."""
        return {
            "stages": [
                {
                    "from_step": stage.from_step,
                    "lr_factor": stage.lr_factor,
                    "warmup_steps": stage.warmup_steps,
                    "plan": stage.plan.to_dict(),
                }
                for stage in self.stages
            ]
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "FreezeSchedule":
        """Return the schedule that `to_dict` wrote; raises `FreezeError` as `FreezePlan.from_dict` does."""
        return cls(
            tuple(
                FreezeStage(**{**stage, "plan": FreezePlan.from_dict(stage["plan"])})
                for stage in values["stages"]
            )
        )

    def index_at(self, step: int) -> int:
        """Return the index of the stage that `step` is in."""
        return bisect.bisect_right([stage.from_step for stage in self.stages], step) - 1

    def describe(self, index: int) -> str:
        """Say in one line what stage `index`, counted from 0, trains, and how fast."""
        stage = self.stages[index]
        trained = stage.plan.summary().trained_parameters
        parts = ", ".join(name for name, part in stage.plan.by_component().items() if part.trained_variables)
        factor = f", learning rate x {stage.lr_factor:g}" if stage.lr_factor != 1 else ""
        return (
            f"from step {stage.from_step}, freeze stage {index + 1}: "
            f"trains {trained:,} parameters in {parts}{factor}"
        )

    @property
    def trained(self) -> dict[str, tuple[int, ...]]:
        """Return {path: the stages that train it}, for what any stage trains, in model order."""
        return {
            row.path: stages
            for row in self.stages[0].plan.rows
            if (stages := tuple(i for i, stage in enumerate(self.stages) if stage.plan.trains(row.path)))
        }


def resolve_schedule(
    rows: Sequence[VariableRow],
    first: FreezeConfig,
    later: Sequence[FreezeStageConfig],
    *,
    batch_norm: str,
    steps: int,
    steps_per_epoch: float | None = None,
    remedy: str = RESTORE,
) -> FreezeSchedule:
    """Resolve the selectors of every stage against the rows of a model.

    A stage that names no selectors of its own keeps those of the stage before; `unfreeze` adds to them.
    What an earlier stage trained is no longer fresh.

    Args:
        rows: of the model.
        first: the selectors from step 0 on.
        later: the stages after it.
        batch_norm: "fixed" or "update".
        steps: the run's length.
        steps_per_epoch: images / batch size; needed where a stage starts at an epoch.
        remedy: of `resolve`, for the first stage: what it trains is not fresh in later ones.

    Raises:
        FreezeError: of a selector, or a stage starts out of order, past the run's end, or nowhere.
    """
    rows = list(rows)
    freeze, train_only, unfreeze = first.freeze, first.train_only, first.unfreeze
    stages = [
        FreezeStage(
            0,
            resolve(
                rows,
                freeze,
                train_only,
                unfreeze=unfreeze,
                allow_fresh=first.allow_fresh,
                batch_norm=batch_norm,
                remedy=remedy,
            ),
        )
    ]
    for entry in later:
        start = _start(entry, steps_per_epoch)
        if not stages[-1].from_step < start < steps:
            raise FreezeError(
                f"a freeze stage starts at step {start}, but must start after step {stages[-1].from_step} "
                f"and before the run's end at {steps}"
            )
        if entry.freeze is not None or entry.train_only is not None:
            freeze, train_only, unfreeze = entry.freeze or (), entry.train_only or (), ()
        unfreeze = (*unfreeze, *entry.unfreeze)
        learned = {*stages[-1].plan.trained, *stages[-1].plan.updated}
        rows = [replace(row, restored=row.restored or row.path in learned) for row in rows]
        plan = resolve(
            rows,
            freeze,
            train_only,
            unfreeze=unfreeze,
            allow_fresh=first.allow_fresh,
            batch_norm=batch_norm,
        )
        stages.append(FreezeStage(start, plan, entry.lr_factor, entry.warmup_steps))
    return FreezeSchedule(tuple(stages))


def lr_factors_of(factors: Mapping[str, float], schedule: FreezeSchedule) -> dict[str, float]:
    """Return {path: factor} of {selector: factor}; of several selectors that match a path, the last counts.

    Raises `FreezeError` for a selector that matches nothing.
    """
    rows = schedule.stages[0].plan.rows
    return {
        path: factor for selector, factor in factors.items() for path in select(selector, rows, "lr_factors")
    }


def idle_lr_factors(factors: Mapping[str, float], schedule: FreezeSchedule) -> list[str]:
    """Return the selectors whose factor does nothing, since no freeze stage trains what they match.

    That is no error: of a sweep's variants, some freeze what others slow down.
    """
    rows, trained = schedule.stages[0].plan.rows, schedule.trained
    return [selector for selector in factors if select(selector, rows, "lr_factors").isdisjoint(trained)]


def _start(entry: FreezeStageConfig, steps_per_epoch: float | None) -> int:
    if entry.from_step is not None:
        return entry.from_step
    assert entry.from_epoch is not None
    if steps_per_epoch is None:
        raise FreezeError("from_epoch needs to know the steps an epoch has; use from_step")
    return max(round(entry.from_epoch * steps_per_epoch), 1)

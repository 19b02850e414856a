"""Where a training run stands."""

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from detector.checkpoint import CheckpointError, CheckpointInfo


@dataclass(frozen=True)
class Progression:
    """Where a run stands: what a checkpoint must hold besides variables, so that the run can go on.

    `stage` is the freeze stage the run is in, None before the first; `frozen_digests` are those of what is
    frozen in it, from its start; `proofs` those of the stages before, `FreezeProof.to_dict` each.
    `evaluated_step` is that of the last evaluation: a run that is cut off in one has another, and owes it.
    """

    step: int = 0
    best_ap: float | None = None
    best_step: int | None = None
    evaluations_since_best: int = 0
    evaluated_step: int | None = None
    stage: int | None = None
    frozen_digests: dict[str, str] = field(default_factory=dict)
    proofs: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, info: CheckpointInfo, path: Path) -> "Progression":
        """Return what the page of the checkpoint at `path` says; raises `CheckpointError` if it cannot."""
        try:
            # Versions that did not know the key saved a step after its evaluation.
            return cls(**{"evaluated_step": info.step, **info.training})
        except TypeError:
            raise CheckpointError(
                f"{path / 'checkpoint.json'}: its `training` is not that of this version: expected the keys "
                f"{', '.join(key.name for key in fields(cls))}, got {', '.join(info.training) or 'none'}; "
                f"start a new run with train.restore.path={path}"
            ) from None

    def scored(self, ap: float | None) -> "Progression":
        """Return where the run stands after an evaluation; an AP that is not defined counts as 0.

        The one before training does not count: it is what training is compared with.
        """
        now = replace(self, evaluated_step=self.step)
        ap = ap or 0.0
        if self.step == 0:
            return now
        if self.best_ap is None or ap > self.best_ap:
            return replace(now, best_ap=ap, best_step=self.step, evaluations_since_best=0)
        return replace(now, evaluations_since_best=self.evaluations_since_best + 1)

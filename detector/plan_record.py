"""What a run, a checkpoint or a SavedModel says of its freeze: plan, proof, and the digests of its values."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from detector import checkpoint
from detector.digest import digest
from detector.export import MANIFEST, is_saved_model
from detector.freeze import FreezePlan
from detector.freeze_proof import FreezeProof
from detector.loading import run_of
from detector.plain_path import require_plain
from detector.run_log import Which, find_checkpoint


@dataclass(frozen=True)
class PlanRecord:
    """The record at `path`.

    `digests`: SHA-256 of every variable of the model by path.  `before`: those of the frozen ones when the
    present freeze stage began.  `earlier`: {step at which it ended: paths that stood still} of the freeze
    stages before it.  `plan` is None where nothing was trained.
    """

    path: Path
    step: int
    plan: FreezePlan | None
    digests: dict[str, str]
    before: dict[str, str]
    earlier: tuple[tuple[int, frozenset[str]], ...]
    provenance: dict[str, dict[str, Any]]

    @property
    def proof(self) -> FreezeProof:
        """The proof that the record carries, of its present freeze stage."""
        after = {path: self.digests.get(path, "missing") for path in self.before}
        return FreezeProof(self.step, self.before, after, self.provenance)

    def frozen_since(self, other: "PlanRecord") -> frozenset[str]:
        """Return what stood still, by the record, on the whole way from `other`.

        `other` is an earlier checkpoint of the same run, or else taken as what the run started from.
        """
        if self.plan is None:
            return frozenset()
        is_same_run = (run := run_of(self.path)) is not None and run == run_of(other.path)
        since = other.step if is_same_run else 0
        still = frozenset(self.plan.frozen)
        for ended, paths in self.earlier:
            if ended > since:
                still &= paths
        return still


def read_record(path: str | Path, which: Which | None = None) -> PlanRecord:
    """Read the record of a SavedModel, a checkpoint, or a run's checkpoint (see `find_checkpoint`).

    The values themselves are read and checked against the digests that were written with them.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: it is none of the three, or damaged, or its plan was altered.
    """
    path = Path(path)
    if is_saved_model(path):
        page = _manifest(path)
        _check_saved_values(path, page["digests"])
        before = {name: entry["before"] for name, entry in page["proof"]["variables"].items()}
        return PlanRecord(
            path,
            page["step"],
            FreezePlan.from_dict(page["plan"]) if page["plan"] else None,
            page["digests"],
            before,
            _earlier(page.get("proofs", ())),
            page["provenance"],
        )
    path = find_checkpoint(path, which)
    info = checkpoint.read_info(path)
    checkpoint.read_values(path, info)
    return PlanRecord(
        path,
        info.step,
        FreezePlan.from_dict(info.plan) if info.plan else None,
        {name: value for name, value in info.digests.items() if not name.startswith("optimizer/")},
        info.training.get("frozen_digests", {}),
        _earlier(info.training.get("proofs", ())),
        info.provenance,
    )


def _manifest(path: Path) -> dict[str, Any]:
    page_path = path / MANIFEST
    if not page_path.is_file():
        raise ValueError(f"{path} is not of tools/export.py: it has no {MANIFEST}")
    try:
        page = json.loads(page_path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{page_path} is damaged: {error}; export it again") from None
    missing = [key for key in ("step", "plan", "digests", "proof", "provenance") if key not in page]
    if missing:
        raise ValueError(f"{page_path} lacks {', '.join(missing)}; export it again with this version")
    return page


def _check_saved_values(path: Path, expected: Mapping[str, str]) -> None:
    require_plain(path)
    try:
        reader = tf.train.load_checkpoint(str(path / "variables" / "variables"))
        # Their keys, as TensorFlow escapes them, below the attribute that `detector.export` gives them.
        values = {
            name: reader.get_tensor(
                f"model_variables/{name.replace('.', '..').replace('/', '.S')}/.ATTRIBUTES/VARIABLE_VALUE"
            )
            for name in expected
        }
    except (tf.errors.OpError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged: {str(error).splitlines()[0]}; export it again") from None
    changed = [name for name, value in values.items() if digest(value) != expected[name]]
    if changed:
        raise ValueError(
            f"{path} is damaged: {len(changed)} values differ from the digests in {MANIFEST}, first "
            f"{changed[0]}; export it again"
        )


def _earlier(proofs: Any) -> tuple[tuple[int, frozenset[str]], ...]:
    stages: list[Mapping[str, Any]] = list(proofs)
    return tuple((stage["step"], frozenset(stage["variables"])) for stage in stages)

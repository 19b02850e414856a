"""The proof that what was frozen did not move: digests of every frozen variable before and after.

before = digests(frozen_variables)
...train...
proof = prove(before, variables, step, provenance)
write(proof.to_dict())
proof.verify()
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from detector.digest import digests


class FreezeProofError(RuntimeError):
    """A frozen variable moved: a defect of the training, never of the user's settings."""


@dataclass(frozen=True)
class FreezeProof:
    """Digests of the frozen variables `before` training and `after` `step` steps of it, by path.

    `provenance` is that of `detector.provenance`.
    """

    step: int
    before: dict[str, str]
    after: dict[str, str]
    provenance: dict[str, dict[str, Any]]

    @property
    def moved(self) -> tuple[str, ...]:
        """The frozen variables whose bits changed."""
        return tuple(path for path, digest in self.before.items() if self.after[path] != digest)

    @property
    def holds(self) -> bool:
        """Whether every frozen variable is bit-identical."""
        return not self.moved

    def components(self) -> dict[str, dict[str, Any]]:
        """Return {component: its frozen variables, their joint digests, whether they held, and provenance}.

        Components without frozen variables are there too, for their provenance.
        """
        names = dict.fromkeys([*self.provenance, *(path.split("/")[0] for path in self.before)])
        result = {}
        for name in names:
            paths = [path for path in self.before if path.split("/")[0] == name]
            before, after = _joint(self.before, paths), _joint(self.after, paths)
            result[name] = {
                "frozen_variables": len(paths),
                "digest_before": before,
                "digest_after": after,
                "holds": before == after,
                "provenance": self.provenance.get(name),
            }
        return result

    def summary(self) -> str:
        """Say in one line whether the freeze held."""
        if not self.before:
            return f"proof: nothing was frozen for these {self.step} steps"
        if self.moved:
            return f"proof FAILED: {len(self.moved)} of {len(self.before)} frozen variables moved"
        joint = _joint(self.after, self.after)
        return (
            f"proof: all {len(self.before)} frozen variables are bit-identical before and after "
            f"{self.step} steps (SHA-256 {joint[:16]}…)"
        )

    def verify(self) -> None:
        """Raise `FreezeProofError` naming the variables that moved, if any did."""
        if self.moved:
            raise FreezeProofError(
                f"{len(self.moved)} of {len(self.before)} frozen variables moved by step {self.step}: "
                f"{', '.join(self.moved)}; the run broke its freeze plan, which is a defect: please report it"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON values of `freeze_proof.json`."""
        return {
            "holds": self.holds,
            "step": self.step,
            "frozen_variables": len(self.before),
            "moved": list(self.moved),
            "components": self.components(),
            "variables": {p: {"before": self.before[p], "after": self.after[p]} for p in self.before},
        }


def prove(
    before: Mapping[str, str],
    variables: Mapping[str, tf.Variable],
    step: int,
    provenance: Mapping[str, dict[str, Any]],
) -> FreezeProof:
    """Digest again what `before` holds.

    `variables` is {path: variable} of at least those paths, else `FreezeProofError`.
    """
    missing = [path for path in before if path not in variables]
    if missing:
        raise FreezeProofError(f"frozen variables that are no longer in the model: {', '.join(missing)}")
    after = digests({path: variables[path] for path in before})
    return FreezeProof(step, dict(before), after, dict(provenance))


def _joint(digest_of: Mapping[str, str], paths: Iterable[str]) -> str:
    lines = "".join(f"{path} {digest_of[path]}\n" for path in sorted(paths))
    return hashlib.sha256(lines.encode()).hexdigest()

"""Two sets of weights compared variable by variable, by their digests."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from detector.selectors import VariableRow, largest_prefixes, stage_of

_SHOWN = 10


@dataclass(frozen=True)
class Comparison:
    """All paths, B's first, and which of them are what.  `frozen`: those that were to stay identical."""

    paths: tuple[str, ...]
    identical: tuple[str, ...]
    changed: tuple[str, ...]
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    frozen: tuple[str, ...]

    @property
    def broken(self) -> tuple[str, ...]:
        """What was to stay identical and differs, or is missing on one side."""
        identical = set(self.identical)
        return tuple(path for path in self.frozen if path not in identical)

    def by_stage(self) -> dict[str, tuple[int, int, int]]:
        """Return {stage: (identical, changed, on one side only)}."""
        kinds = (self.identical, self.changed, (*self.only_in_a, *self.only_in_b))
        # The order of B, in which the paths of one stage are spread over the kinds.
        counts = {stage_of(path): [0, 0, 0] for path in self.paths}
        for kind, paths in enumerate(kinds):
            for path in paths:
                counts[stage_of(path)][kind] += 1
        return {stage: (same, changed, alone) for stage, (same, changed, alone) in counts.items()}


def compare(a: Mapping[str, str], b: Mapping[str, str], frozen: Collection[str] = ()) -> Comparison:
    """Compare {path: digest} of two sets of weights; `frozen` are the paths that were to stay identical.

    Raises `ValueError` if one of those is on neither side.
    """
    paths = tuple({**b, **a})
    both = [path for path in paths if path in a and path in b]
    unknown = set(frozen) - set(paths)
    if unknown:
        raise ValueError(f"the plan freezes variables that neither side has: {', '.join(sorted(unknown))}")
    return Comparison(
        paths=paths,
        identical=tuple(path for path in both if a[path] == b[path]),
        changed=tuple(path for path in both if a[path] != b[path]),
        only_in_a=tuple(path for path in paths if path not in b),
        only_in_b=tuple(path for path in paths if path not in a),
        frozen=tuple(path for path in paths if path in set(frozen)),
    )


def comparison_table(comparison: Comparison) -> Group:
    """Return the rendering for `rich.print`, at most 80 columns wide with usual stage names."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("component / stage", no_wrap=True)
    for heading in ("identical", "changed", "in one only", "frozen"):
        table.add_column(heading, justify="right")
    frozen = Counter(stage_of(path) for path in comparison.frozen)
    broken = Counter(stage_of(path) for path in comparison.broken)
    for stage, counts in comparison.by_stage().items():
        shown = f"{broken[stage]} of {frozen[stage]} BROKEN" if broken[stage] else f"{frozen[stage] or ''}"
        table.add_row(
            Text(stage),
            *(f"{count or ''}" for count in counts),
            Text(shown),
            style="red" if broken[stage] else "",
        )
    return Group(table, Text(), *(Text(line) for line in _lines(comparison)))


def _lines(comparison: Comparison) -> list[str]:
    lines = [f"{len(comparison.identical)} of {len(comparison.paths)} variables are bit-identical"]
    for what, paths in (
        ("changed", comparison.changed),
        ("only in A", comparison.only_in_a),
        ("only in B", comparison.only_in_b),
    ):
        if paths:
            lines.append(f"{what}: {', '.join(largest_prefixes(_rows(comparison.paths), paths))}")
    if comparison.broken:
        lines.append(
            f"BROKEN: {len(comparison.broken)} of {len(comparison.frozen)} variables that B's plan freezes "
            f"differ: {', '.join(comparison.broken[:_SHOWN])}"
            + (f", and {len(comparison.broken) - _SHOWN} more" if len(comparison.broken) > _SHOWN else "")
        )
    elif comparison.frozen:
        lines.append(f"all {len(comparison.frozen)} variables that B's plan freezes are identical to A's")
    else:
        lines.append("B carries no plan that freezes anything on the way from A")
    return lines


def _rows(paths: Iterable[str]) -> list[VariableRow]:
    return [VariableRow(path, (), restored=False) for path in paths]

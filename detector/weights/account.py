"""What an import did, in lines for people: what the file was recognised as, what is fresh, and why."""

from collections import Counter
from collections.abc import Iterable, Sequence

from detector.label_map import are_numbered
from detector.weights.importing import ImportReport

_SHOWN = 6  # classes in a line; of more, the first three and the last


def account(report: ImportReport, verbose: bool = False) -> list[str]:
    """Return the whole account: a line for the file, for every component, and for what is left in the file.

    `verbose` adds a line for every variable and every entry that is left.
    """
    lines = [f"{report.source}: {report.format}"]
    if verbose:
        lines += [f"  restored {path} <- {name}" for path, name in report.restored.items()]
        lines += [f"  fresh    {path}: {why}" for path, why in report.fresh.items()]
        lines += [f"  left     {name}: {why}" for name, why in report.left.items()]
    lines += _components(report).values()
    lines += _classes(report.classes)
    lines.append(f"left in the file: {len(report.left)}{_reasons(report.left.values())}")
    return lines


def summary(report: ImportReport) -> list[str]:
    """Return the account in short: a line for the file, and one for every component that is fresh in part."""
    of = len(report.restored) + len(report.fresh)
    restored = f"{len(report.restored)} of {of}" if report.fresh else f"all {of}"
    components = _components(report)
    fresh = dict.fromkeys(path.split("/")[0] for path in report.fresh)
    return [
        f"{report.source}: {report.format}, {restored} variables restored",
        *(f"  {line}" for name, line in components.items() if name in fresh),
        *(f"  {line}" for line in _classes(report.classes)),
    ]


def _components(report: ImportReport) -> dict[str, str]:
    """Return {component: how many of its variables are restored, how many fresh, and why}."""
    return {
        component: f"{component}: {part['restored']} restored, {len(part['fresh'])} fresh"
        + _reasons(report.fresh[path] for path in part["fresh"])
        for component, part in report.provenance().items()
    }


def _classes(names: Sequence[str]) -> list[str]:
    """Return a line that says which class of the file each of the model's is, unless that is in the names."""
    if are_numbered(names):
        return []
    pairs = [f"{number} → {name}" for number, name in enumerate(names, start=1)]
    if len(pairs) > _SHOWN:
        pairs = [*pairs[:3], "…", pairs[-1]]
    return [f"predictor kept, class by class in the file's order: {', '.join(pairs)}"]


def _reasons(reasons: Iterable[str]) -> str:
    """Return " (why)", with counts if there are several reasons; nothing if there is none."""
    counts = Counter(reasons)
    said = "; ".join(f"{count}: {why}" if len(counts) > 1 else why for why, count in counts.items())
    return f" ({said})" if said else ""

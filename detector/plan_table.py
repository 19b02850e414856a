"""A freeze plan for people to read: components and their stages, what trains, and what each selector matched.

Every colour only repeats what a word says, so the table reads the same in a log file.
"""

from collections.abc import Iterable

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from detector.freeze import FreezePlan, PartSummary


def plan_table(plan: FreezePlan, saving: str | None = None) -> Group:
    """Return the rendering of `plan` for `rich.print`, at most 80 columns wide with usual stage names.

    `saving` is the predicted saving, in words, where somebody computed it.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("component / stage", no_wrap=True)
    table.add_column("variables", justify="right")
    table.add_column("parameters", justify="right")
    table.add_column("state", no_wrap=True)
    table.add_column("BatchNorm", no_wrap=True)
    table.add_column("values", no_wrap=True)
    for path in _tree(plan.by_stage()):
        depth = path.count("/")
        name = "  " * depth + path.rpartition("/")[2]
        table.add_row(*_cells(name, plan.summary(path)), style="" if depth else "bold")
    table.add_section()
    table.add_row(*_cells("total", plan.summary()), style="bold")
    # Text, not str: rich would read the brackets of `feature_extractor[:Mixed_4c]` as markup.
    return Group(table, Text(), *(Text(line) for line in _lines(plan, saving)))


def _tree(stage_paths: Iterable[str]) -> list[str]:
    """Return the paths and everything above them, each once, in reading order."""
    tree: dict[str, None] = {}
    for path in stage_paths:
        names = path.split("/")
        tree.update(dict.fromkeys("/".join(names[: depth + 1]) for depth in range(len(names))))
    return list(tree)


def _cells(name: str, part: PartSummary) -> tuple[Text, ...]:
    return (
        Text(name),
        Text(f"{part.variables:,}"),
        Text(f"{part.parameters:,}"),
        _state(part),
        Text(_share(part.updated_statistics, part.statistics, ("updated", "partly", "fixed"))),
        Text(_share(part.restored_variables, part.variables, ("restored", "part fresh", "fresh"))),
    )


def _state(part: PartSummary) -> Text:
    percent = f"{100 * part.trained_parameters / part.parameters:.0f}"
    partly = {"0": "<1", "100": ">99"}.get(percent, percent)
    words = ("● trained", f"◐ {partly}% trained", "○ frozen")
    word = _share(part.trained_variables, part.trainable_variables, words)
    return Text(word, style={"●": "green", "◐": "yellow", "○": "blue"}.get(word[:1], ""))


def _share(count: int, of: int, words: tuple[str, str, str]) -> str:
    """Return the word for all, some or none of them; nothing where there are none to speak of."""
    if of == 0:
        return ""
    return words[0] if count == of else words[1] if count else words[2]


def _lines(plan: FreezePlan, saving: str | None) -> list[str]:
    lines = []
    for role, counts in (
        ("freeze", plan.freeze),
        ("train_only", plan.train_only),
        ("unfreeze", plan.unfreeze),
    ):
        lines += [f"{role} {selector}: matches {_variables(count)}" for selector, count in counts.items()]
    if not lines:
        lines.append("freeze none: everything trains")
    whole = plan.summary()
    share = whole.trained_parameters / whole.parameters
    lines.append(
        f"Trains {whole.trained_parameters:,} of {whole.parameters:,} parameters ({share:.1%}) in "
        f"{_variables(whole.trained_variables)}; {_variables(len(plan.frozen))} stay bit-identical."
    )
    if plan.updated:
        lines.append(f"{_variables(len(plan.updated))} of BatchNorm follow the batches.")
    if saving:
        lines.append(f"Predicted saving: {saving}")
    return lines


def _variables(count: int) -> str:
    return f"{count:,} variable{'' if count == 1 else 's'}"

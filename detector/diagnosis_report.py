"""A diagnosis for people to look at: a table for the terminal, and a picture."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Patch
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from detector.diagnose import Diagnosis
from detector.freeze_suggestion import Suggestion
from detector.selectors import under

_FROZEN, _TRAINED = "#3b6fb6", "#e08a2e"  # told apart in grey and by colour-blind eyes


def frozen_stages(diagnosis: Diagnosis, suggestion: Suggestion) -> set[str]:
    """Return the paths of the stages that the suggestion freezes."""
    return {
        stage.path
        for stage in diagnosis.stages
        if any(under(selector, stage.path) for selector in suggestion.freeze)
    }


def diagnosis_table(diagnosis: Diagnosis, suggestion: Suggestion) -> Group:
    """Return the rendering for `rich.print`, at most 80 columns wide with usual stage names."""
    frozen = frozen_stages(diagnosis, suggestion)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("stage", no_wrap=True)
    for heading in ("parameters", "grad. /\nweight", "mean\nshift", "var.\nshift"):
        table.add_column(heading, justify="right", vertical="bottom")
    table.add_column("suggested", no_wrap=True)
    for stage in diagnosis.stages:
        is_frozen = stage.path in frozen
        table.add_row(
            Text(stage.path),
            f"{stage.parameters:,}",
            _number(stage.relative_gradient),
            _number(stage.mean_shift),
            _number(stage.variance_shift),
            Text("○ freeze" if is_frozen else "● train", style="blue" if is_frozen else "green"),
        )
    # Text, not str: rich would read brackets as markup.
    return Group(table, Text(), *(Text(line) for line in _lines(diagnosis)))


def suggestion_lines(suggestion: Suggestion) -> list[str]:
    """Return the suggested selectors and the reasons, what is frozen first."""
    reasons = sorted(suggestion.reasons, key=lambda reason: not reason.startswith("freeze "))
    return [
        f"suggested (a rule of thumb): --freeze {','.join(suggestion.freeze)}",
        *(f"  {reason}" for reason in reasons),
    ]


def _lines(diagnosis: Diagnosis) -> list[str]:
    total = sum(diagnosis.losses.values())
    parts = [f"{name} {value / total:.0%}" for name, value in diagnosis.losses.items() if total]
    found = [
        f"{'–' if part is None else f'{part:.0%}'} at IoU {iou}" for iou, part in diagnosis.recall.items()
    ]
    return [
        f"measured on {diagnosis.images:,} images with {diagnosis.objects:,} objects, "
        f"in {diagnosis.batches:,} batches",
        f"loss {total:.3f}: {', '.join(parts)}",
        f"objects that the proposals find: {', '.join(found)}",
    ]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def save_picture(diagnosis: Diagnosis, suggestion: Suggestion, path: str | Path) -> None:
    """Write a PNG: bars by stage for the relative gradient and the two shifts, and the losses and recall."""
    stages = diagnosis.stages
    frozen = frozen_stages(diagnosis, suggestion)
    rows = list(range(len(stages)))
    figure = Figure(figsize=(12, 1.9 + 0.3 * len(stages)), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    measures: list[tuple[str, list[float | None]]] = [
        ("relative gradient\n‖gradient‖ / ‖weight‖", [stage.relative_gradient for stage in stages]),
        (
            "mean shift of BatchNorm inputs\n|Δ mean| / stored deviation",
            [stage.mean_shift for stage in stages],
        ),
        ("variance shift\n|log(variance / stored)|", [stage.variance_shift for stage in stages]),
    ]
    for axes, (title, values) in zip(panels, measures, strict=True):
        known = [(row, value) for row, value in zip(rows, values, strict=True) if value is not None]
        bars = axes.barh(
            [row for row, _ in known],
            [value for _, value in known],
            color=[_FROZEN if stages[row].path in frozen else _TRAINED for row, _ in known],
        )
        axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=8)
        axes.set_title(title, fontsize=10)
        axes.margins(x=0.15)
        axes.spines[["top", "right"]].set_visible(False)
        for row in set(rows) - {row for row, _ in known}:
            axes.text(0, row, " no BatchNorm", va="center", fontsize=8, color="grey")
    panels[0].set_yticks(rows, [stage.path for stage in stages], fontsize=9)
    panels[0].invert_yaxis()  # the forward pass goes down
    figure.suptitle("\n".join(_lines(diagnosis)), fontsize=10, x=0.01, ha="left")
    figure.legend(
        handles=[
            Patch(color=_TRAINED, label="suggested: train"),
            Patch(color=_FROZEN, label="suggested: freeze"),
        ],
        loc="upper right",
        fontsize=9,
        frameon=False,
    )
    figure.savefig(path, dpi=110)

"""The figures of a sweep's page, as SVG that takes its colours and its width from the page."""

import html
import io
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from detector.sweep import SweepResult, VariantResult

MOST_CLASSES = 12  # panels that a page can bear

# Stand-ins that become the page's colours, so that a plot follows light and dark.
_INK, _FAINT, _ACCENT, _GOOD, _BAD = "#010101", "#020202", "#030303", "#040404", "#050505"
_CSS_COLORS = {
    _INK: "var(--ink)",
    _FAINT: "var(--faint)",
    _ACCENT: "var(--accent)",
    _GOOD: "var(--good)",
    _BAD: "var(--bad)",
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
}


def pareto_front(variants: Sequence[VariantResult]) -> list[VariantResult]:
    """Return the variants that no other beats in both step time and AP, from the cheapest on."""
    timed = [variant for variant in variants if variant.step_seconds is not None]
    front: list[VariantResult] = []
    for variant in sorted(timed, key=lambda v: (v.step_seconds or 0.0, -v.ap)):
        if not front or variant.ap > front[-1].ap:
            front.append(variant)
    return front


def cost_plot(result: SweepResult) -> str:
    """Draw AP against step time, with the intervals of the differences and the Pareto front."""
    timed = [variant for variant in result.variants if variant.step_seconds is not None]
    front = pareto_front(timed)
    full = result.reference

    def draw() -> Figure:
        figure = Figure(figsize=(9.5, 5.0), layout="constrained")
        axes = figure.subplots()
        if full is not None:
            axes.axhline(full.ap, color=_FAINT, linestyle="--", linewidth=1)
        axes.plot(
            [_ms(v) for v in front],
            [v.ap for v in front],
            color=_ACCENT,
            linewidth=1.2,
            drawstyle="steps-post",
        )
        for v in timed:
            if v.difference is not None and full is not None:
                axes.vlines(
                    _ms(v), full.ap + v.difference.low, full.ap + v.difference.high, color=_FAINT, linewidth=2
                )
            axes.plot(
                [_ms(v)], [v.ap], "o", color=_ACCENT, markersize=8, fillstyle="full" if v in front else "none"
            )
        axes.set_xlabel("step time, ms")
        axes.set_ylabel("AP")
        axes.margins(x=0.12, y=0.1)
        _name_points(figure, axes, [(_ms(v), v.ap, v.name) for v in timed])
        return figure

    return _svg(draw, "AP against step time")


def curves(result: SweepResult, key: str, label: str) -> str:
    """Draw one small panel per variant, full fine-tuning behind each to compare with.

    Where a schedule's next freeze stage begins stands a line.

    Args:
        result: at least one variant.
        key: of `VariantResult.curves`.
        label: of the vertical axis.
    """
    variants, full = result.variants, result.reference
    columns = min(4, len(variants))
    rows = math.ceil(len(variants) / columns)

    def draw() -> Figure:
        figure = Figure(figsize=(9.5, 0.5 + 1.6 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, v in zip(grid, variants, strict=False):
            if full is not None and v is not full:
                axes.plot(*zip(*full.curves[key], strict=True), color=_FAINT, linewidth=1.5)
            if v.curves[key]:
                axes.plot(
                    *zip(*v.curves[key], strict=True),
                    color=_ACCENT,
                    linewidth=1.5,
                    marker="." if key == "AP" else "",
                )
            for step in v.boundaries:
                axes.axvline(step, color=_INK, linewidth=0.8, linestyle=(0, (2, 3)))
            axes.set_title(v.name, fontsize=9)
        for axes in grid[len(variants) :]:
            axes.set_visible(False)
        figure.supxlabel("step", fontsize=10)
        figure.supylabel(label, fontsize=10)
        return figure

    return _svg(draw, f"{label} by step")


def class_plot(result: SweepResult) -> str:
    """Draw the differences from full fine-tuning with their intervals, one panel per class."""
    variants = [variant for variant in result.variants if variant.class_differences]
    classes = _shown_classes(variants)
    columns = min(4, len(classes))
    rows = math.ceil(len(classes) / columns)

    def draw() -> Figure:
        height = rows * (0.45 + 0.23 * len(variants)) + 0.4
        figure = Figure(figsize=(9.5, height), layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        places = np.arange(len(variants))[::-1]
        for axes, name in zip(grid, classes, strict=False):
            axes.axvline(0, color=_FAINT, linewidth=1)
            for place, v in zip(places, variants, strict=True):
                interval = v.class_differences[name]
                color = _GOOD if interval.above_zero else _BAD if interval.below_zero else _INK
                axes.hlines(place, interval.low, interval.high, color=color, linewidth=1.5)
                axes.plot([interval.difference], [place], "o", color=color, markersize=5)
            axes.set_title(name)
            axes.set_yticks(places, [v.name for v in variants])
            axes.set_ylim(-0.6, len(variants) - 0.4)
            axes.tick_params(left=False)
            axes.spines["left"].set_visible(False)
        for axes in grid[len(classes) :]:
            axes.set_visible(False)
        figure.supxlabel("AP − AP of full fine-tuning", fontsize=10)
        return figure

    return _svg(draw, "differences of AP by class")


def _name_points(figure: Figure, axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Write names beside points, each where it meets the fewest others and is nearest to its own."""
    figure.draw_without_rendering()
    places = [(9, 5, "left"), (9, -13, "left"), (-9, 5, "right"), (-9, -13, "right")]
    places += [(9, 18, "left"), (-9, 18, "right"), (9, -26, "left"), (-9, -26, "right")]
    inside = axes.get_window_extent()
    # Pixels, as all boxes here.
    markers = [tuple(axes.transData.transform(point[:2])) for point in points]
    taken = [matplotlib.transforms.Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in markers]
    for (x, y, name), marker in zip(points, markers, strict=True):
        others = [other for other in markers if other != marker]
        best: tuple[float, Any, Any] | None = None
        for rank, (dx, dy, side) in enumerate(places):
            text = axes.annotate(
                name, (x, y), xytext=(dx, dy), textcoords="offset points", ha=side, fontsize=9, color=_INK
            )
            extent = text.get_window_extent()
            out = extent.x0 < inside.x0 or extent.x1 > inside.x1 + 5 or extent.y0 < inside.y0
            # As near to another it would read as that one's name.
            own = _distance(extent, marker)
            strays = any(_distance(extent, other) <= own for other in others)
            penalty = 10 * sum(extent.overlaps(other) for other in taken) + 10 * strays + 20 * out + rank
            if best is None or penalty < best[0]:
                if best is not None:
                    best[1].remove()
                best = (penalty, text, extent)
            else:
                text.remove()
        if best is not None:
            taken.append(best[2])


def _distance(box: Any, point: tuple[float, float]) -> float:
    """Return how far `point` (x, y) is from a matplotlib box, 0 inside."""
    x, y = point
    return math.hypot(max(box.x0 - x, x - box.x1, 0.0), max(box.y0 - y, y - box.y1, 0.0))


def _shown_classes(variants: Sequence[VariantResult]) -> list[str]:
    names = list(variants[0].class_differences)

    def largest(name: str) -> float:
        return max(abs(variant.class_differences[name].difference) for variant in variants)

    chosen = sorted(names, key=largest, reverse=True)[:MOST_CLASSES]
    return [name for name in names if name in chosen]


def _svg(draw: Callable[[], Figure], label: str) -> str:
    """Return a figure as SVG that takes its colours and its width from the page."""
    file = io.StringIO()
    # A salt of its own, or the clip paths of two figures would have the same names on one page.
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": label}):
        draw().savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for stand_in, color in _CSS_COLORS.items():
        text = text.replace(stand_in, color)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r' id="(?!m|p)[^"]*"', "", text)  # only markers and clip paths are referred to
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(label)}"', 1)


def _ms(variant: VariantResult) -> float:
    return 1000 * (variant.step_seconds or math.nan)

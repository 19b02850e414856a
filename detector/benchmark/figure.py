"""A benchmark's result as a picture: ratios with their spread, parts of the machine's peak, cost curves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from detector.benchmark.result import BenchmarkResult, Spread
from detector.benchmark.scaling import Scaling, scaling_of
from detector.benchmark.table import duration

# Blue and orange of the colour-blind-safe palette of Okabe and Ito, and a grey for what is said twice.
_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#777777"
_ROW = 0.42  # inches of height a bar takes
_WIDTH = 9.0


def draw(result: BenchmarkResult, path: Path) -> None:
    """Write the picture of a result as a PNG file."""
    ratios = {f"{ratio.workload}  /  {ratio.reference}": ratio.time for ratio in reversed(result.ratios)}
    parts = {w.name: w.peak_part for w in reversed(result.workloads) if w.peak_part is not None}
    curves = scaling_of(result.workloads)
    times: dict[str, Spread] = {}
    if not (ratios or parts or curves):  # start-up alone, say: nothing to compare it with
        times = {w.name: w.seconds for w in reversed(result.workloads)}
    heights = [_ROW * len(bars) + 1.0 for bars in (ratios, parts, times) if bars] + [3.4] * bool(curves)
    figure = Figure(figsize=(_WIDTH, sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = iter(figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
    if ratios:
        _bars(next(panels), ratios, "time per image in parts of the reference's", "{:.3f}".format, one=True)
    if parts:
        label = "arithmetic in parts of the float32 matrix product's"
        _bars(next(panels), parts, label, "{:.0%}".format, one=True)
    if times:
        _bars(next(panels), times, "seconds", duration)
    if curves:
        _curves(next(panels), curves)
    figure.suptitle(f"{result.name}: {result.machine['cores']} cores of {result.machine['cpu']}", fontsize=10)
    figure.savefig(path, dpi=120)


def _bars(
    axes: Any, bars: dict[str, Spread], label: str, text: Callable[[float], str], one: bool = False
) -> None:
    """Draw medians as bars, quartiles as whiskers, and a line at 1 if `one`."""
    places = range(len(bars))
    medians = [spread.median for spread in bars.values()]
    whiskers = [
        [spread.median - spread.q1 for spread in bars.values()],
        [spread.q3 - spread.median for spread in bars.values()],
    ]
    axes.barh(places, medians, xerr=whiskers, color=_BLUE, height=0.62, capsize=3, ecolor="black")
    if one:
        axes.axvline(1.0, color=_GREY, linewidth=1, linestyle="--")
    axes.set_yticks(list(places), list(bars))
    axes.set_xlim(0, 1.15 * max(float(one), *(spread.q3 for spread in bars.values())))
    for place, spread in zip(places, bars.values(), strict=True):
        axes.annotate(
            text(spread.median),
            (max(spread.q3, spread.median), place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},  # over the line of the reference
        )
    axes.set_xlabel(label)
    axes.spines[["top", "right"]].set_visible(False)


def _curves(axes: Any, curves: list[Scaling]) -> None:
    """Draw time per unit, on logarithmic scales, with bends marked; in parts of the curve's first point."""
    for curve in curves:
        first = curve.points[0]
        places = [point.at / first.at for point in curve.points]
        costs = [point.average / first.average for point in curve.points]
        axes.plot(places, costs, marker="o", label=f"{curve.kind} by {curve.axis}, from {first.at:,}")
        bends = [(x, y) for x, y, point in zip(places, costs, curve.points, strict=True) if point.is_bend]
        if bends:
            axes.scatter(*zip(*bends, strict=True), s=120, facecolors="none", edgecolors=_ORANGE, zorder=3)
    axes.axhline(1.0, color=_GREY, linewidth=1, linestyle="--")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set_xlabel("batch size, pixels or images, in parts of the smallest (circles: bends)")
    axes.set_ylabel("cost per image or pixel,\nin parts of the smallest's")
    axes.set_ylim(0, 1.1 * axes.dataLim.y1)  # with room for a circle
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)

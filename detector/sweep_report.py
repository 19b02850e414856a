"""The page of a sweep: one file with everything in it, readable in light and in dark."""

import base64
import html
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from detector.drawing import class_color, draw_detections
from detector.sweep import REFERENCE, SweepResult, VariantResult
from detector.sweep_table import difference_text, duration, memory, seed_spread

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
_MOST_CLASSES = 12  # panels that a page can bear
_SMALLEST_SCORE = 0.5  # of the detections that are drawn

_CSS = """
:root { --ink: #1c2430; --faint: #aab3bf; --paper: #ffffff; --card: #f4f6f8;
        --accent: #2563c9; --good: #15803d; --bad: #c2410c; color-scheme: light dark; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ee; --faint: #566172; --paper: #14181e; --card: #1e242d;
          --accent: #6ea8ff; --good: #4ade80; --bad: #fb923c; } }
body { background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif;
       max-width: 74rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; margin: 0 0 1rem; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .25rem; }
p { max-width: 46rem; margin: .25rem 0 .75rem; }
.advice { background: var(--card); border-left: 4px solid var(--accent); padding: .9rem 1.1rem;
          font-size: 1.1rem; max-width: none; border-radius: 0 6px 6px 0; overflow-wrap: anywhere; }
.note { opacity: .8; font-size: .9rem; }
.failed { border-left-color: var(--bad); font-size: 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; width: 100%; }
th, td { padding: .35rem .45rem; text-align: right; white-space: nowrap;
         border-bottom: 1px solid var(--card); }
th { border-bottom: 1px solid var(--faint); font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
td code { font-size: .8rem; opacity: .75; display: block; white-space: normal; overflow-wrap: anywhere; }
.good { color: var(--good); } .bad { color: var(--bad); }
svg { width: 100%; height: auto; display: block; } 
svg text { fill: var(--ink); paint-order: stroke; stroke: var(--paper); stroke-width: 3px; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); gap: .75rem;
            margin: 1rem 0 1.75rem; }
figure { margin: 0; } figure img { width: 100%; border-radius: 4px; display: block; }
figcaption { font-size: .85rem; margin-top: .25rem; overflow-wrap: anywhere; }
"""


@dataclass(frozen=True)
class Picture:
    """One image several times: JPEG bytes by caption."""

    image_id: int
    panels: dict[str, bytes]


def draw_picture(
    image: np.ndarray,
    image_id: int,
    ground_truth: Mapping[str, Any],
    detections: Mapping[str, Sequence[Mapping[str, Any]]],
) -> Picture:
    """Draw an image's labels, and what each variant found on it.

    Args:
        image: uint8 [h, w, 3], RGB.
        image_id: of the COCO data set `ground_truth`.
        ground_truth: gives the labels.
        detections: COCO results by variant; those with a score of at least 0.5 are drawn.
    """
    places = {c["id"]: (index, c["name"]) for index, c in enumerate(ground_truth["categories"])}
    shown = {"labels": ground_truth["annotations"]}
    for name, found in detections.items():
        sure = [entry for entry in found if entry["score"] >= _SMALLEST_SCORE]
        shown[name] = sorted(sure, key=lambda entry: -entry["score"])
    panels = {}
    for caption, entries in shown.items():
        here = [entry for entry in entries if entry["image_id"] == image_id]
        boxes = np.array([entry["bbox"] for entry in here], float).reshape(-1, 4)
        drawn = draw_detections(
            image,
            np.stack(
                [boxes[:, 1], boxes[:, 0], boxes[:, 1] + boxes[:, 3], boxes[:, 0] + boxes[:, 2]], axis=1
            ),
            [places[e["category_id"]][1] + (f" {e['score']:.0%}" if "score" in e else "") for e in here],
            [class_color(places[entry["category_id"]][0]) for entry in here],
        )
        drawn.thumbnail((480, 480))
        file = io.BytesIO()
        drawn.save(file, "JPEG", quality=80)
        panels[caption] = file.getvalue()
    return Picture(image_id, panels)


def pareto_front(variants: Sequence[VariantResult]) -> list[VariantResult]:
    """Return the variants that no other beats in both step time and AP, from the cheapest on."""
    timed = [variant for variant in variants if variant.step_seconds is not None]
    front: list[VariantResult] = []
    for variant in sorted(timed, key=lambda v: (v.step_seconds or 0.0, -v.ap)):
        if not front or variant.ap > front[-1].ap:
            front.append(variant)
    return front


def report(
    result: SweepResult,
    advice: str,
    *,
    title: str,
    failed: Sequence[str] = (),
    pictures: Sequence[Picture] = (),
) -> str:
    """Return the page.

    Args:
        result: at least one variant.
        advice: of `sweep_advice.advise`.
        title: the page's.
        failed: the names of runs that are missing.
        pictures: examples where variants disagree.
    """
    seeds = len(max((variant.seeds for variant in result.variants), key=len))
    compared = sum(variant.difference is not None for variant in result.variants)
    parts = [f"<h1>{html.escape(title)}</h1>", f'<p class="advice">{html.escape(advice)}</p>']
    if failed:
        names = html.escape("; ".join(failed))
        parts.append(f'<p class="advice failed">Missing, because they failed: {names}.</p>')
    parts.append(
        f"<p class='note'>{len(result.variants)} variants, {seeds} seed{'s' if seeds > 1 else ''} each, "
        f"scored on {result.num_images} images. AP is COCO's, the mean over the seeds.</p>"
    )
    parts += [
        "<h2>Results</h2>",
        _table(result),
        "<p class='note'>“AP − full” is the difference from full fine-tuning (<b>none</b> frozen) with its "
        "paired 95 % bootstrap interval over the images: what other images of this kind could have shown. "
        "Marked is what excludes zero."
        + (" Each interval stands for itself: about one in twenty misses the truth." if compared > 1 else "")
        + " “seeds ±” is half the range of AP over the seeds.</p>",
    ]
    if any(variant.step_seconds is not None for variant in result.variants):
        parts += [
            "<h2>What accuracy costs</h2>",
            "<p class='note'>Bars are the intervals of the difference from full fine-tuning, laid from its "
            "AP, the dashed line: a bar that crosses the line shows no difference. Filled points are the "
            "Pareto front: no other variant is both faster and better.</p>",
            _cost_plot(result),
        ]
    parts += ["<h2>How they learned</h2>", _curves(result, "loss", "training loss")]
    if any(len(variant.curves["AP"]) > 1 for variant in result.variants):
        parts.append(_curves(result, "AP", "AP"))
    if any(len(variant.class_differences) > 1 for variant in result.variants):
        parts += ["<h2>Which classes it changes</h2>", _classes_note(result), _class_plot(result)]
    if pictures:
        parts += [
            "<h2>Where they disagree</h2>",
            "<p class='note'>The images on which the variants' first seeds differ most: the labels, full "
            "fine-tuning, and the variants that do best and worst there. Drawn are detections with a score "
            f"of at least {_SMALLEST_SCORE:.0%}.</p>",
        ]
        parts += [_picture(picture) for picture in pictures]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_CSS}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _table(result: SweepResult) -> str:
    classes = list(result.variants[0].classes)
    if len(classes) > 8:  # the rest is in sweep.csv
        classes = []
    headings = ["variant", "AP", "seeds ±", "AP − full, 95 %", "trains", "step", "memory", "total"]
    headings += ["AP50", "AP75", *classes]
    rows = ["<tr>" + "".join(f"<th>{html.escape(heading)}</th>" for heading in headings) + "</tr>"]
    for v in result.variants:
        what = ", ".join(v.freeze) or f"all but {', '.join(v.train_only)}"
        label = f"<b>{html.escape(v.name)}</b>"
        if what != v.name:
            label += f"<code>{html.escape(what)}</code>"
        spread = seed_spread(v)
        cells = [
            _number(v.numbers["AP"]),
            "–" if spread is None else f"{spread:.3f}",
            _coloured(v),
            f"{v.trained_parameters / v.parameters:.0%}",
            duration(v.step_seconds),
            memory(v.peak_memory_bytes),
            duration(v.seconds),
            *(_number(v.numbers[name]) for name in ("AP50", "AP75")),
            *(_number(v.classes[name]) for name in classes),
        ]
        rows.append(f"<tr><td>{label}</td>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f"<div class='wide'><table>{''.join(rows)}</table></div>"


def _cost_plot(result: SweepResult) -> str:
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
        axes.set_xlabel("step time, ms (median)")
        axes.set_ylabel("AP")
        axes.margins(x=0.12, y=0.1)
        _name_points(figure, axes, [(_ms(v), v.ap, v.name) for v in timed])
        return figure

    return _svg(draw, "AP against step time")


def _name_points(figure: Figure, axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Write names beside points, each where it meets the fewest others."""
    figure.draw_without_rendering()
    places = [(9, 5, "left"), (9, -13, "left"), (-9, 5, "right"), (-9, -13, "right")]
    places += [(9, 18, "left"), (-9, 18, "right"), (9, -26, "left"), (-9, -26, "right")]
    inside = axes.get_window_extent()
    taken = [
        matplotlib.transforms.Bbox.from_bounds(x - 6, y - 6, 12, 12)
        for x, y in (axes.transData.transform(point[:2]) for point in points)
    ]
    for x, y, name in points:
        best: tuple[float, Any, Any] | None = None
        for rank, (dx, dy, side) in enumerate(places):
            text = axes.annotate(
                name, (x, y), xytext=(dx, dy), textcoords="offset points", ha=side, fontsize=9, color=_INK
            )
            extent = text.get_window_extent()
            out = extent.x0 < inside.x0 or extent.x1 > inside.x1 + 5 or extent.y0 < inside.y0
            penalty = 10 * sum(extent.overlaps(other) for other in taken) + 20 * out + rank
            if best is None or penalty < best[0]:
                if best is not None:
                    best[1].remove()
                best = (penalty, text, extent)
            else:
                text.remove()
        if best is not None:
            taken.append(best[2])


def _curves(result: SweepResult, key: str, label: str) -> str:
    """Draw one small panel per variant, full fine-tuning behind each to compare with."""
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
            axes.set_title(v.name, fontsize=9)
        for axes in grid[len(variants) :]:
            axes.set_visible(False)
        figure.supxlabel("step", fontsize=10)
        figure.supylabel(label, fontsize=10)
        return figure

    return _svg(draw, f"{label} by step") + (
        f"<p class='note'>{label.capitalize() if key == 'loss' else label}, mean over the seeds"
        + ("; full fine-tuning in grey.</p>" if full is not None else ".</p>")
    )


def _class_plot(result: SweepResult) -> str:
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


def _classes_note(result: SweepResult) -> str:
    count = len(next(v for v in result.variants if v.class_differences).class_differences)
    which = f" Of {count} classes, the {_MOST_CLASSES} that differ most." if count > _MOST_CLASSES else ""
    return (
        "<p class='note'>The difference from full fine-tuning for each class, with its interval; coloured "
        f"where it excludes zero.{which}</p>"
    )


def _shown_classes(variants: Sequence[VariantResult]) -> list[str]:
    names = list(variants[0].class_differences)

    def largest(name: str) -> float:
        return max(abs(variant.class_differences[name].difference) for variant in variants)

    chosen = sorted(names, key=largest, reverse=True)[:_MOST_CLASSES]
    return [name for name in names if name in chosen]


def _picture(picture: Picture) -> str:
    figures = []
    for caption, jpeg in picture.panels.items():
        words = "full fine-tuning" if caption == REFERENCE else caption
        source = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
        alt = f"image {picture.image_id}, {words}"
        figures.append(
            f'<figure><img alt="{html.escape(alt)}" src="{source}">'
            f"<figcaption>{html.escape(words)}</figcaption></figure>"
        )
    return f"<div class='pictures'>{''.join(figures)}</div>"


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


def _coloured(variant: VariantResult) -> str:
    text = html.escape(difference_text(variant).strip())
    interval = variant.difference
    if interval is None or not (interval.above_zero or interval.below_zero):
        return text
    return f'<span class="{"good" if interval.above_zero else "bad"}">{text}</span>'


def _ms(variant: VariantResult) -> float:
    return 1000 * (variant.step_seconds or math.nan)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"

"""The page of a sweep: one file with everything in it, readable in light and in dark."""

import base64
import html
import shlex
from collections.abc import Sequence

from detector.sweep import SweepResult, VariantResult
from detector.sweep_config import REFERENCE
from detector.sweep_disagreements import SMALLEST_SCORE, Picture
from detector.sweep_figures import MOST_CLASSES, class_plot, cost_plot, curves
from detector.sweep_table import difference_text, duration, memory, seed_spread

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
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .85rem; width: 100%; }
th, td { padding: .35rem .35rem; text-align: right; white-space: nowrap;
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
        + " “seeds ±” is half the range of AP over the seeds. “step” is the median over a run’s steps."
        + (
            " Of a schedule it is the mean over its freeze stages, by their length, and “trains” is what any "
            "of them trains."
            if any(variant.boundaries for variant in result.variants)
            else ""
        )
        + "</p>",
    ]
    if any(variant.step_seconds is not None for variant in result.variants):
        parts += [
            "<h2>What accuracy costs</h2>",
            "<p class='note'>Bars are the intervals of the difference from full fine-tuning, laid from its "
            "AP, the dashed line: a bar that crosses the line does not show a difference. Filled points are "
            "the Pareto front: no other variant is both faster and better.</p>",
            cost_plot(result),
        ]
    parts += ["<h2>How they learned</h2>", curves(result, "loss", "training loss")]
    parts.append(_curves_note("Training loss", result))
    if any(len(variant.curves["AP"]) > 1 for variant in result.variants):
        parts += [curves(result, "AP", "AP"), _curves_note("AP", result)]
    if any(len(variant.class_differences) > 1 for variant in result.variants):
        parts += ["<h2>Which classes it changes</h2>", _classes_note(result), class_plot(result)]
    if pictures:
        parts += [
            "<h2>Where they disagree</h2>",
            "<p class='note'>The images on which the variants' first seeds differ most: the labels, full "
            "fine-tuning, and the variants that do best and worst there. Drawn are detections with a score "
            f"of at least {SMALLEST_SCORE:.0%}.</p>",
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
        label = f"<b>{html.escape(v.name)}</b>"
        if v.options != ("--freeze", v.name):
            label += f"<code>{html.escape(shlex.join(v.options))}</code>"
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


def _curves_note(label: str, result: SweepResult) -> str:
    marked = "; ".join(
        f"{html.escape(variant.name)} at {', '.join(map(str, variant.boundaries))}"
        for variant in result.variants
        if variant.boundaries
    )
    return (
        f"<p class='note'>{label}, mean over the seeds"
        + ("; full fine-tuning in grey" if result.reference is not None else "")
        + (f". Dotted lines: the steps at which the next freeze stage begins ({marked})" if marked else "")
        + ".</p>"
    )


def _classes_note(result: SweepResult) -> str:
    count = len(next(v for v in result.variants if v.class_differences).class_differences)
    which = f" Of {count} classes, the {MOST_CLASSES} that differ most." if count > MOST_CLASSES else ""
    return (
        "<p class='note'>The difference from full fine-tuning for each class, with its interval; coloured "
        f"where it excludes zero.{which}</p>"
    )


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


def _coloured(variant: VariantResult) -> str:
    text = html.escape(difference_text(variant).strip())
    interval = variant.difference
    if interval is None or not (interval.above_zero or interval.below_zero):
        return text
    return f'<span class="{"good" if interval.above_zero else "bad"}">{text}</span>'


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"

import re
from dataclasses import replace

import numpy as np
import pytest
from test_sweep_advice import variant

from detector import sweep_figures
from detector.sweep import SweepResult
from detector.sweep_figures import cost_plot, curves, pareto_front


def test_the_front_is_what_nothing_beats():
    by_hand = [
        variant("full", step_seconds=0.30, ap=0.50),
        variant("cheap", step_seconds=0.10, ap=0.20),
        variant("beaten", step_seconds=0.20, ap=0.19),
        variant("as good and slower", step_seconds=0.40, ap=0.50),
        variant("between", step_seconds=0.20, ap=0.40),
        variant("untimed", step_seconds=None, ap=0.90),
    ]
    assert [v.name for v in pareto_front(by_hand)] == ["cheap", "between", "full"]


def test_the_curves_mark_where_the_freeze_changes():
    full = replace(variant("none"), curves={"loss": [(0, 2.0), (100, 1.0)], "AP": []})
    schedule = replace(full, name="gradual", boundaries=(20, 50))
    drawn = curves(SweepResult((full, schedule), 10, {}), "loss", "training loss")
    lines = [
        ([float(x) for x in (first, last)], style)
        for first, last, style in re.findall(
            r'<path d="M ([\d.]+) [\d.]+ \nL ([\d.]+) [\d.]+ \n"[^>]* style="([^"]*)"', drawn
        )
    ]
    _, (begins, ends) = (xs for xs, style in lines if "var(--accent)" in style)
    marks = [xs for xs, style in lines if "stroke-dasharray" in style]
    assert marks == [pytest.approx([begins + part * (ends - begins)] * 2) for part in (0.2, 0.5)]


# Milliseconds and AP of the README's sweep; four of them lie within a few pixels.
README = {
    "none": (144, 0.379),
    "feature_extractor": (80, 0.179),
    "rpn": (137, 0.369),
    "box_classifier": (124, 0.360),
    "feature_extractor+rpn": (84, 0.152),
    "feature_extractor+box_classifier": (24, 0.048),
    "rpn+box_classifier": (114, 0.360),
    "through-Mixed_3c": (112, 0.263),
    "through-Mixed_4c": (100, 0.220),
    "tower": (119, 0.365),
    "predictor-only": (4, 0.073),
    "auto": (113, 0.365),
    "bfloat16": (142, 0.366),
}


def test_a_name_stands_nearest_to_its_own_point(monkeypatch):
    monkeypatch.setattr(sweep_figures, "_svg", lambda draw, label: draw())
    variants = [variant(name, step_seconds=ms / 1000, ap=ap) for name, (ms, ap) in README.items()]
    figure = cost_plot(SweepResult(tuple(variants), 10, {}))
    figure.draw_without_rendering()
    (axes,) = figure.axes
    points = {name: axes.transData.transform(point) for name, point in README.items()}
    boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
    assert boxes.keys() == points.keys()
    for name, box in boxes.items():
        gaps = {
            other: np.hypot(max(box.x0 - x, x - box.x1, 0), max(box.y0 - y, y - box.y1, 0))
            for other, (x, y) in points.items()
        }
        assert min(gaps, key=gaps.get) == name, gaps
        assert not [other for other, theirs in boxes.items() if other != name and box.overlaps(theirs)], name

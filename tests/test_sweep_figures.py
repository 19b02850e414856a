import re
from dataclasses import replace

import pytest
from test_sweep_advice import variant

from detector.sweep import SweepResult
from detector.sweep_figures import curves, pareto_front


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

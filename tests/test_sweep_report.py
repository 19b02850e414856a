"""The page, from hand-made runs: no training."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from test_sweep import TRUTH, VARIANTS, result_of, run_of

from detector.sweep import compare
from detector.sweep_advice import advise
from detector.sweep_config import Variant
from detector.sweep_disagreements import disagreements, draw_picture
from detector.sweep_figures import pareto_front
from detector.sweep_report import report
from detector.sweep_runs import RunRecord


@pytest.fixture(scope="module")
def result():
    return result_of(VARIANTS)


@pytest.fixture(scope="module")
def pictures(result):
    noise = np.random.default_rng(0).integers(0, 255, [20, 20, 3], np.uint8).repeat(10, 0).repeat(10, 1)
    found = {name: run_of(name, 0).detections for name in VARIANTS}
    return [
        draw_picture(
            noise, image_id, TRUTH, {name: found[name] for name in dict.fromkeys(["none", best, worst])}
        )
        for image_id, best, worst in disagreements(result, 3)
    ]


class Tags(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.open, self.seen, self.sources = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        self.sources += [v for k, v in attributes if k in ("src", "href", "xlink:href", "srcset")]
        if tag not in ("meta", "img", "path", "use", "rect", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.sources += [v for k, v in attributes if k in ("src", "href", "xlink:href", "srcset")]

    def handle_endtag(self, tag):
        if tag not in ("path", "use", "rect"):
            assert self.open.pop() == tag


def test_the_page_has_everything_and_nothing_from_outside(result, pictures):
    advice = advise(result)
    page = report(result, advice, title="shapes <target>", failed=["rpn, seed 2"], pictures=pictures)
    tags = Tags(page)
    assert not tags.open and tags.seen.count("svg") == 4 and tags.seen.count("tr") == 9
    assert tags.sources and all(
        source.startswith(("data:image/jpeg;base64,", "#")) for source in tags.sources
    )
    assert not re.search(r"@import|<script|<link|url\((?!#)", page)
    assert "<title>shapes &lt;target&gt;</title>" in page and "rpn, seed 2" in page
    assert "prefers-color-scheme: dark" in page
    assert not re.search(r"#0[1-5]0[1-5]0[1-5]", page), "a stand-in for a colour is left"
    assert 3 * 3 <= tags.seen.count("img") <= 3 * 4
    identifiers = re.findall(r' id="([^"]*)"', page)
    referred = set(re.findall(r"url\(#([^)]*)\)", page)) | {s[1:] for s in tags.sources if s[0] == "#"}
    assert referred <= set(identifiers) and len(page) < 2_000_000


@pytest.mark.parametrize("names", [["none"], ["none", "rpn"], ["rpn", "tower"]])
def test_a_page_of_few_variants_or_without_full_fine_tuning(names):
    few = result_of(names, seeds=(0,))
    page = report(few, advise(few), title="few")
    assert not Tags(page).open and page.count("<tr>") == 1 + len(names)


def test_a_sweep_without_timings_has_no_cost_plot():
    variants = [Variant(name=name, freeze=(VARIANTS[name][0],)) for name in ("none", "rpn")]
    runs = {v.name: [run_of(v.name, 0)] for v in variants}
    runs = {
        name: [RunRecord(**{**vars(run), "step_seconds": None, "metrics": [], "seconds": None})]
        for name, (run,) in runs.items()
    }
    few = compare(variants, runs, TRUTH, 50)
    page = report(few, advise(few), title="untimed")
    assert "What accuracy costs" not in page and not pareto_front(few.variants)


def test_a_schedule_is_marked_in_its_curves_and_explained():
    none, tower = (run_of(name, 0) for name in ("none", "tower"))
    variants = [Variant(name="none"), Variant(name="gradual", freeze_schedule="gradual")]
    page = {
        steps: report(
            compare(variants, {"none": [none], "gradual": [replace(tower, boundaries=steps)]}, TRUTH, 50),
            "",
            title="scheduled",
        )
        for steps in ((), (40, 120))
    }
    assert "<code>--gradual</code>" in page[()]
    assert "freeze stage" not in page[()]
    # The loss and the AP, with two marks each.
    assert page[40, 120].count("next freeze stage begins (gradual at 40, 120)") == 2
    assert page[40, 120].count("stroke-dasharray") == page[()].count("stroke-dasharray") + 4
    assert "Of a schedule it is the mean over its freeze stages" in page[40, 120]

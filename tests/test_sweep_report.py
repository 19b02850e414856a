"""The page, from hand-made runs: no training."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from test_paired_interval import detections, labels

from detector.coco_metrics import score
from detector.sweep import RunRecord, Variant, compare, disagreements
from detector.sweep_advice import advise
from detector.sweep_report import draw_picture, pareto_front, report

# Chance to find an object, seconds per step: the rest of a run's record follows from them.
VARIANTS = {
    "none": ("none", 0.80, 0.300),
    "feature_extractor": ("feature_extractor", 0.55, 0.150),
    "rpn": ("rpn", 0.79, 0.270),
    "box_classifier": ("box_classifier", 0.68, 0.250),
    "feature_extractor+rpn": ("feature_extractor,rpn", 0.50, 0.120),
    "through-Mixed_3c": ("feature_extractor[:Mixed_3c]", 0.80, 0.210),
    "through-Mixed_4c": ("feature_extractor[:Mixed_4c]", 0.74, 0.170),
    "tower": ("box_classifier/tower", 0.83, 0.260),
}
TRUTH = labels(1, images=60)


def run_of(variant, seed, truth=TRUTH):
    _, chance, step_seconds = VARIANTS[variant]
    found = detections(truth, [list(VARIANTS).index(variant) if seed else 0, seed], chance, false_per_image=1)
    scores = score(truth, found)
    steps = np.arange(10, 201, 10)
    metrics = [
        {"step": int(step), "loss": float(2 / (1 + chance * step / 20) + 0.05 * seed)} for step in steps
    ]
    metrics += [
        {"step": int(step), "evaluation/AP": (scores.AP or 0) * (1 - 2 ** (-step / 40))}
        for step in steps[4::5]
    ]
    return RunRecord(
        seed=seed,
        numbers=scores.numbers(),
        classes=scores.AP_per_class,
        detections=found,
        trained_parameters=round(1e6 * step_seconds / 0.3),
        parameters=1_000_000,
        step_seconds=step_seconds,
        seconds=200 * step_seconds + 15,
        peak_memory_bytes=int(1.2 * 2**30),
        metrics=metrics,
    )


def result_of(names, seeds=(0, 1)):
    variants = [Variant(name=name, freeze=(VARIANTS[name][0],)) for name in names]
    return compare(variants, {v.name: [run_of(v.name, seed) for seed in seeds] for v in variants}, TRUTH, 200)


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


def test_the_front_is_what_nothing_beats(result):
    front = [variant.name for variant in pareto_front(result.variants)]
    by_name = {variant.name: variant for variant in result.variants}
    assert front[0] == "feature_extractor+rpn"  # the cheapest always is
    for name, variant in by_name.items():
        beaten = any(
            other.step_seconds <= variant.step_seconds and other.ap > variant.ap for other in by_name.values()
        )
        assert (name in front) == (not beaten)


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

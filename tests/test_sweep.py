"""The figures of a sweep, from hand-made runs: no training."""

import csv
import json

import numpy as np
import pytest
from test_paired_interval import detections, labels

from detector.coco_metrics import score
from detector.sweep import compare, to_dict, write_csv
from detector.sweep_config import Variant
from detector.sweep_runs import RunRecord

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


def test_compared_are_the_seeds_that_both_finished():
    variants = [
        Variant(name="none"),
        Variant(name="rpn", freeze=("rpn",)),
        Variant(name="tower", freeze=("x",)),
    ]
    runs = {"none": [run_of("none", 0), run_of("none", 1)], "rpn": [run_of("rpn", 1), run_of("rpn", 2)]}
    none, rpn = compare(variants, runs, TRUTH, 100).variants
    assert none.difference is None and none.seeds == (0, 1) and rpn.seeds == (1, 2)
    assert rpn.difference.by_seed == pytest.approx(
        (runs["rpn"][0].numbers["AP"] - runs["none"][1].numbers["AP"],)
    )
    assert rpn.ap == pytest.approx(np.mean([run.numbers["AP"] for run in runs["rpn"]]))
    by_class = [interval.difference for interval in rpn.class_differences.values()]
    assert rpn.difference.difference == pytest.approx(np.mean(by_class))
    assert rpn.curves["loss"][0][0] == 10 and len(rpn.curves["AP"]) == 4


def test_a_variant_that_detects_the_same_differs_by_exactly_zero():
    same = run_of("none", 0)
    variants = [Variant(name="none"), Variant(name="copy", freeze=("rpn",))]
    _, copy = compare(variants, {"none": [same], "copy": [same]}, TRUTH, 100).variants
    assert (copy.difference.difference, copy.difference.low, copy.difference.high) == (0, 0, 0)


def test_the_files_of_a_sweep(tmp_path):
    result = result_of(VARIANTS)
    values = json.loads(json.dumps(to_dict(result, "do this", ["rpn, seed 2"]), allow_nan=False))
    assert values["advice"] == "do this" and values["failed"] == ["rpn, seed 2"]
    assert values["variants"][1]["difference"].keys() == {"difference", "low", "high", "by_seed"}
    write_csv(tmp_path / "sweep.csv", result)
    rows = list(csv.DictReader((tmp_path / "sweep.csv").open()))
    assert [row["variant"] for row in rows] == list(VARIANTS)
    assert (
        float(rows[1]["difference_low"]) == result.variants[1].difference.low and rows[0]["difference"] == ""
    )
    assert float(rows[1]["AP cat"]) == result.variants[1].classes["cat"]

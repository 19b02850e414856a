import csv
import io
import json

import numpy as np
import pytest
from rich.console import Console
from test_sweep_report import TRUTH, VARIANTS, result_of, run_of

from detector.config import ConfigError
from detector.paired_interval import Interval
from detector.sweep import (
    RunRecord,
    SweepResult,
    Variant,
    VariantResult,
    add_cost,
    compare,
    disagreements,
    parse_variant,
    read_run,
    read_sweep,
    run_state,
    to_dict,
    with_reference,
    write_csv,
)
from detector.sweep_advice import advise
from detector.sweep_table import sweep_table


def variant(name, interval=None, step_seconds=0.3, ap=0.5):
    """A variant's result by hand; `interval` is (difference, low, high), perhaps with differences by seed."""
    difference = (
        Interval(*interval[:3], interval[3] if len(interval) > 3 else interval[:1]) if interval else None
    )
    return VariantResult(
        **{
            "name": name,
            "freeze": (name,),
            "train_only": (),
            "seeds": (0,),
            "numbers": {"AP": ap},
            "classes": {},
        },
        **{"ap_by_seed": (ap,), "trained_parameters": 5, "parameters": 10, "step_seconds": step_seconds},
        **{"seconds": 100.0, "peak_memory_bytes": 2**30, "difference": difference, "class_differences": {}},
        curves={"loss": [], "AP": []},
    )


def advice(*variants):
    return advise(SweepResult((variant("none"), *variants), 100, {}))


def test_advice_when_all_intervals_include_zero_is_the_cheapest_and_says_what_is_not_known():
    said = advice(variant("a", (-0.02, -0.06, 0.02), 0.2), variant("b", (0.03, -0.01, 0.07), 0.25))
    assert said.startswith("Train with --freeze a: it is not shown to change AP (-0.020 [-0.060, +0.020]")
    assert "may cost up to 0.060" in said and "33% less time" in said
    assert "no freeze differs from full fine-tuning by more than these images can tell" in said
    assert "better" not in said and "worse" not in said


def test_advice_when_one_is_clearly_better():
    said = advice(variant("a", (-0.02, -0.06, 0.02), 0.1), variant("b", (0.05, 0.01, 0.09), 0.25))
    assert said == (
        "Train with --freeze b: its AP is 0.050 [0.010, 0.090] above that of full fine-tuning, "
        "and a step takes 17% less time."
    )
    said = advice(variant("a", (0.04, 0.02, 0.06)), variant("b", (0.05, 0.01, 0.09)))
    assert "--freeze b" in said and "the highest of the 2 freezes shown to be better" in said
    assert "less time" not in said


def test_a_better_variant_that_a_seed_contradicts_is_not_called_better():
    said = advice(variant("a", (0.05, 0.01, 0.09, (0.15, -0.05)), 0.2))
    assert said.startswith("Train with --freeze a: it is not shown to lower AP") and "above" not in said


def test_advice_takes_the_cheapest_of_those_not_shown_worse():
    worse = variant("cheap but worse", (-0.1, -0.15, -0.05), 0.1)
    said = advice(worse, variant("a", (0.0, -0.02, 0.02), 0.25), variant("b", (-0.01, -0.03, 0.01), 0.2))
    assert said.startswith("Train with --freeze b:") and "can tell" not in said
    # A seed that disagrees is no reason to trust what the interval shows to be worse.
    doubtful = variant("c", (-0.1, -0.15, -0.05, (-0.25, 0.05)), 0.1)
    assert "--freeze a" in advice(doubtful, variant("a", (0.0, -0.02, 0.02), 0.25))


def test_advice_to_train_everything():
    worse = variant("a", (-0.1, -0.15, -0.05), 0.1)
    assert advice(worse) == "Train everything: the one freeze tried was shown to lower AP."
    assert "each of the 2 freezes" in advice(worse, worse)
    equal = variant("b", (0.0, -0.02, 0.02), 0.295)  # 2 % faster: within what timing varies by
    assert "none that may keep it makes a step at least 5% shorter" in advice(worse, equal)
    assert "Train everything" in advice(variant("b", (0.0, -0.02, 0.02), None))
    assert "nothing to compare it with" in advice()
    assert "No run of full fine-tuning" in advise(SweepResult((variant("a"),), 100, {}))


def test_variants_from_a_file_and_from_the_command_line(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "config: base.yaml\nset: [train.steps=5]\nvariants:\n"
        "  - {name: early, freeze: 'feature_extractor[:Mixed_3c], rpn'}\n"
        "  - {name: predictor, train_only: [box_classifier/predictor]}\n"
    )
    sweep = read_sweep(path)
    assert sweep.config == tmp_path / "base.yaml" and sweep.set == ("train.steps=5",)
    early, predictor = sweep.variants
    assert early.options == ["--freeze", "feature_extractor[:Mixed_3c]", "--freeze", "rpn"]
    assert predictor.options == ["--train-only", "box_classifier/predictor"]
    assert parse_variant("bn=re:Batch.*,x=1").freeze == ("re:Batch.*,x=1",)
    variants = with_reference([early, predictor])
    assert [v.name for v in variants] == ["none", "early", "predictor"]
    assert variants[0].options == ["--freeze", "none"]
    assert [v.name for v in with_reference([early, Variant(name="none")])] == ["none", "early"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: parse_variant("rpn"), "takes name=selectors"),
        (lambda: parse_variant("../x=rpn"), "--variant ../x=rpn"),
        (lambda: with_reference([Variant(name="a"), Variant(name="a")]), "two variants are called 'a'"),
        (lambda: with_reference([parse_variant("none=rpn")]), "'none' is full fine-tuning"),
    ],
)
def test_mistakes_in_variants(make, message):
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        make()


def test_a_mistake_in_the_file_names_the_key(tmp_path):
    (tmp_path / "sweep.yaml").write_text("variants: [{name: a, freze: rpn}]")
    with pytest.raises(ConfigError, match=r"sweep.yaml: variants.0.freze: "):
        read_sweep(tmp_path / "sweep.yaml")


def test_what_is_left_to_do_for_a_run(tmp_path):
    config = "train:\n  steps: 5\n  seed: 0\n"
    run = tmp_path / "run"
    assert run_state(run, config) == "new"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text(config)
    assert run_state(run, config) == "new"  # no checkpoint to go on from
    (run / "checkpoints" / "step-000002").mkdir()
    (run / "checkpoints" / "last").symlink_to("step-000002")
    assert run_state(run, config) == "cut off"
    (run / "evaluation.json").write_text("{}")
    assert run_state(run, config) == "cut off"
    (run / "freeze_proof.json").write_text("{}")
    assert run_state(run, config) == "finished"
    with pytest.raises(ValueError, match=r"another configuration \(train.steps 5 -> 6\)"):
        run_state(run, config.replace("5", "6"))


def test_a_run_is_read_back(tmp_path):
    scores = {name: 0.5 for name in run_of("rpn", 0).numbers}
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0, "images_per_second": 4.0}]
    rows += [{"step": 3, "images_per_second": 8.0}, {"step": 4, "images_per_second": 80.0}]

    def stage(*fates):
        names = ("a", "b", "c")
        rows = [
            {"path": p, "shape": [2, i + 1], "fate": f}
            for i, (p, f) in enumerate(zip(names, fates, strict=True))
        ]
        return {"from_step": 0, "plan": {"variables": rows}}

    files = {
        "evaluation.json": json.dumps({**scores, "classes": {"cat": {"AP": 0.4, "AP50": 0.6}}}),
        "plan.json": json.dumps(
            {"stages": [stage("trained", "frozen", "updated"), stage("trained", "trained", "frozen")]}
        ),
        "detections.json": "[]",
        "config.yaml": "train: {seed: 3, batch_size: 8}",
        "metrics.jsonl": "".join(json.dumps(row) + "\n" for row in rows),
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert read_run(tmp_path).seconds is None
    add_cost(tmp_path, 10.0, 500)
    add_cost(tmp_path, 5.0, 300)  # resumed
    run = read_run(tmp_path)
    assert (run.seed, run.classes, run.step_seconds) == (3, {"cat": 0.4}, 1.0)
    assert (run.trained_parameters, run.parameters) == (2 + 4, 2 + 4 + 6)
    assert (run.seconds, run.peak_memory_bytes) == (15.0, 500)


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
    assert disagreements(compare(variants, {"none": [same], "copy": [same]}, TRUTH, 10), 4) == []


def test_the_images_on_which_they_disagree_most():
    blind = RunRecord(**{**vars(run_of("none", 0)), "detections": []})
    perfect = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.9}
        for a in TRUTH["annotations"]
        if a["image_id"] == 7
    ]
    sharp = RunRecord(**{**vars(blind), "detections": perfect})
    variants = [Variant(name="none"), Variant(name="rpn", freeze=("rpn",))]
    result = compare(variants, {"none": [blind], "rpn": [sharp]}, TRUTH, 10)
    assert disagreements(result, 4) == [(7, "rpn", "none")]


def test_the_files_and_the_table_of_a_sweep(tmp_path):
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

    console = Console(width=100, record=True, file=io.StringIO())
    console.print(sweep_table(result))
    lines = console.export_text().splitlines()
    assert len(lines) == 2 + len(VARIANTS) + 1 and "…" not in "".join(lines)
    assert any(line.startswith("feature_extractor ") and "▼" in line for line in lines)

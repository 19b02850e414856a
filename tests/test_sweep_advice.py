from dataclasses import replace

from detector.paired_interval import Interval
from detector.sweep import SweepResult, VariantResult
from detector.sweep_advice import advise


def variant(name, interval=None, step_seconds=0.3, ap=0.5):
    """A variant's result by hand; `interval` is (difference, low, high), perhaps with differences by seed."""
    difference = (
        Interval(*interval[:3], interval[3] if len(interval) > 3 else interval[:1]) if interval else None
    )
    return VariantResult(
        **{
            "name": name,
            "options": ("--freeze", name),
            "seeds": (0, 1),
            "numbers": {"AP": ap, "AP50": ap},
            "classes": {},
        },
        **{"ap_by_seed": (ap, ap), "trained_parameters": 5, "parameters": 10, "step_seconds": step_seconds},
        **{"seconds": 100.0, "peak_memory_bytes": 2**30, "difference": difference, "class_differences": {}},
        curves={"loss": [], "AP": []},
    )


def advice(*variants):
    return advise(SweepResult((variant("none"), *variants), 100, {}))


def test_advice_when_all_intervals_include_zero_is_the_cheapest_and_says_what_is_not_known():
    said = advice(variant("a", (-0.02, -0.06, 0.02), 0.2), variant("b", (0.03, -0.01, 0.07), 0.25))
    assert said.startswith("Train with --freeze a: it is not shown to change AP (-0.020 [-0.060, +0.020]")
    assert "may cost up to 0.060" in said and "33% less time" in said
    assert "no variant differs from full fine-tuning by more than these images can tell" in said
    assert "better" not in said and "worse" not in said


def test_advice_when_one_is_clearly_better():
    said = advice(variant("a", (-0.02, -0.06, 0.02), 0.1), variant("b", (0.05, 0.01, 0.09), 0.25))
    assert said == (
        "Train with --freeze b: its AP is 0.050 [0.010, 0.090] above that of full fine-tuning, "
        "and a step takes 17% less time."
    )
    said = advice(variant("a", (0.04, 0.02, 0.06)), variant("b", (0.05, 0.01, 0.09)))
    assert "--freeze b" in said and "the highest of the 2 variants shown to be better" in said
    assert "less time" not in said


def test_advice_from_one_seed_says_so():
    for interval in ((0.05, 0.01, 0.09), (-0.02, -0.06, 0.02)):
        said = advice(replace(variant("a", interval, 0.2), seeds=(0,)))
        assert said.endswith(". One seed was trained; another may rank the variants otherwise.")


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
    assert advice(worse) == "Train everything: the one variant tried was shown to lower AP."
    assert "each of the 2 variants" in advice(worse, worse)
    equal = variant("b", (0.0, -0.02, 0.02), 0.295)  # 2 % faster: within what timing varies by
    assert "none that may keep it makes a step at least 5% shorter" in advice(worse, equal)
    assert "Train everything" in advice(variant("b", (0.0, -0.02, 0.02), None))
    assert "nothing to compare it with" in advice()
    assert "No run of full fine-tuning" in advise(SweepResult((variant("a"),), 100, {}))


def test_advice_to_use_a_schedule():
    schedule = replace(
        variant("later", (0.05, 0.01, 0.09), 0.25),
        options=("--freeze", "rpn", "--set", "freeze_schedule=[{from_epoch: 1, freeze: []}]"),
        boundaries=(50,),
    )
    assert advice(schedule) == (
        "Train with --freeze rpn --set 'freeze_schedule=[{from_epoch: 1, freeze: []}]': its AP is "
        "0.050 [0.010, 0.090] above that of full fine-tuning, and a step takes 17% less time on average."
    )

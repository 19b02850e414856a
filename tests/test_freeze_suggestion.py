"""The rule that makes a freeze of a diagnosis, on numbers made up for it."""

from dataclasses import replace

import numpy as np
import pytest

from detector.diagnose import Diagnosis, StageDiagnosis
from detector.freeze_suggestion import suggest

# The median of the gradients is 1.0, of the shifts (mean + variance / 2) 0.5.
STAGES = (
    StageDiagnosis("feature_extractor/conv1", 10, False, 3.0, 0.6, 0.4),
    StageDiagnosis("feature_extractor/conv2", 10, False, 0.8, 0.3, 0.32),
    StageDiagnosis("feature_extractor/conv3", 10, False, 0.5, 0.1, 0.1),
    StageDiagnosis("feature_extractor/conv4", 10, False, 1.5, 0.1, 0.2),
    StageDiagnosis("rpn", 10, False, 0.1, None, None),
    StageDiagnosis("box_classifier/tower/a", 10, False, 1.0, 0.4, 0.2),
    StageDiagnosis("box_classifier/tower/b", 10, False, 0.2, 0.5, 0.4),
    StageDiagnosis("box_classifier/tower/c", 10, False, 1.2, 0.5, 0.8),
    StageDiagnosis("box_classifier/predictor", 10, False, 2.0, None, None),
)
LOSSES = {"rpn_box": 1.0, "rpn_objectness": 1.0, "box": 1.0, "class": 1.0}
EXAMPLE = Diagnosis(8, 4, 20, STAGES, LOSSES, {0.5: 0.95, 0.75: 0.4})


def with_stage(path, **changes):
    stages = tuple(replace(s, **changes) if s.path == path else s for s in EXAMPLE.stages)
    return replace(EXAMPLE, stages=stages)


def test_a_stage_is_frozen_if_gradient_and_shift_are_both_below_the_median():
    suggestion = suggest(EXAMPLE)
    assert suggestion.freeze == ("feature_extractor/conv3", "rpn")
    assert suggestion.reasons == (
        "train feature_extractor/conv1: gradient 3.00 and shift 1.60 of the median",
        "train feature_extractor/conv2: gradient 0.80 and shift 0.92 of the median: close to it",
        "freeze feature_extractor/conv3: gradient 0.50 and shift 0.30 of the median",
        "train feature_extractor/conv4: gradient 1.50 of the median",
        "freeze rpn: gradient 0.10 of the median",
        "train box_classifier/tower/a: gradient 1.00 and shift 1.00 of the median",
        "train box_classifier/tower/b: shift 1.40 of the median",
        "train box_classifier/tower/c: gradient 1.20 and shift 1.80 of the median",
        "train box_classifier/predictor: gradient 2.00 of the median",
    )
    assert suggest(EXAMPLE) == suggestion


@pytest.mark.parametrize(
    ("recall", "reason"),
    [(0.89, "its proposals find 89% of the objects, less than 90%"), (None, "there are no objects")],
)
def test_an_rpn_that_misses_objects_trains(recall, reason):
    suggestion = suggest(replace(EXAMPLE, recall={0.5: recall, 0.75: None}))
    assert suggestion.freeze == ("feature_extractor/conv3",)
    assert any(line.startswith(f"train rpn: {reason}") for line in suggestion.reasons)


def test_a_fresh_stage_trains_however_still_it_is():
    still = with_stage("box_classifier/predictor", relative_gradient=0.01)
    assert "box_classifier/predictor" in suggest(still).freeze
    fresh = with_stage("box_classifier/predictor", relative_gradient=0.01, fresh=True)
    assert "box_classifier/predictor" not in suggest(fresh).freeze
    assert any("predictor: has values that come from an init" in line for line in suggest(fresh).reasons)


def test_whole_parts_get_one_selector():
    still = {"relative_gradient": 0.1, "mean_shift": 0.1, "variance_shift": 0.0}
    stages = [replace(s, **still) if "tower" in s.path else s for s in EXAMPLE.stages]
    assert suggest(replace(EXAMPLE, stages=tuple(stages))).freeze == ("rpn", "box_classifier/tower")


@pytest.mark.parametrize("gradient", [0.0, 1.0])
def test_nothing_is_frozen_where_no_stage_stands_out_and_never_everything(gradient):
    alike = tuple(replace(s, relative_gradient=gradient) for s in EXAMPLE.stages)
    assert suggest(replace(EXAMPLE, stages=alike)).freeze == ("none",)
    rng = np.random.default_rng(0)
    for _ in range(50):
        stages = tuple(replace(s, relative_gradient=rng.random() ** 4) for s in EXAMPLE.stages)
        suggestion = suggest(replace(EXAMPLE, stages=stages))
        assert any(reason.startswith("train ") for reason in suggestion.reasons)


def test_from_scratch_nothing_is_frozen():
    stages = tuple(replace(s, fresh=True) for s in EXAMPLE.stages)
    suggestion = suggest(replace(EXAMPLE, stages=stages))
    assert suggestion.freeze == ("none",) and "no part came whole" in suggestion.reasons[0]

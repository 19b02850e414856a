"""Freezes that have a name, on the rows of a model."""

import itertools

import pytest
from test_freeze_schedule import PREDICTOR, resolved, selected, trained_parts

from detector.freeze import rows_of
from detector.freeze_config import FreezeConfig
from detector.freeze_presets import gradual, layers_preset, linear_probe
from detector.selectors import FreezeError, VariableRow


@pytest.fixture(scope="module")
def rows(models):
    model = models.lend()
    rows = rows_of(model.components, restored=model.variables_by_path)
    models.take_back()
    return rows


def test_gradual_unfreezing_only_ever_adds(rows):
    first, later = gradual(rows, 100)
    schedule = resolved(rows, first, later)
    trained = [set(stage.plan.trained) for stage in schedule.stages]
    assert all(small < large for small, large in itertools.pairwise(trained)) and len(trained) == 5
    assert {path.split("/")[0] for path in trained[0]} == {"rpn", "box_classifier"}
    assert trained[-1] == {row.path for row in rows if not row.statistic}


def test_linear_probe_then_everything_at_a_tenth(rows):
    schedule = resolved(rows, *linear_probe(rows, 90), steps=90)
    assert [stage.from_step for stage in schedule.stages] == [0, 30]
    assert all(path.startswith(PREDICTOR) for path in schedule.stages[0].plan.trained)
    assert not [path for path in schedule.stages[1].plan.frozen if "moving_" not in path]
    assert schedule.stages[1].lr_factor == 0.1


PRESETS = {"gradual": gradual, "linear_probe": linear_probe}
STEM = "feature_extractor/Conv2d_1a_7x7"


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    ("own", "frozen"),
    [
        (FreezeConfig(freeze=(STEM,)), [STEM]),
        (FreezeConfig(freeze=("feature_extractor", "rpn/conv")), ["feature_extractor", "rpn/conv"]),
        (FreezeConfig(train_only=("box_classifier",)), ["feature_extractor", "rpn"]),
        (FreezeConfig(freeze=("none",)), []),
    ],
    ids=["stem", "several", "train_only", "none"],
)
def test_what_the_user_froze_stays_frozen_in_every_stage_of_a_preset(rows, preset, own, frozen):
    schedule = resolved(rows, *PRESETS[preset](rows, 90, own), steps=90)
    kept = selected(rows, *frozen)
    trained = [set(stage.plan.trained) for stage in schedule.stages]
    assert all(not kept & each for each in trained)
    assert all(small < large for small, large in itertools.pairwise(trained))
    assert trained[-1] == {row.path for row in rows if not row.statistic} - kept


def test_what_the_user_unfroze_trains_in_every_stage_of_a_preset(rows):
    own = FreezeConfig(freeze=("feature_extractor",), unfreeze=(STEM,))
    schedule = resolved(rows, *linear_probe(rows, 90, own), steps=90)
    stem = {path for path in selected(rows, STEM) if "moving_" not in path}
    predictor = selected(rows, PREDICTOR)
    assert set(schedule.stages[0].plan.trained) == stem | predictor
    assert set(schedule.stages[1].plan.trained) == {
        path for path in selected(rows, STEM, "rpn", "box_classifier") if "moving_" not in path
    }


def test_stages_of_a_preset_that_add_nothing_fall_away_and_the_others_share_the_run(rows):
    schedule = resolved(rows, *gradual(rows, 90, FreezeConfig(freeze=("feature_extractor",))), steps=90)
    assert [stage.from_step for stage in schedule.stages] == [0, 45]
    # A first stage that trains nothing falls away, too.
    own = FreezeConfig(freeze=("rpn", PREDICTOR))
    schedule = resolved(rows, *gradual(rows, 90, own), steps=90)
    assert [stage.from_step for stage in schedule.stages] == [0, 22, 45, 67]
    assert trained_parts(schedule.stages[0]) == {"box_classifier"}


@pytest.mark.parametrize(
    ("preset", "own"),
    [
        ("gradual", FreezeConfig(train_only=("rpn",))),
        ("linear_probe", FreezeConfig(train_only=(PREDICTOR,))),
        ("linear_probe", FreezeConfig(freeze=(PREDICTOR,))),
    ],
)
def test_a_preset_that_one_stage_is_left_of_is_refused(rows, preset, own):
    selector = (own.freeze or own.train_only)[0]
    with pytest.raises(FreezeError, match=f"{preset} has one freeze stage left.*{selector}"):
        PRESETS[preset](rows, 90, own)


@pytest.mark.parametrize(("preset", "needed"), [("gradual", 5), ("linear_probe", 2)])
def test_a_preset_says_how_many_steps_it_needs(rows, preset, needed):
    resolved(rows, *PRESETS[preset](rows, needed), steps=needed)
    with pytest.raises(
        FreezeError, match=f"{preset} has {needed} freeze stages.*train.steps is {needed - 1}"
    ):
        PRESETS[preset](rows, needed - 1)


@pytest.mark.parametrize(
    ("name", "first_trained"),
    [("heads", None), ("4+", "Mixed_4a"), ("3+", "Mixed_3b"), ("all", "Conv2d_1a_7x7")],
)
def test_layers_presets(rows, name, first_trained):
    (stage,) = resolved(rows, FreezeConfig(freeze=layers_preset(name, rows)), []).stages
    trained = [path.split("/")[1] for path in stage.plan.trained if path.startswith("feature_extractor/")]
    assert next(iter(trained), None) == first_trained
    assert {"rpn", "box_classifier"} <= trained_parts(stage)


@pytest.mark.parametrize(
    ("stages", "name", "selector"),
    [
        (("conv1", "conv2", "conv3", "conv4"), "4+", "feature_extractor[:conv3]"),
        (("conv1", "conv2", "conv3", "conv4"), "3+", "feature_extractor[:conv2]"),
        (("Conv2d_4a_3x3", "Mixed_5b", "Mixed_5d", "Mixed_6a"), "3+", "feature_extractor[:Conv2d_4a_3x3]"),
        (("Conv2d_4a_3x3", "Mixed_5b", "Mixed_5d", "Mixed_6a"), "4+", "feature_extractor[:Mixed_5d]"),
    ],
)
def test_layers_presets_of_other_networks(stages, name, selector):
    rows = [VariableRow(f"feature_extractor/{stage}/kernel", (1,), True) for stage in stages]
    assert layers_preset(name, rows) == (selector,)


def test_layers_presets_ask_for_stages_where_they_do_not_know_the_network():
    rows = [VariableRow(f"feature_extractor/{stage}/kernel", (1,), True) for stage in ("stem", "body")]
    with pytest.raises(FreezeError, match=r"freeze by stage instead, like 'feature_extractor\[:stem\]'"):
        layers_preset("3+", rows)

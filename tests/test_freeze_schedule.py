"""Freeze schedules: resolved on rows, and followed by training to the bit."""

import itertools
import json

import pytest
from conftest import values_of
from test_run_log import board

from detector import checkpoint
from detector.config import ConfigError, override
from detector.freeze import rows_of
from detector.freeze_config import FreezeConfig, FreezeStageConfig
from detector.freeze_schedule import FreezeSchedule, idle_lr_factors, lr_factors_of, resolve_schedule
from detector.run_log import RunLog
from detector.selectors import FreezeError, select
from detector.train import fit

PREDICTOR = "box_classifier/predictor"


@pytest.fixture(scope="module")
def rows(models):
    model = models.lend()
    rows = rows_of(model.components, restored=model.variables_by_path)
    models.take_back()
    return rows


def resolved(rows, first, later, steps=100, **keywords):
    return resolve_schedule(rows, first, later, **{"batch_norm": "fixed", "steps": steps, **keywords})


def trained_parts(stage):
    return {name for name, part in stage.plan.by_component().items() if part.trained_variables}


def test_stages_start_at_steps_or_epochs_and_unfreezing_adds_up(rows):
    schedule = resolved(
        rows,
        FreezeConfig(freeze=("feature_extractor", "box_classifier")),
        [
            FreezeStageConfig(from_step=10, unfreeze=("box_classifier",)),
            FreezeStageConfig(from_epoch=2.5, unfreeze=("feature_extractor[Mixed_4d:]",), lr_factor=0.1),
            FreezeStageConfig(from_step=60, freeze=("rpn",), warmup_steps=10),
        ],
        steps_per_epoch=20,
    )
    assert [stage.from_step for stage in schedule.stages] == [0, 10, 50, 60]
    assert [trained_parts(stage) for stage in schedule.stages] == [
        {"rpn"},
        {"rpn", "box_classifier"},
        {"feature_extractor", "rpn", "box_classifier"},
        {"feature_extractor", "box_classifier"},
    ]
    assert [schedule.index_at(step) for step in (0, 9, 10, 49, 50, 59, 60, 99)] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert schedule.stages[2].rate_factor(50) == pytest.approx(0.1)
    assert [schedule.stages[3].rate_factor(step) for step in (60, 65, 70, 90)] == [0.0, 0.5, 1.0, 1.0]
    assert schedule.trained["rpn/conv/kernel"] == (0, 1, 2)
    assert schedule.trained["feature_extractor/Mixed_3b/Branch_0/Conv2d_0a_1x1/kernel"] == (3,)
    assert FreezeSchedule.from_dict(json.loads(json.dumps(schedule.to_dict()))) == schedule


@pytest.mark.parametrize("start", [5, 3, 100])
def test_stages_out_of_order_or_past_the_end_are_refused(rows, start):
    later = [FreezeStageConfig(from_step=5), FreezeStageConfig(from_step=start)]
    with pytest.raises(FreezeError, match=f"starts at step {start}, but must start after step 5"):
        resolved(rows, FreezeConfig(), later)


def test_an_epoch_needs_its_length(rows):
    with pytest.raises(FreezeError, match="from_epoch needs to know"):
        resolved(rows, FreezeConfig(), [FreezeStageConfig(from_epoch=1)])


def test_a_stage_starts_once():
    with pytest.raises(ConfigError, match="give one of them"):
        override({}, ["freeze_schedule=[{from_step: 1, from_epoch: 1}]"], "test")


def test_what_an_earlier_stage_trained_may_be_frozen(tiny_model):
    model = tiny_model()
    fresh_predictor = [path for path in model.variables_by_path if not path.startswith(PREDICTOR)]
    rows = rows_of(model.components, restored=fresh_predictor)
    later = [FreezeStageConfig(from_step=5, freeze=("box_classifier",))]
    resolved(rows, FreezeConfig(freeze=("rpn",)), later)
    with pytest.raises(FreezeError, match="fresh"):
        resolved(rows, FreezeConfig(freeze=("box_classifier",)), [])


def selected(rows, *selectors):
    return set().union(*(select(selector, rows) for selector in selectors))


def test_factors_go_with_what_a_stage_trains(rows):
    schedule = resolved(
        rows,
        FreezeConfig(freeze=("feature_extractor", "rpn")),
        [FreezeStageConfig(from_step=5, unfreeze=("rpn",))],
    )
    factors = lr_factors_of({"rpn": 0.5, "rpn/conv": 2.0}, schedule)
    assert factors["rpn/conv/kernel"] == 2.0 and set(factors) == selected(rows, "rpn")
    assert idle_lr_factors({"rpn": 0.5, "feature_extractor": 0.1, "re:moving_mean": 2.0}, schedule) == [
        "feature_extractor",
        "re:moving_mean",
    ]


def batches(make_batch, start=0):
    return (make_batch(step) for step in itertools.count(start))


def test_after_each_boundary_exactly_the_plans_variables_move(tiny_model, tiny_config, make_batch, tmp_path):
    """Narrowing, then widening, with AdamW and updated statistics; slots live on."""
    model, run = tiny_model(), RunLog(tmp_path)
    rows = rows_of(model.components, restored=model.variables_by_path)
    schedule = resolved(
        rows,
        FreezeConfig(freeze=("feature_extractor",)),
        [
            FreezeStageConfig(from_step=2, freeze=("feature_extractor", "rpn")),
            FreezeStageConfig(from_step=4, unfreeze=("feature_extractor", "rpn")),
        ],
        steps=6,
        batch_norm="update",
    )
    seen = []

    def watched():
        for step in itertools.count():
            if step % 2 == 0:
                seen.append(values_of(model.variables_by_path))
            yield make_batch(step)

    config = tiny_config(
        "train.steps=6", "train.optimizer.kind=adamw", "train.checkpoint_every=2", "train.keep_checkpoints=9"
    )
    fit(model, schedule, watched(), config, run=run)
    seen.append(values_of(model.variables_by_path))
    for stage, (before, after) in zip(schedule.stages, itertools.pairwise(seen), strict=True):
        changed = {path for path in before if before[path].tobytes() != after[path].tobytes()}
        assert changed == {*stage.plan.trained, *stage.plan.updated}

    slots = [
        {
            key: value
            for key, value in checkpoint.read_values(run.checkpoint_path(step)).items()
            if "moment/rpn" in key
        }
        for step in (2, 4, 6)
    ]
    assert slots[0] and all(slots[0][key].tobytes() == slots[1][key].tobytes() for key in slots[0])
    assert any(slots[1][key].tobytes() != slots[2][key].tobytes() for key in slots[0])
    proof = json.loads((tmp_path / "freeze_proof.json").read_text())
    assert proof["holds"] and [stage["step"] for stage in proof["stages"]] == [2, 4, 6]
    assert [stage["frozen_variables"] for stage in proof["stages"]] == [
        len(stage.plan.frozen) for stage in schedule.stages
    ]
    assert [row["freeze_stage"] for row in run.read_metrics()] == [0, 0, 1, 1, 2, 2]
    shown = board(tmp_path)
    assert shown["freeze_stage"] == {1: 0, 2: 0, 3: 1, 4: 1, 5: 2, 6: 2}
    assert shown["freeze_plan"] == {step: schedule.describe(index) for index, step in enumerate((0, 2, 4))}
    assert shown["freeze_plan"][2].startswith("from step 2, freeze stage 2: trains ")
    assert shown["freeze_plan"][2].endswith(" parameters in box_classifier")


@pytest.mark.usefixtures("eagerly")  # the tests above trace the steps of every stage
def test_a_run_cut_off_in_its_second_stage_and_resumed_ends_with_the_same_bits(
    tiny_model, tiny_config, make_batch, tmp_path
):
    config = tiny_config("train.steps=4", "train.optimizer.kind=adamw", "train.checkpoint_every=1")

    def schedule_of(model):
        rows = rows_of(model.components, restored=model.variables_by_path)
        later = [FreezeStageConfig(from_step=1, unfreeze=("rpn",), lr_factor=0.5, warmup_steps=2)]
        return resolved(rows, FreezeConfig(freeze=("feature_extractor", "rpn")), later, steps=4)

    whole, cut, resumed = tiny_model(), tiny_model(), tiny_model(seed=3)
    fit(whole, schedule_of(whole), batches(make_batch), config, run=RunLog(tmp_path / "whole"))
    run = RunLog(tmp_path / "cut")
    with pytest.raises(ValueError, match="batches ended before step 2"):
        fit(cut, schedule_of(cut), itertools.islice(batches(make_batch), 2), config, run=run)
    info = checkpoint.read_info(run.last)
    fit(resumed, schedule_of(resumed), batches(make_batch, info.step), config, run=run, resume_from=info)
    one, other = values_of(whole.variables_by_path), values_of(resumed.variables_by_path)
    assert [path for path in one if one[path].tobytes() != other[path].tobytes()] == []
    proofs = [json.loads((tmp_path / name / "freeze_proof.json").read_text()) for name in ("whole", "cut")]
    assert proofs[0] == proofs[1] and len(proofs[0]["stages"]) == 2

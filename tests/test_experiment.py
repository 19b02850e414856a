"""From a configuration to a freeze schedule, on the rows of a model."""

import pytest

from detector.experiment import schedule_of
from detector.freeze import rows_of
from detector.selectors import FreezeError


@pytest.fixture
def rows(tiny_model):
    model = tiny_model()
    return rows_of(model.components, restored=model.variables_by_path)


def trained_parts(stage):
    return {name for name, part in stage.plan.by_component().items() if part.trained_variables}


@pytest.mark.parametrize("preset", ["gradual", "linear_probe"])
def test_a_preset_keeps_frozen_what_the_configuration_freezes(rows, tiny_config, preset):
    texts = ["train.steps=90", f"freeze_schedule={preset}"]
    for own in ("freeze.freeze=[feature_extractor]", "freeze.layers=heads"):
        stages = schedule_of(tiny_config(*texts, own), rows, is_restored=True).stages
        assert trained_parts(stages[-1]) == {"rpn", "box_classifier"}
        assert len(stages) == 2


def test_layers_all_goes_with_other_selectors(rows, tiny_config):
    config = tiny_config("freeze={layers: all, freeze: [rpn]}")
    (stage,) = schedule_of(config, rows, is_restored=True).stages
    assert trained_parts(stage) == {"feature_extractor", "box_classifier"}


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [("full", "restore a checkpoint that has them"), ("detection", "set train.restore.type=full, which")],
)
def test_the_refusal_to_freeze_what_a_type_left_in_the_file_names_the_type(
    tiny_model, tiny_config, kind, remedy
):
    model = tiny_model()
    restored = [path for path in model.variables_by_path if not path.startswith("rpn/")]
    config = tiny_config("freeze.freeze=[rpn]", f"train.restore={{path: model.ckpt, type: {kind}}}")
    with pytest.raises(
        FreezeError, match=f"freeze 6 fresh variables.*; {remedy}.*, or set freeze.allow_fresh"
    ):
        schedule_of(config, rows_of(model.components, restored=restored), is_restored=True)


@pytest.mark.parametrize(
    ("images", "batch_size", "epoch", "step"),
    [(7, 2, 2, 7), (7, 4, 2, 4), (8, 4, 2.5, 5), (3, 4, 4, 3)],
)
def test_an_epoch_starts_at_the_nearest_step(rows, tiny_config, images, batch_size, epoch, step):
    """Batches reach over an epoch's end: two epochs of seven images are seven steps of two images."""
    config = tiny_config(
        f"train.batch_size={batch_size}",
        "train.steps=90",
        f"freeze_schedule=[{{from_epoch: {epoch}, freeze: [rpn]}}]",
    )
    stages = schedule_of(config, rows, is_restored=True, images=images).stages
    assert [stage.from_step for stage in stages] == [0, step]

import math

import pytest
from pipeline_texts import CONSTANT, MODEL, TRAIN, edited, harmless, learning_rate, refused, values_of

from detector.pipeline_config import parse_pipeline_config


def test_constant_learning_rate():
    assert learning_rate("constant_learning_rate {}")(5) == 0.002


def test_cosine_learning_rate():
    rate = learning_rate(
        "cosine_decay_learning_rate { learning_rate_base: .04 total_steps: 110 warmup_learning_rate: .01 "
        "warmup_steps: 10 }"
    )
    assert [rate(0), rate(5), rate(10), rate(60), rate(110), rate(500)] == pytest.approx(
        [0.01, 0.025, 0.04, 0.02, 0.0, 0.0]
    )
    without_hold = "cosine_decay_learning_rate { hold_base_rate_steps: 0 }"
    assert values_of(edited((CONSTANT, without_hold)))["train"]["learning_rate"] == {
        "schedule": "cosine",
        "base": 0.002,
        "warmup_steps": 10000,
        "warmup_start": 0.0002,
        "total_steps": 4000000,
    }


def test_manual_step_learning_rate():
    steps = "schedule { step: 10 learning_rate: .2 } schedule { step: 20 learning_rate: .03 }"
    rate = learning_rate(f"manual_step_learning_rate {{ initial_learning_rate: .1 {steps} }}")
    assert [rate(0), rate(9), rate(10), rate(19), rate(20), rate(899)] == [0.1, 0.1, 0.2, 0.2, 0.03, 0.03]
    # As manual_stepping does it: from the initial rate at step 0 in a line to the first of the schedule.
    rate = learning_rate(f"manual_step_learning_rate {{ initial_learning_rate: .1 {steps} warmup: true }}")
    assert [rate(0), rate(5), rate(10), rate(20)] == pytest.approx([0.1, 0.15, 0.2, 0.03])
    # Configurations of 2017 begin with step 0, which is also what an absent step is.
    from_zero = "manual_step_learning_rate { schedule { learning_rate: .3 } schedule { step: 7 } }"
    rate = learning_rate(from_zero)
    assert [rate(0), rate(6), rate(7)] == [0.3, 0.3, 0.002]
    # Their first rate is the base, so that setting another one is not in vain.
    assert values_of(edited((CONSTANT, from_zero)))["train"]["learning_rate"]["base"] == 0.3
    rate = learning_rate("manual_step_learning_rate { schedule { step: 7 learning_rate: .4 } }")
    assert [rate(6), rate(7)] == [0.002, 0.4]


def test_exponential_learning_rate():
    assert learning_rate("exponential_decay_learning_rate { initial_learning_rate: .1 }")(899) == 0.1

    def original(step, base, every, factor, burnin_rate, burnin, least):
        rate = base * factor ** math.floor((step - burnin) / every)
        return max(burnin_rate if step < burnin else rate, least)

    rate = learning_rate(
        "exponential_decay_learning_rate { initial_learning_rate: .1 decay_steps: 100 decay_factor: .5 "
        "burnin_learning_rate: .01 burnin_steps: 50 min_learning_rate: .02 }"
    )
    for step in (0, 49, 50, 149, 150, 249, 250, 251, 449, 899):
        assert rate(step) == pytest.approx(original(step, 0.1, 100, 0.5, 0.01, 50, 0.02)), step
    rate = learning_rate("exponential_decay_learning_rate { decay_steps: 300 }")
    for step in (0, 299, 300, 899):
        assert rate(step) == pytest.approx(original(step, 0.002, 300, 0.95, 0.002, 0, 0.0)), step
    rate = learning_rate(
        "exponential_decay_learning_rate { burnin_steps: 1 decay_steps: 1 decay_factor: .999 }"
    )
    for step in (0, 1, 2, 899):
        assert rate(step) == pytest.approx(original(step, 0.002, 1, 0.999, 0.002, 1, 0.0)), step


def test_optimizers():
    def optimizer(*changes):
        return values_of(edited(*changes))["train"]["optimizer"]

    given = "momentum_optimizer {"
    assert optimizer((given, given + "momentum_optimizer_value: 0.5")) == {"kind": "sgd", "momentum": 0.5}
    adam = {"kind": "adamw", "beta_1": 0.9, "beta_2": 0.999, "weight_decay": 0.0}
    assert optimizer((given, "adam_optimizer {")) == adam | {"epsilon": 1e-8}
    assert optimizer((given, "adam_optimizer { epsilon: 1e-3")) == adam | {"epsilon": 1e-3}


def test_moving_averages_are_refused_only_where_they_are_read():
    averages = ("use_moving_average: false", "moving_average_decay: 0.99")
    read = ("eval_config {}", "eval_config { use_moving_averages: true }")
    field = "train_config.optimizer.use_moving_average"
    assert set(harmless(edited(averages))) == {"train_config.optimizer.moving_average_decay"}
    given = ("use_moving_average: false", "use_moving_average: true")
    assert set(harmless(edited(given))) == {field}
    assert refused(edited(averages)) == refused(edited(given)) == {}
    assert set(refused(edited(averages, read))) == {field}
    assert refused(edited(read)) == {}
    assert refused(edited(averages, text=MODEL + TRAIN)) == {}


def test_no_regularization_loss():
    model = values_of(edited(("batch_size: 2", "add_regularization_loss: false")))["model"]
    assert model["rpn"]["l2"] == model["box_classifier"]["l2"] == 0
    model = values_of(edited(("batch_size: 2", "add_regularization_loss: true")))["model"]
    assert model["rpn"]["l2"] == 1e-4


def test_train_defaults_and_clipping():
    train = values_of(edited(("batch_size: 2", "gradient_clipping_by_norm: 0.5")))["train"]
    assert (train["batch_size"], train["clip_norm"]) == (32, 0.5)
    text = edited(("num_steps: 900;", ""))
    assert "steps" not in values_of(text)["train"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ("", "classification"),
        ("from_detection_checkpoint: true", "detection"),
        ("from_detection_checkpoint: true load_all_detection_checkpoint_vars: true", "full"),
        ("fine_tune_checkpoint_type: 'classification' from_detection_checkpoint: true", "classification"),
        ("fine_tune_checkpoint_type: 'detection'", "detection"),
        ("fine_tune_checkpoint_type: 'full'", "full"),
    ],
)
def test_restore(fields, expected):
    text = edited(("batch_size: 2", f"fine_tune_checkpoint: 'zoo/model.ckpt' {fields}"))
    assert values_of(text)["train"]["restore"] == {"path": "zoo/model.ckpt", "type": expected}
    without = edited(("batch_size: 2", fields))
    assert "restore" not in values_of(without)["train"]
    # What it leaves fresh, and what does not, is noted at the field that says so.
    notes = parse_pipeline_config(text).notes
    assert [note.key for note in notes] == (["train.restore.type"] if expected == "detection" else [])
    for note in notes:
        field, _, value = fields.replace("'", "").partition(": ")
        assert (note.field, note.value) == (f"train_config.{field}", value)
        assert note.consequence.startswith("RPN and predictor start fresh, as in the API; ")
        assert "--set train.restore.type=full restores them" in note.consequence
    assert parse_pipeline_config(without).notes == ()


def test_freezing():
    text = edited(
        (
            "batch_size: 2",
            "freeze_variables: 'FirstStage.*/Conv2d_1a' freeze_variables: 'Mixed_3.*' "
            "freeze_vars: ['BatchNorm'] update_trainable_variables: 'FirstStage'",
        )
    )
    assert values_of(text)["freeze"] == {
        "freeze": ["api:FirstStage.*/Conv2d_1a", "api:Mixed_3.*", "api:BatchNorm"],
        "train_only": ["api:FirstStage"],
    }
    notes = harmless(text)
    assert "freeze_variables" in notes["train_config.freeze_vars"]
    assert "model_main_tf2.py" in notes["train_config.freeze_variables"]
    assert "model_main_tf2.py" in notes["train_config.update_trainable_variables"]
    assert {note.key: note.field for note in parse_pipeline_config(text).notes if note.key} == {
        "freeze.freeze": "train_config.freeze_variables",
        "freeze.train_only": "train_config.update_trainable_variables",
    }


def test_evaluation_batch_size():
    assert values_of(edited(("eval_config {}", "eval_config { batch_size: 4 }")))["evaluate"] == {
        "batch_size": 4
    }

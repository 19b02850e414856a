"""The heart's test: what changed equals what the plan trains, no more and no less."""

import itertools
import json
import os
import re
import signal
from collections import Counter

import numpy as np
import pytest
import tensorflow as tf
from conftest import values_of

from detector import checkpoint
from detector.coco_metrics import CocoScores
from detector.freeze import resolve, rows_of
from detector.freeze_proof import FreezeProofError
from detector.optimizer import GroupedOptimizer
from detector.run_log import RunLog
from detector.train import Interrupted, NonFiniteLossError, fit
from detector.training_step import make_step

COMPONENTS = ("feature_extractor", "rpn", "box_classifier")
PROPER_SUBSETS = [subset for size in range(3) for subset in itertools.combinations(COMPONENTS, size)]


def plan_of(model, freeze=(), batch_norm="update", **keywords):
    """Resolve selectors as if every variable had been restored."""
    rows = rows_of(model.components, restored=model.variables_by_path)
    return resolve(rows, freeze, batch_norm=batch_norm, **keywords)


def cheap_plan_of(model):
    """Return a plan with little to differentiate, where it does not matter what trains."""
    return plan_of(model, ["all_but:box_classifier/predictor"])


def changed_paths(before, after):
    assert before.keys() == after.keys()
    return {path for path in before if before[path].tobytes() != after[path].tobytes()}


def batches(make_batch, start=0):
    return (make_batch(step) for step in itertools.count(start))


def scores_with(ap):
    numbers = {name: None for name in CocoScores.__dataclass_fields__}
    return CocoScores(**{**numbers, "AP": ap, "AP_per_class": {}, "AP50_per_class": {}})


def assert_changed(model, plan, before, expected_prefixes_frozen):
    changed = changed_paths(before, values_of(model.variables_by_path))
    expected = set(plan.trained) | set(plan.updated)
    assert not changed - expected, f"moved though frozen: {sorted(changed - expected)}"
    assert not expected - changed, f"stood still though trained: {sorted(expected - changed)}"
    for path in before:
        if path.split("/")[0] in expected_prefixes_frozen:
            assert path not in changed


@pytest.mark.usefixtures("eagerly")  # the test below traces its steps
@pytest.mark.parametrize("frozen", PROPER_SUBSETS, ids=lambda subset: "+".join(subset) or "none")
def test_exactly_the_plans_variables_move(frozen, tiny_model, tiny_config, make_batch):
    model = tiny_model()
    before = values_of(model.variables_by_path)
    plan = plan_of(model, list(frozen))
    result = fit(model, plan, batches(make_batch), tiny_config())
    assert result.step == 3
    assert_changed(model, plan, before, frozen)
    # Everything outside the frozen components moves, its BatchNorm statistics too.
    assert {path.split("/")[0] for path in (*plan.trained, *plan.updated)} == set(COMPONENTS) - set(frozen)
    assert result.proof.holds and set(result.proof.before) == set(plan.frozen)


@pytest.mark.parametrize(
    "selector",
    ["feature_extractor[:Mixed_4c]", "box_classifier/tower", "re:.*BatchNorm.*"],
)
def test_partial_freezes_move_exactly_their_rest(selector, tiny_model, tiny_config, make_batch, request):
    traced = selector == "feature_extractor[:Mixed_4c]"
    if not traced:
        request.getfixturevalue("eagerly")
    model = tiny_model()
    before = values_of(model.variables_by_path)
    plan = plan_of(model, [selector])
    fit(model, plan, batches(make_batch), tiny_config("train.steps=3" if traced else "train.steps=1"))
    assert_changed(model, plan, before, ())


@pytest.mark.usefixtures("eagerly")
def test_fixed_statistics_stand_still_while_scales_train(tiny_model, tiny_config, make_batch):
    model = tiny_model()
    before = values_of(model.variables_by_path)
    plan = plan_of(model, batch_norm="fixed")
    fit(model, plan, batches(make_batch), tiny_config("train.steps=1"))
    changed = changed_paths(before, values_of(model.variables_by_path))
    assert not [path for path in changed if "moving_" in path]
    assert {path for path in before if path.endswith("gamma")} <= changed


@pytest.mark.usefixtures("eagerly")
def test_weight_decay_and_l2_leave_frozen_variables_alone(tiny_model, tiny_config, make_batch):
    model = tiny_model()
    before = values_of(model.variables_by_path)
    plan = plan_of(model, ["feature_extractor", "rpn"])
    config = tiny_config(
        "train.steps=1",
        "train.optimizer.kind=adamw",
        "train.optimizer.weight_decay=0.5",
        "model.rpn.l2=1",
        "model.box_classifier.l2=1",
    )
    fit(model, plan, batches(make_batch), config)
    assert_changed(model, plan, before, ("feature_extractor", "rpn"))


@pytest.mark.parametrize(
    ("kind", "slots"), [("sgd", ["momentum"]), ("adamw", ["first_moment", "second_moment"])]
)
def test_slots_exist_for_exactly_what_trains(kind, slots, tiny_model, tiny_config):
    model = tiny_model()
    plan = plan_of(model, ["feature_extractor", "box_classifier/tower"])
    variables = model.variables_by_path
    trained = {path: variables[path] for path in plan.trained}
    created = []

    def note(create, **arguments):
        created.append(create(**arguments))
        return created[-1]

    with tf.variable_creator_scope(note):
        optimizer = GroupedOptimizer(tiny_config(f"train.optimizer.kind={kind}").train.optimizer, trained)
    state = optimizer.state
    assert state.keys() == {"iterations/0"} | {f"{slot}/{path}" for slot in slots for path in trained}
    assert len(created) == len(state), "something else hides in the optimizer"


def test_decay_leaves_biases_and_batch_norm_alone(tiny_config):
    trained = {f"a/{leaf}": tf.Variable([2.0]) for leaf in ("kernel", "bias", "gamma", "beta")}
    config = tiny_config("train.optimizer.kind=adamw", "train.optimizer.weight_decay=0.5").train.optimizer
    optimizer = GroupedOptimizer(config, trained)
    optimizer.apply({path: tf.zeros([1]) for path in trained}, 0.1)
    assert {path: float(variable[0]) for path, variable in trained.items()} == {
        "a/kernel": pytest.approx(2.0 * (1 - 0.5 * 0.1)),
        "a/bias": 2.0,
        "a/gamma": 2.0,
        "a/beta": 2.0,
    }


@pytest.mark.usefixtures("eagerly")
def test_the_clip_norm_counts_only_what_trains(tiny_model, tiny_config, make_batch):
    model = tiny_model()
    plan = plan_of(model, ["all_but:box_classifier/predictor"], batch_norm="fixed")
    trained = {path: variable for path, variable in model.variables_by_path.items() if plan.trains(path)}
    plan.apply(model.components)
    optimizer = GroupedOptimizer(tiny_config("train.optimizer.momentum=0").train.optimizer, trained)
    step = make_step(model, trained, optimizer, clip_norm=1e-3)
    before = values_of(trained)
    step(make_batch(0), tf.constant([0, 0]), tf.constant(1.0))
    moved = sum(np.square(trained[path].numpy() - before[path]).sum() for path in trained) ** 0.5
    assert moved == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.slow
def test_losses_fall(tiny_model, tiny_config, make_batch, tmp_path):
    model = tiny_model()
    run = RunLog(tmp_path)
    fit(
        model,
        plan_of(model),
        batches(make_batch),
        tiny_config("train.steps=40", "train.log_every=1"),
        run=run,
    )
    # The second stage's loss rises at first, as proposals begin to hit; the RPN's falls from the start.
    losses = [row["rpn_objectness"] + row["rpn_box"] for row in run.read_metrics()]
    assert len(losses) == 40
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])


@pytest.mark.usefixtures("eagerly")
def test_images_without_objects_train_without_nan(tiny_model, tiny_config, make_batch):
    def empty(step):
        batch = make_batch(step)
        return {
            **batch,
            "classes": tf.fill([2, 4], -1),
            "boxes_yxyx": tf.zeros([2, 4, 4]),
            "is_crowd": tf.zeros([2, 4], tf.bool),
        }

    model = tiny_model()
    fit(model, plan_of(model), [empty(0)], tiny_config("train.steps=1"))
    assert all(np.isfinite(value).all() for value in values_of(model.variables_by_path).values())


@pytest.mark.slow  # tests/test_train_tool.py kills a run and resumes it
def test_a_resumed_run_ends_with_the_same_bits(tiny_model, tiny_config, make_batch, tmp_path):
    config = tiny_config(
        "train.steps=5",
        "train.checkpoint_every=2",
        "train.optimizer.kind=adamw",
        "train.learning_rate.base=0.01",
    )
    whole = tiny_model()
    plan = plan_of(whole, ["rpn"])
    fit(whole, plan, batches(make_batch), config, run=RunLog(tmp_path / "whole"))

    cut = tiny_model()
    with pytest.raises(ValueError, match="batches ended before step 3"):
        fit(cut, plan, itertools.islice(batches(make_batch), 3), config, run=RunLog(tmp_path / "cut"))
    resumed = tiny_model(seed=5)  # other weights, all of which the checkpoint must replace
    run = RunLog(tmp_path / "cut")
    info = checkpoint.read_info(run.last)
    assert info.step == 2
    fit(resumed, plan, batches(make_batch, start=2), config, run=run, resume_from=info)

    assert not changed_paths(values_of(whole.variables_by_path), values_of(resumed.variables_by_path))
    assert [row["step"] for row in run.read_metrics()] == [1, 2, 3, 4, 5]
    assert [row["loss"] for row in run.read_metrics()] == [
        row["loss"] for row in RunLog(tmp_path / "whole").read_metrics()
    ]


@pytest.mark.usefixtures("eagerly")
def test_a_stop_request_saves_and_says_where(tiny_model, tiny_config, make_batch, tmp_path):
    def with_signal():
        for step in itertools.count():
            if step == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield make_batch(step)

    model, run = tiny_model(), RunLog(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="stopped at step 2 of 9"):
        fit(
            model,
            cheap_plan_of(model),
            with_signal(),
            tiny_config("train.steps=9", "train.checkpoint_every=100"),
            run=run,
        )
    assert checkpoint.read_info(run.last).step == 2
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.usefixtures("eagerly")
def test_a_loss_that_is_not_finite_stops_the_run_with_its_step_losses_and_images(
    tiny_model, tiny_config, make_batch, tmp_path
):
    def poisoned():
        yield from (make_batch(step) for step in range(2))
        batch = make_batch(2)
        yield {**batch, "image": tf.fill(batch["image"].shape, float("nan"))}

    model, run = tiny_model(), RunLog(tmp_path)
    # uint8 and float images are two traces of the same step.
    with pytest.raises(NonFiniteLossError, match=r"step 2: a loss is not finite \(rpn_box .*images \[4, 5\]"):
        fit(model, cheap_plan_of(model), poisoned(), tiny_config(), run=run)
    assert checkpoint.read_info(run.last).step == 2


@pytest.mark.usefixtures("eagerly")
def test_a_frozen_variable_that_moved_fails_the_run(tiny_model, tiny_config, make_batch, tmp_path):
    model, run = tiny_model(), RunLog(tmp_path)

    def meddling():
        yield make_batch(0)
        model.rpn.conv.bias.assign_add(tf.ones_like(model.rpn.conv.bias) * 1e-6)
        yield from batches(make_batch, start=1)

    with pytest.raises(FreezeProofError, match="rpn/conv/bias"):
        fit(model, plan_of(model, ["rpn"]), meddling(), tiny_config(), run=run)
    written = json.loads((tmp_path / "freeze_proof.json").read_text())
    assert not written["holds"] and written["stages"][0]["moved"] == ["rpn/conv/bias"]


@pytest.mark.usefixtures("eagerly")
def test_the_best_checkpoint_is_kept_and_patience_ends_the_run(tiny_model, tiny_config, make_batch, tmp_path):
    aps = iter([0.1, 0.3, 0.2, 0.2, 0.9])
    config = tiny_config(
        "train.steps=9",
        "train.evaluate_every=1",
        "train.patience=2",
        "train.keep_checkpoints=1",
        "train.checkpoint_every=1",
    )
    model, run = tiny_model(), RunLog(tmp_path)
    result = fit(
        model,
        cheap_plan_of(model),
        batches(make_batch),
        config,
        run=run,
        evaluate=lambda plan: scores_with(next(aps)),
    )
    assert result.stopped_early and result.step == 4
    assert run.best.name == "step-000002" and run.last.name == "step-000004"
    assert {path.name for path in run.checkpoints.glob("step-*")} == {"step-000002", "step-000004"}


@pytest.mark.usefixtures("eagerly")
def test_a_run_that_patience_ended_stays_ended(tiny_model, tiny_config, make_batch, tmp_path):
    config = tiny_config("train.steps=9", "train.evaluate_every=1", "train.patience=2")
    model, run = tiny_model(), RunLog(tmp_path)

    def go_on(aps, resume_from=None):
        return fit(
            model,
            cheap_plan_of(model),
            batches(make_batch, start=resume_from.step if resume_from else 0),
            config,
            run=run,
            evaluate=lambda plan: scores_with(next(aps)),
            resume_from=resume_from,
        )

    assert go_on(iter([0.3, 0.2, 0.2])).step == 3
    again = go_on(iter([]), checkpoint.read_info(run.last))
    assert again.stopped_early and again.step == 3 and run.last.name == "step-000003"


def test_patience_without_evaluations_is_refused(tiny_model, tiny_config, make_batch):
    config = tiny_config("train.patience=2", "train.evaluate_every=1")
    with pytest.raises(ValueError, match=r"train.patience 2 counts evaluations .* set train.evaluate_every"):
        fit(tiny_model(), plan_of(tiny_model()), batches(make_batch), config)


@pytest.mark.parametrize("deterministic", [True, False])
def test_operations_are_deterministic_where_the_configuration_says_so(
    deterministic, tiny_model, tiny_config, monkeypatch
):
    asked = []
    monkeypatch.setattr(tf.config.experimental, "enable_op_determinism", lambda: asked.append(True))
    model, config = tiny_model(), tiny_config(f"train.deterministic={deterministic}")
    with pytest.raises(ValueError, match="batches ended before step 0"):
        fit(model, cheap_plan_of(model), [], config)
    assert bool(asked) == deterministic


def test_a_variable_that_no_loss_depends_on_is_named(tiny_model, tiny_config, make_batch):
    model = tiny_model()
    trained = {"rpn/spare/kernel": tf.Variable([1.0])}
    optimizer = GroupedOptimizer(tiny_config().train.optimizer, trained)
    step = make_step(model, trained, optimizer, clip_norm=None)
    with pytest.raises(ValueError, match="rpn/spare/kernel: no loss depends on"):
        step(make_batch(0), tf.constant([0, 0]), tf.constant(0.1))


def test_a_frozen_prefix_is_not_differentiated(tiny_model, tiny_config, make_batch):
    """With the feature extractor frozen no gradient operation of its layers is in the step's graph."""

    def gradient_operations(freeze):
        model = tiny_model()
        plan = plan_of(model, freeze, batch_norm="fixed")
        plan.apply(model.components)
        variables = model.variables_by_path
        trained = {path: variables[path] for path in plan.trained}
        step = make_step(
            model, trained, GroupedOptimizer(tiny_config().train.optimizer, trained), clip_norm=None
        )
        graph = step.get_concrete_function(make_batch(0), tf.constant([0, 0]), tf.constant(0.1)).graph
        return Counter(
            op.type
            for op in graph.get_operations()
            if re.search("Conv2D.*Backprop|CropAndResizeGradImage", op.type)
            and op.outputs[0].consumers()  # what nobody reads does not run
        )

    assert "CropAndResizeGradImage" in gradient_operations([])
    # The tower's 19 convolutions are all that is differentiated, and two of them read the crops, which stand
    # still.
    box_classifier_only = gradient_operations(["feature_extractor", "rpn"])
    assert box_classifier_only == {"Conv2DBackpropFilter": 19, "Conv2DBackpropInput": 17}

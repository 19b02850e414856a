"""The heart's test: what changed equals what the plan trains, no more and no less."""

import itertools
import re
from collections import Counter

import numpy as np
import pytest
import tensorflow as tf
from conftest import values_of
from training_examples import batches, changed_paths, cheap_plan_of, plan_of

from detector.optimizer import GroupedOptimizer
from detector.run_log import RunLog
from detector.train import fit
from detector.training_step import make_step

COMPONENTS = ("feature_extractor", "rpn", "box_classifier")
PROPER_SUBSETS = [subset for size in range(3) for subset in itertools.combinations(COMPONENTS, size)]


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


def test_a_frozen_prefix_is_not_differentiated(tiny_model, tiny_config, make_batch, monkeypatch):
    """With the feature extractor frozen no gradient operation of its layers is in the step's graph."""
    # So that they can be told: elsewhere some are matrix products.
    monkeypatch.setattr("detector.convolution_gradients.has_onednn", lambda: True)

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

"""The two halves of a model at a cut do what the whole does."""

import numpy as np
import pytest
import tensorflow as tf

from detector.freeze import resolve, rows_of
from detector.frozen_prefix import Cut, FrozenPrefix, find_cut

pytestmark = pytest.mark.usefixtures("rewritten_graphs")

PREDICTOR_ONLY = ["feature_extractor", "rpn", "box_classifier/tower"]


def plan_of(model, freeze, **how):
    rows = rows_of(model.components, restored=model.variables_by_path)
    return resolve(rows, freeze, **how)


@pytest.mark.parametrize(
    ("freeze", "last", "rpn", "tower"),
    [
        (["feature_extractor[:Conv2d_1a_7x7]"], "MaxPool_2a_3x3", False, False),
        (["feature_extractor[:Mixed_4c]", "rpn"], "Mixed_4c", False, False),
        (["feature_extractor"], "Mixed_4e", False, False),
        (["feature_extractor", "box_classifier/tower"], "Mixed_4e", False, False),
        (["feature_extractor", "rpn"], "Mixed_4e", True, False),
        (["feature_extractor", "rpn", "box_classifier/tower/Mixed_5a"], "Mixed_4e", True, False),
        (PREDICTOR_ONLY, "Mixed_4e", True, True),
    ],
)
def test_the_cut_is_where_the_first_thing_moves(freeze, last, rpn, tower, tiny_model):
    model = tiny_model()
    cut = find_cut(model, plan_of(model, freeze, batch_norm="update"))
    assert cut is not None and (cut.stages[-1], cut.rpn, cut.tower) == (last, rpn, tower)
    assert cut.stages[0] == "Conv2d_1a_7x7"


@pytest.mark.parametrize("freeze", ["none", "rpn", "box_classifier", "feature_extractor/Mixed_3*"])
def test_without_a_frozen_start_there_is_no_cut(freeze, tiny_model):
    model = tiny_model()
    assert find_cut(model, plan_of(model, freeze, batch_norm="update")) is None


def test_statistics_that_are_updated_end_the_prefix(tiny_model):
    model = tiny_model()
    weights = "re:.*(kernel|gamma|beta)$"
    kernels = "re:.*kernel$"
    assert find_cut(model, plan_of(model, kernels, batch_norm="update")) is None
    # Where both scale and offset are frozen, the statistics are, too: only biases train.
    assert (
        find_cut(model, plan_of(model, weights, batch_norm="update")).paths[-1]
        == "feature_extractor/Mixed_4e"
    )


@pytest.mark.parametrize(
    "freeze",
    [["feature_extractor[:Mixed_3b]"], ["feature_extractor"], ["feature_extractor", "rpn"], PREDICTOR_ONLY],
)
def test_losses_and_gradients_are_those_of_the_whole(freeze, tiny_model, make_batch):
    model, batch, seed = tiny_model(), make_batch(0), tf.constant([3, 5])
    plan = plan_of(model, freeze, batch_norm="update")
    trained = plan.apply(model.components)
    statistics = {p: v for p, v in model.variables_by_path.items() if "moving_" in p}
    before = {path: variable.numpy() for path, variable in statistics.items()}
    prefix = FrozenPrefix(model, find_cut(model, plan))
    with tf.GradientTape() as tape:
        whole = model.named_losses(batch, seed)
        total = tf.add_n(list(whole.values()))
    expected = tape.gradient(total, trained)
    updated = {path: variable.numpy() for path, variable in statistics.items()}
    for path, variable in statistics.items():
        variable.assign(before[path])

    kept = prefix.outputs(batch["image"], batch["image_size_hw"])
    labels = {key: value for key, value in batch.items() if key != "image"}
    with tf.GradientTape() as tape:
        losses = prefix.named_losses({**labels, **kept}, seed)
        total = tf.add_n(list(losses.values()))
    found = tape.gradient(total, trained)

    assert {name: float(loss) for name, loss in losses.items()} == pytest.approx(
        {name: float(loss) for name, loss in whole.items()}, rel=1e-5
    )
    for one, other in zip(found, expected, strict=True):
        if other is None:
            assert one is None
        else:
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
    for path, variable in statistics.items():
        np.testing.assert_allclose(variable, updated[path], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "freeze", [["feature_extractor[:Mixed_3b]"], ["feature_extractor", "rpn"], PREDICTOR_ONLY]
)
def test_detections_are_those_of_the_whole(freeze, tiny_model, make_batch):
    model, batch = tiny_model(), make_batch(0)
    prefix = FrozenPrefix(model, find_cut(model, plan_of(model, freeze, batch_norm="update")))
    kept = prefix.outputs(batch["image"], batch["image_size_hw"], training=False)
    found = prefix.detect({**kept, "image_size_hw": batch["image_size_hw"]})
    expected = model.detect(batch["image"], batch["image_size_hw"])
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_its_variables_are_those_before_the_cut(tiny_model):
    model = tiny_model()
    prefix = FrozenPrefix(model, Cut(("Conv2d_1a_7x7", "MaxPool_2a_3x3")))
    assert set(prefix.variables) == {
        path for path in model.variables_by_path if path.startswith("feature_extractor/Conv2d_1a_7x7/")
    }

import numpy as np
import pytest
import tensorflow as tf

from detector.freeze import resolve, rows_of
from detector.recomputation import recompute
from detector.selectors import FreezeError
from detector.train import fit

EARLY = ["feature_extractor[:Mixed_3b]", "box_classifier/tower/Mixed_5b"]


def rows(model):
    return rows_of(model.components, restored=model.variables_by_path)


def step(model, batch, selectors):
    """Return losses and gradients of a step, the moving averages behind it, and its graph."""
    recompute(model.components, rows(model), selectors)
    variables = model.trainable_variables

    @tf.function(autograph=False)
    def run(batch):
        with tf.GradientTape() as tape:
            losses = model.named_losses(batch, tf.constant([0, 0]))
            loss = tf.add_n(list(losses.values()))
        return losses, tape.gradient(loss, variables)

    graph = run.get_concrete_function(batch).graph
    losses, gradients = run(batch)
    averages = {path: v.numpy() for path, v in model.variables_by_path.items() if "moving" in path}
    return losses, gradients, averages, graph


def convolutions(graph):
    """Return how many there are: each is followed by a batch norm, and some are computed as products."""
    return sum(
        operation.type in ("FusedBatchNorm", "FusedBatchNormV3") for operation in graph.get_operations()
    )


def test_losses_gradients_and_moving_averages_are_the_same(tiny_model, make_batch):
    losses, gradients, averages, graph = step(tiny_model(), make_batch(0), [])
    found = step(tiny_model(), make_batch(0), EARLY)
    for name, loss in losses.items():
        np.testing.assert_allclose(found[0][name], loss, rtol=1e-6)
    for mine, expected in zip(found[1], gradients, strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-6)
    for path, average in averages.items():
        np.testing.assert_array_equal(found[2][path], average, err_msg=path)
    # It did run again: Conv2d_2b_1x1, Conv2d_2c_3x3, and seven convolutions in each of the two blocks.
    assert convolutions(found[3]) - convolutions(graph) == 2 + 7 + 7 + 1


def test_fixed_statistics_and_frozen_variables(tiny_model, make_batch):
    model = tiny_model()
    plan = resolve(rows(model), ["feature_extractor[:Conv2d_2c_3x3]"], batch_norm="fixed")
    plan.apply(model.components)
    before = {path: v.numpy() for path, v in model.variables_by_path.items() if "moving" in path}
    _, gradients, averages, _ = step(model, make_batch(0), EARLY)
    assert all(gradient is not None for gradient in gradients)
    for path, average in averages.items():
        np.testing.assert_array_equal(average, before[path], err_msg=path)


def test_a_run_recomputes_what_its_configuration_says(tiny_config, tiny_model):
    model = tiny_model()
    config = tiny_config(f"train.recompute={EARLY}")
    with pytest.raises(ValueError, match="ended before step 0"):
        fit(model, resolve(rows(model), []), [], config)
    assert "Mixed_3b" in model.feature_extractor.recomputed
    assert "Mixed_3c" not in model.feature_extractor.recomputed
    assert model.box_classifier.tower.recomputed == {"Mixed_5b"}


def test_a_later_choice_replaces_an_earlier_one(tiny_model):
    model = tiny_model()
    recompute(model.components, rows(model), EARLY)
    recompute(model.components, rows(model), ["feature_extractor/Mixed_4e"])
    assert model.feature_extractor.recomputed == {"Mixed_4e"}
    assert not model.box_classifier.tower.recomputed


@pytest.mark.parametrize("selector", ["rpn", "box_classifier/predictor"])
def test_what_has_no_stages_is_refused(tiny_model, selector):
    model = tiny_model()
    with pytest.raises(FreezeError, match=f"'{selector}' matches no stage that can recompute; expected"):
        recompute(model.components, rows(model), [selector])
    with pytest.raises(FreezeError, match="matches"):
        recompute(model.components, rows(model), ["feature_extractor/conv7"])

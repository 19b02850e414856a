import pytest
import tensorflow as tf
from tensorflow.python.framework import ops

from detector import cost
from detector.builder import build_model
from detector.cost import StageCost, inference_flops, predicted_saving, stage_costs, training_flops
from detector.freeze import resolve, rows_of
from detector.rpn import Proposals


def plan_of(model, *freeze):
    return resolve(rows_of(model.components, restored=model.variables_by_path), list(freeze))


def test_convolutions_are_counted_by_hand(tiny_model):
    model = tiny_model()
    costs = {cost.path: cost.flops for cost in stage_costs(model, (64, 64))}
    kernel = model.rpn.conv.kernel.shape
    heads = 2 * 16 * kernel[3] * (12 + 24)  # 16 cells, 6 anchors of 2 and 4 channels
    assert costs["rpn"] == 2 * 16 * kernel.num_elements() + heads
    assert next(iter(costs)) == "feature_extractor/Conv2d_1a_7x7"
    assert list(costs)[-1] == "box_classifier/predictor"


SMALL = "depth_multiplier: 0.05, min_depth: 3"


@pytest.mark.parametrize(
    "extractor",
    [
        f"type: inception_v2, {SMALL}",
        f"type: inception_v3, {SMALL}",
        pytest.param(f"type: inception_resnet_v2, {SMALL}", marks=pytest.mark.slow),
        "type: resnet50, topology: slim",
        "type: resnet50, topology: keras",
    ],
)
def test_operations_are_those_that_tensorflow_counts_in_the_graph(tiny_config, extractor):
    settings = tiny_config(f"model.feature_extractor={{{extractor}}}", "model.box_classifier.winograd=false")
    model = build_model(settings.model, ["circle"])
    canvas = tf.TensorSpec([1, 70, 101, 3])
    features = tf.function(model.feature_extractor).get_concrete_function(canvas)
    rpn = tf.function(model.rpn).get_concrete_function(features.structured_outputs)
    drawn = Proposals(tf.zeros([1, 8, 4]), tf.zeros([1, 8]), tf.zeros([1], tf.int32))
    crops = model.crops(tf.zeros(features.structured_outputs.shape), drawn, (70, 101))
    box_classifier = tf.function(model.box_classifier).get_concrete_function(crops)
    counted = {"feature_extractor": 0, "rpn": 0, "box_classifier": 0}
    for stage in stage_costs(model, (70, 101)):
        counted[stage.path.split("/")[0]] += stage.flops
    traced = {"feature_extractor": features, "rpn": rpn, "box_classifier": box_classifier}
    assert counted == {name: flops_in(function.graph) for name, function in traced.items()}


def flops_in(graph):
    """Return the operations of convolutions and matrix products by TensorFlow's own statistics."""
    return sum(
        ops.get_stats_for_node_def(graph, node.node_def, "flops").value
        for node in graph.get_operations()
        if node.type in ("Conv2D", "DepthwiseConv2dNative", "MatMul")
    )


def test_savings_by_hand(tiny_model, monkeypatch):
    model = tiny_model()
    costs = [
        StageCost("feature_extractor/Mixed_3b", 10),
        StageCost("feature_extractor/Mixed_4e", 20),
        StageCost("rpn", 5),
        StageCost("box_classifier/tower/Mixed_5a", 40),
        StageCost("box_classifier/predictor", 1),
    ]
    full = 2 * 10 + 3 * (20 + 5 + 40 + 1)
    assert predicted_saving(costs, plan_of(model)) == 0.0
    # The first stage needs no gradient of its own and hands none on; the rest costs what it did, less the
    # gradient towards what is frozen, which the first stages behind it have not to compute.
    frozen = 1 * (10 + 20) + 2 * 5 + 2 * 40 + 3 * 1
    assert predicted_saving(costs, plan_of(model, "feature_extractor")) == pytest.approx(1 - frozen / full)
    # A frozen tower still hands the gradient on to the features.
    tower = 2 * 10 + 3 * (20 + 5) + 2 * 40 + 3 * 1
    assert predicted_saving(costs, plan_of(model, "box_classifier/tower")) == pytest.approx(1 - tower / full)
    predictor = 10 + 20 + 5 + 40 + 2 * 1
    only = plan_of(model, "all_but:box_classifier/predictor")
    assert predicted_saving(costs, only) == pytest.approx(1 - predictor / full)


def test_what_gradients_take_of_a_stage():
    costs = [StageCost("feature_extractor/Mixed_3b", 10), StageCost("rpn", 8, gradient_part=0.25)]
    assert training_flops(costs, None) == 2 * 10 + (1 + 2 * 0.25) * 8


def test_the_rpn_is_differentiated_where_its_losses_draw_anchors(tiny_model):
    # 16 anchors are drawn: of 64 cells they may be in a quarter, of 16 in all.
    model = tiny_model()
    parts = {
        size: {cost.path: cost.gradient_part for cost in stage_costs(model, (size, size))}
        for size in (128, 64)
    }
    assert (parts[128].pop("rpn"), parts[64].pop("rpn")) == (0.25, 1.0)
    assert {*parts[128].values(), *parts[64].values()} == {1.0}


def test_operations_by_hand(tiny_model, monkeypatch):
    costs = [
        StageCost("feature_extractor/Mixed_3b", 10),
        StageCost("rpn", 5),
        StageCost("box_classifier/tower/Mixed_5a", 40),
        StageCost("box_classifier/predictor", 1),
    ]
    # Nothing is before the first stage, so nothing needs the gradient towards its input.
    assert training_flops(costs, None) == 2 * 10 + 3 * (5 + 40 + 1)
    model = tiny_model()
    frozen = plan_of(model, "feature_extractor", "rpn")
    assert training_flops(costs, frozen) == 10 + 5 + 2 * 40 + 3 * 1
    assert training_flops(costs, frozen, kept=["feature_extractor", "rpn"]) == 2 * 40 + 3 * 1
    monkeypatch.setattr(cost, "stage_costs", lambda model, canvas_hw: costs)
    # The tiny model draws 8 crops in training; detection takes all of its 16 proposals.
    assert inference_flops(model, (64, 64)) == 10 + 5 + 2 * (40 + 1)

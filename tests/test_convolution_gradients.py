import numpy as np
import pytest
import tensorflow as tf

from detector import convolution_gradients
from detector.builder import build_model
from detector.config import Config
from detector.experiment import schedule_of
from detector.feature_extractors.convolution import Conv
from detector.freeze import rows_of
from detector.model_config import ModelConfig
from detector.weights.object_detection_api import api_names

BATCH_NORM = {"momentum": 0.9, "epsilon": 0.001}


@pytest.fixture(autouse=True)
def without_onednn(monkeypatch):
    """Compute as a CPU without oneDNN does, whatever this one has."""
    monkeypatch.setattr(convolution_gradients, "has_onednn", lambda: False)


def outputs_and_gradients(convolve, inputs, kernel):
    with tf.GradientTape() as tape:
        tape.watch([inputs, kernel])
        outputs = convolve(inputs, kernel)
        loss = tf.reduce_sum(outputs * tf.random.stateless_normal(tf.shape(outputs), [0, 3]))
    return outputs, *tape.gradient(loss, [inputs, kernel])


@pytest.mark.parametrize("in_graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize(
    "shape, side, stride",
    [
        ((2, 6, 5), 1, 1),
        ((2, 6, 5), 1, 2),
        ((1, 7, 7), 1, 3),
        ((2, 6, 5), 3, 1),
        ((2, 7, 5), 3, 2),
        ((1, 1, 3), 3, 2),
    ],
)
def test_outputs_and_gradients_are_those_of_tensorflow(shape, side, stride, in_graph):
    inputs = tf.random.stateless_normal([*shape, 4], [0, 1])
    kernel = tf.random.stateless_normal([side, side, 4, 3], [0, 2])

    def own(inputs, kernel):
        return convolution_gradients.convolve(inputs, kernel, stride)

    run = tf.function(outputs_and_gradients) if in_graph else outputs_and_gradients
    expected = outputs_and_gradients(lambda x, k: tf.nn.conv2d(x, k, stride, "SAME"), inputs, kernel)
    for a, b in zip(run(own, inputs, kernel), expected, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_the_number_and_size_of_maps_may_be_unknown_to_the_graph():
    kernel = tf.random.stateless_normal([1, 1, 4, 3], [0, 2])
    own = tf.function(
        lambda inputs: outputs_and_gradients(
            lambda x, k: convolution_gradients.convolve(x, k, 2), inputs, kernel
        ),
        input_signature=[tf.TensorSpec([None, None, None, 4], tf.float32)],
    )
    inputs = tf.random.stateless_normal([2, 6, 5, 4], [0, 1])
    expected = outputs_and_gradients(lambda x, k: tf.nn.conv2d(x, k, 2, "SAME"), inputs, kernel)
    for a, b in zip(own(inputs), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def gradient_operations(layer, shape):
    """Return the types of TensorFlow's own convolution gradients in a layer's training."""

    @tf.function
    def gradients(inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            loss = tf.reduce_sum(layer(inputs, training=True))
        return tape.gradient(loss, [inputs, layer.kernel])

    layer.build(shape)
    graph = gradients.get_concrete_function(tf.TensorSpec(shape, tf.float32)).graph
    return {o.type.removeprefix("Conv2D") for o in graph.get_operations() if "Backprop" in o.type}


TENSORFLOWS = {"BackpropInput", "BackpropFilter"}


@pytest.mark.parametrize(
    "shape, size, options, expected",
    [
        ((1, 4, 4, 3), 1, {}, set()),
        ((1, 4, 4, 3), 1, {"strides": 2}, set()),
        ((1, 4, 4, 3), 1, {"padding": "fixed"}, set()),
        ((1, 4, 4, 3), 1, {"padding": "valid"}, set()),
        ((1, 4, 4, 3), 3, {}, TENSORFLOWS),
        ((1, 64, 64, 3), 3, {}, set()),
        ((1, 64, 64, 3), 3, {"padding": "fixed"}, set()),
        ((1, 64, 64, 3), 3, {"strides": 2}, TENSORFLOWS),
        ((1, 7, 7, 3), 3, {"strides": 2}, {"BackpropFilter"}),
        ((1, 7, 7, 3), 3, {"strides": 2, "padding": "fixed"}, {"BackpropFilter"}),
        ((1, 7, 7, 3), 3, {"strides": 2, "padding": "valid"}, TENSORFLOWS),
        ((1, 7, 8, 3), 3, {"strides": 2}, TENSORFLOWS),
        ((1, 7, 7, 3), 3, {"strides": 3}, TENSORFLOWS),
        ((1, 64, 64, 3), 3, {"padding": "valid"}, TENSORFLOWS),
        ((1, 64, 64, 3), (1, 3), {}, TENSORFLOWS),
    ],
)
def test_layers_use_them_where_they_are_quicker(shape, size, options, expected):
    assert gradient_operations(Conv(4, size, batch_norm=BATCH_NORM, **options), shape) == expected


@pytest.mark.parametrize("padding", ["same", "fixed"])
@pytest.mark.parametrize("shape, stride", [((2, 64, 64, 3), 1), ((2, 7, 5, 3), 2), ((2, 6, 5, 3), 2)])
def test_a_layers_gradients_are_those_of_its_padding(shape, stride, padding):
    layer = Conv(4, 3, stride, batch_norm=BATCH_NORM, padding=padding)
    inputs = tf.random.stateless_normal(shape, [0, 1])
    layer.build(shape)
    found = []
    for differentiated in (True, False):
        layer.is_differentiated = differentiated
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            loss = tf.reduce_mean(layer(inputs, training=True) ** 3)
        found.append(tape.gradient(loss, [inputs, layer.kernel]))
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


def test_layers_before_all_that_trains_are_tensorflows():
    layer = Conv(4, 1, batch_norm=BATCH_NORM)
    layer.is_differentiated = False
    assert gradient_operations(layer, (1, 4, 4, 3)) == TENSORFLOWS


def test_layers_leave_gradients_to_onednn_and_to_gpus(monkeypatch):
    def found():
        return gradient_operations(Conv(4, 1, batch_norm=BATCH_NORM), (1, 4, 4, 3))

    assert not found()
    with monkeypatch.context() as patch:
        patch.setattr(convolution_gradients, "has_onednn", lambda: True)
        assert found() == TENSORFLOWS
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: ["a GPU"])
    assert found() == TENSORFLOWS


@pytest.fixture(scope="module")
def model():
    settings = {"feature_extractor": {"depth_multiplier": 0.1, "min_depth": 4}, "rpn": {"conv_depth": 4}}
    return build_model(ModelConfig.model_validate(settings), ["a"])


@pytest.mark.parametrize(
    "freeze, first",
    [
        ((), "feature_extractor/Conv2d_2b_1x1"),
        (("feature_extractor[:Mixed_4b]",), "feature_extractor/Mixed_4c"),
        (("feature_extractor",), "box_classifier/tower/Mixed_5a"),
        (("feature_extractor", "box_classifier/tower"), None),
        (("feature_extractor[:Mixed_4d]", "box_classifier"), "feature_extractor/Mixed_4e"),
    ],
)
def test_what_comes_before_all_that_trains_is_not_differentiated(model, freeze, first):
    config = Config.model_validate({"freeze": {"freeze": freeze, "allow_fresh": True}})
    rows = rows_of(model.components, (), api_names(model))
    schedule_of(config, rows, is_restored=False).stages[0].plan.apply(model.components)
    parts = {
        f"{path}/{name}": stage
        for path, chain in (
            ("feature_extractor", model.feature_extractor),
            ("box_classifier/tower", model.box_classifier.tower),
        )
        for name, stage in chain.stages.items()
    }
    flags = {
        path: {layer.is_differentiated for layer in [part, *part.submodules] if isinstance(layer, Conv)}
        for path, part in parts.items()
    }
    flags = {path: found for path, found in flags.items() if found}
    names = list(flags)
    after = names.index(first) if first else len(names)
    assert flags == {name: {index >= after} for index, name in enumerate(names)}

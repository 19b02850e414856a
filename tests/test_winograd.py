from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from detector import minimal_filtering, winograd
from detector.builder import build_model
from detector.feature_extractors.convolution import Conv
from detector.model_config import ModelConfig

BATCH_NORM = {"momentum": 0.9, "epsilon": 0.001}


@pytest.fixture(params=[False, True], ids=["own kernels", "oneDNN"])
def has_onednn(request, monkeypatch):
    """Multiply as is quick without oneDNN and with it, whatever this CPU has."""
    monkeypatch.setattr(winograd, "has_onednn", lambda: request.param)
    return request.param


def directly(inputs, kernel):
    return tf.nn.conv2d(inputs, kernel, 1, "SAME")


def example(shape=(9, 7, 7, 96), filters=64):
    inputs = tf.random.stateless_normal(shape, [0, 1])
    return inputs, tf.random.stateless_normal([3, 3, shape[-1], filters], [0, 2])


def outputs_and_gradients(convolve, inputs, kernel):
    with tf.GradientTape() as tape:
        tape.watch([inputs, kernel])
        outputs = convolve(inputs, kernel)
        loss = tf.reduce_sum(outputs * tf.random.stateless_normal(tf.shape(outputs), [0, 3]))
    return outputs, *tape.gradient(loss, [inputs, kernel])


def assert_equal_up_to_rounding(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=5e-5 * np.std(b))


def operations(function, *arguments):
    """Return the types of the operations of the function's graph."""
    return types_in(tf.function(function).get_concrete_function(*arguments))


def types_in(traced):
    return [operation.type for operation in traced.graph.get_operations()]


@pytest.mark.parametrize("in_graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("height, width", [(4, 4), (7, 7), (8, 5), (3, 6), (1, 2)])
def test_outputs_and_gradients_are_those_of_the_direct_convolution(height, width, in_graph, has_onednn):
    inputs, kernel = example((3, height, width, 16), 8)
    run = tf.function(outputs_and_gradients) if in_graph else outputs_and_gradients
    assert_equal_up_to_rounding(
        run(winograd.convolve, inputs, kernel), outputs_and_gradients(directly, inputs, kernel)
    )


def test_the_number_of_maps_may_be_unknown_to_the_graph(has_onednn):
    inputs, kernel = example()
    anything = tf.function(
        lambda inputs: outputs_and_gradients(winograd.convolve, inputs, kernel),
        input_signature=[tf.TensorSpec([None, *inputs.shape[1:]], tf.float32)],
    )
    assert_equal_up_to_rounding(anything(inputs), outputs_and_gradients(directly, inputs, kernel))
    assert anything(inputs[:0])[0].shape == (0, 7, 7, 64)


def test_a_frozen_kernels_transform_is_kept_until_the_kernel_changes(monkeypatch):
    inputs, initial = example()
    kernel, changed = tf.Variable(initial), initial[::-1]
    traced = winograd._Kept.of
    monkeypatch.setattr(  # so that what was kept can be told
        winograd._Kept, "of", lambda *of: replace(kept := traced(*of), transformed=2 * kept.transformed)
    )
    run = tf.function(
        lambda inputs: outputs_and_gradients(
            lambda inputs, kernel: winograd.convolve(inputs, kernel, is_frozen=True), inputs, kernel
        )
    )
    outputs, of_inputs, _ = outputs_and_gradients(directly, inputs, initial)
    *found, of_kernel = run(inputs)
    assert of_kernel is None
    assert_equal_up_to_rounding(found, (2 * outputs, 2 * of_inputs))
    kernel.assign(changed)
    assert_equal_up_to_rounding(run(inputs)[:2], outputs_and_gradients(directly, inputs, changed)[:2])
    kernel.assign(initial)
    assert_equal_up_to_rounding(run(inputs)[:1], (2 * outputs,))


def test_nothing_is_kept_outside_of_a_graph(monkeypatch):
    monkeypatch.setattr(winograd._Kept, "of", None)
    inputs, kernel = example()
    kernel = tf.Variable(kernel)
    outputs = winograd.convolve(inputs, kernel, is_frozen=True)
    np.testing.assert_array_equal(outputs, winograd.convolve(inputs, kernel))


def test_no_gradient_is_a_convolution():
    names = operations(lambda *both: outputs_and_gradients(winograd.convolve, *both), *example())
    assert not [name for name in names if name.startswith("Conv2D")]


def test_a_kernel_is_transformed_when_its_turn_comes():
    # Were it before, or kept for the gradient, the transforms of all layers would lie in memory together.
    transforms = [
        operation
        for operation in traced_with_gradients()
        if operation.type == "MatMul" and operation.outputs[0].shape == (36, 96 * 64)
    ]
    waited_for = [control_inputs_behind(operation) for operation in transforms]
    assert waited_for == [{"inputs"}, {"gradients/grad_ys_0"}]  # as tf.gradients names the upstream one


def test_products_towards_the_kernel_wait_for_the_gradient_towards_the_inputs():
    # It frees the kernel's transform, which is as large as they are.
    products = [
        operation
        for operation in traced_with_gradients()
        if "MatMul" in operation.type and operation.outputs[0].shape[-2:] == (96, 64)
    ]
    assert len(products) in (1, 36)
    for product in products:
        (waited,) = product.control_inputs
        assert waited.outputs[0].shape == (2, 4, 4, 96)


def traced_with_gradients():
    """Return the operations of a convolution of 4x4 maps, 96 to 64 channels, and of its gradients."""
    inputs, kernel = example((2, 4, 4, 96))

    @tf.function
    def run(inputs, kernel, upstream):
        outputs = winograd.convolve(inputs, kernel)
        return outputs, tf.gradients(outputs, [inputs, kernel], upstream)

    traced = run.get_concrete_function(inputs, kernel, tf.zeros([2, 4, 4, 64]))
    return traced.graph.get_operations()


def control_inputs_behind(operation):
    """Return the names of what the operation, or what its inputs are made by, waits for."""
    own = {waited.name for waited in operation.control_inputs}
    return own.union(*(control_inputs_behind(value.op) for value in operation.inputs))


@pytest.mark.parametrize(
    "side, part, points, tile_counts", [(4, 36 / 144, 36, 1), (7, 121 / 441, 36, 3), (8, 36 / 144, 36, 1)]
)
def test_there_are_as_few_products_as_tiles_need(side, part, points, tile_counts, has_onednn, monkeypatch):
    multiplied = []
    monkeypatch.setattr(
        tf, "matmul", lambda a, b, _of=tf.matmul, **how: multiplied.append((a, b)) or _of(a, b, **how)
    )
    inputs, kernel = example((2, side, side, 96))
    winograd.convolve(inputs, kernel)
    # Those of the transforms have a constant on their left.
    of_tiles = [(a, b) for a, b in multiplied if not isinstance(a, np.ndarray)]
    assert len(of_tiles) == (tile_counts if has_onednn else points)
    products = sum(np.prod(a.shape) * b.shape[-1] for a, b in of_tiles)
    assert products == 2 * side**2 * 9 * 96 * 64 * part


def test_it_loses_fewer_digits_than_with_the_usual_points(monkeypatch):
    inputs, kernel = example((64, 4, 4, 192))
    exact = directly(*(tf.cast(value, tf.float64) for value in (inputs, kernel))).numpy()

    def error(convolve):
        return np.sqrt(np.mean((convolve(inputs, kernel) - exact) ** 2))

    ours, rounding = error(winograd.convolve), error(directly)
    monkeypatch.setattr(minimal_filtering, "_POINTS", (0.0, 1.0, -1.0, 2.0, -2.0))
    winograd._transforms.cache_clear()
    usual = error(winograd.convolve)
    winograd._transforms.cache_clear()
    assert ours < 10 * rounding
    assert ours < 0.6 * usual


def test_it_computes_the_same_bits_every_time():
    inputs, kernel = example((64, 7, 7, 64))
    run = tf.function(lambda *both: outputs_and_gradients(winograd.convolve, *both))
    once, again = run(inputs, kernel), run(inputs, kernel)
    for a, b in zip(once, again, strict=True):
        np.testing.assert_array_equal(a, b)


PAYS = {"shape": (128, 4, 4, 64), "kernel_shape": (3, 3, 64, 64), "dtype": tf.float32, "training": False}


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, True),
        ({"shape": (None, 8, 8, 64)}, True),
        ({"shape": (32, 7, 7, 64)}, True),
        ({"shape": (127, 4, 4, 64)}, False),
        ({"shape": (64, 4, 4, 64), "training": True}, True),
        ({"shape": (63, 4, 4, 64), "training": True}, False),
        ({"shape": (128, 9, 4, 64)}, False),
        ({"shape": (128, None, None, 64)}, False),
        ({"kernel_shape": (3, 3, 63, 64)}, False),
        ({"kernel_shape": (3, 3, 64, 63)}, False),
        ({"kernel_shape": (1, 1, 64, 64)}, False),
        ({"kernel_shape": (1, 3, 64, 64)}, False),
        ({"dtype": tf.bfloat16}, False),
    ],
)
def test_it_pays_for_many_small_float32_maps_with_many_channels(changes, expected):
    case = PAYS | changes
    inputs = tf.TensorSpec(case["shape"], case["dtype"])
    assert winograd.pays(inputs, case["kernel_shape"], case["training"]) is expected


def test_gpus_choose_for_themselves(monkeypatch):
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: [kind])
    assert not winograd.pays(tf.TensorSpec(PAYS["shape"]), PAYS["kernel_shape"])


@pytest.mark.parametrize("padding", ["same", "fixed"])
def test_a_convolution_that_may_use_it_equals_one_that_may_not(padding):
    layer = Conv(64, 3, batch_norm=BATCH_NORM, padding=padding)
    inputs, _ = example((32, 7, 7, 64))
    expected = layer(inputs)
    layer.winograd = True
    assert "Conv2D" not in operations(layer, inputs)
    np.testing.assert_allclose(layer(inputs), expected, atol=1e-4)


@pytest.mark.parametrize(
    "arguments",
    [{"padding": "valid"}, {"strides": 2}, {"strides": 2, "padding": "fixed"}],
    ids=["valid", "strided", "strided, padded alike"],
)
def test_other_convolutions_stay(arguments):
    layer = Conv(64, 3, batch_norm=BATCH_NORM, **arguments)
    inputs, _ = example((64, 8, 8, 64))
    expected = layer(inputs)
    layer.winograd = True
    np.testing.assert_array_equal(layer(inputs), expected)


def small(**of_the_box_classifier):
    return ModelConfig.model_validate(
        {
            "feature_extractor": {"depth_multiplier": 0.34},
            "resizer": {"kind": "fixed_shape", "height": 64, "width": 64},
            "rpn": {"conv_depth": 64, "max_proposals": 64},
            "box_classifier": of_the_box_classifier,
        }
    )


@pytest.mark.slow  # tests/test_compare_reference.py compares the original with a detector that has it
def test_the_detector_detects_the_same_with_and_without_it():
    image = tf.random.stateless_uniform([2, 64, 64, 3], [0, 1], 0, 255)
    found = {}
    for choice in (True, False):
        model = build_model(small(winograd=choice), ["circle", "square"])
        convolutions = [layer for layer in model.submodules if isinstance(layer, Conv)]
        tower = [layer for layer in model.box_classifier.submodules if isinstance(layer, Conv)]
        assert [layer for layer in convolutions if layer.winograd] == (tower if choice else [])
        traced = tf.function(model).get_concrete_function(image)
        found[choice] = traced(image), types_in(traced).count("Conv2D")
    (fast, fast_count), (direct, direct_count) = found[True], found[False]
    assert fast_count == direct_count - 6
    assert fast.scores.numpy().any()
    for a, b in zip(fast, direct, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "training, trainable, keeps", [(False, False, False), (True, True, False), (True, False, True)]
)
def test_the_transforms_of_frozen_kernels_are_kept_for_training(training, trainable, keeps):
    layer = Conv(64, 3, batch_norm={**BATCH_NORM, "momentum": 1.0})
    inputs, _ = example((128, 4, 4, 64))
    layer.build(inputs.shape)
    layer.trainable = trainable
    layer.winograd = True
    traced = tf.function(lambda inputs: layer(inputs, training=training)).get_concrete_function(inputs)
    assert "Conv2D" not in types_in(traced)
    kept = [captured for captured in traced.captured_inputs if captured.shape == (36, 64, 64)]
    assert len(kept) == keeps

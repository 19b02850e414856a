import numpy as np
import pytest
import tensorflow as tf
from conftest import CLASS_NAMES, tiny_batch

from detector import winograd_large
from detector.builder import build_model
from detector.sparse_convolution import SparselyTrainedConv2D


@pytest.fixture(params=[False, True], ids=["own kernels", "oneDNN"])
def has_onednn(request, monkeypatch):
    """Multiply as is quick without oneDNN and with it, whatever this CPU has."""
    monkeypatch.setattr(winograd_large, "has_onednn", lambda: request.param)
    return request.param


@pytest.fixture
def always(monkeypatch):
    """Let it pay for maps of any size."""
    monkeypatch.setattr(winograd_large, "_FEWEST_CHANNELS", 1)
    monkeypatch.setattr(winograd_large, "_FEWEST_TILES", 1)


def example(shape, filters):
    inputs = tf.random.stateless_normal(shape, [0, 1])
    return inputs, tf.random.stateless_normal([3, 3, shape[-1], filters], [0, 2])


def assert_equal_up_to_rounding(found, expected):
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-5 * np.std(expected))


@pytest.mark.parametrize(
    "shape", [(1, 16, 16, 12), (2, 9, 14, 12), (3, 4, 21, 12), (1, 1, 2, 12), (2, 40, 7, 12)]
)
def test_outputs_are_those_of_the_direct_convolution(shape, has_onednn):
    inputs, kernel = example(shape, 8)
    expected = tf.nn.conv2d(inputs, kernel, 1, "SAME")
    assert_equal_up_to_rounding(winograd_large.convolve(inputs, kernel), expected)
    anything = tf.function(
        lambda inputs: winograd_large.convolve(inputs, kernel),
        input_signature=[tf.TensorSpec([None, *shape[1:]], tf.float32)],
    )
    assert_equal_up_to_rounding(anything(inputs), expected)


def test_rows_are_not_taken_for_columns(has_onednn):
    inputs, _ = example((1, 12, 12, 4), 1)
    kernel = tf.tensor_scatter_nd_update(tf.zeros([3, 3, 4, 4]), [[0, 1, 2, 3]], [1.0])
    shifted = tf.pad(inputs[:, :-1, :, 2], [[0, 0], [1, 0], [0, 0]])  # from the cell above
    np.testing.assert_allclose(winograd_large.convolve(inputs, kernel)[..., 3], shifted, atol=1e-5)


def test_a_quarter_of_the_multiplications(monkeypatch, has_onednn):
    multiplied = []
    monkeypatch.setattr(
        winograd_large.tf, "matmul", lambda a, b, matmul=tf.matmul: multiplied.append((a, b)) or matmul(a, b)
    )
    winograd_large.convolve(*example((2, 16, 12, 32), 24))
    # Those of the transforms have a constant on their left.
    of_tiles = [(a, b) for a, b in multiplied if not isinstance(a, np.ndarray)]
    products = sum(np.prod(a.shape) * b.shape[-1] for a, b in of_tiles)
    assert products == 2 * 16 * 12 * 9 * 32 * 24 / 4


PAYS = {"shape": (1, 32, 32, 576), "kernel_shape": (3, 3, 576, 512), "dtype": tf.float32}


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, True),
        ({"shape": (None, 38, 64, 1024), "kernel_shape": (3, 3, 1024, 512)}, True),
        ({"shape": (8, 16, 16, 576)}, True),
        ({"shape": (1, 16, 16, 576)}, False),
        ({"shape": (1, None, 32, 576)}, False),
        ({"kernel_shape": (3, 3, 576, 64)}, False),
        ({"kernel_shape": (1, 1, 576, 512)}, False),
        ({"dtype": tf.bfloat16}, False),
    ],
)
def test_when_it_pays(changes, expected):
    case = PAYS | changes
    found = []

    @tf.function(input_signature=[tf.TensorSpec(case["shape"], case["dtype"])])
    def look(inputs):
        found.append(winograd_large.pays(inputs, case["kernel_shape"]))

    look.get_concrete_function()
    assert found == [expected]


def test_gpus_choose_for_themselves(monkeypatch):
    inputs = tf.zeros(PAYS["shape"])
    assert winograd_large.pays(inputs, PAYS["kernel_shape"])
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: [kind])
    assert not winograd_large.pays(inputs, PAYS["kernel_shape"])


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("cells", [[[0, 3, 3], [1, 0, 5]], [[1, 4, 4]]])
def test_a_sparsely_trained_layer_has_its_own_gradients_either_way(cells):
    inputs, kernel = example((2, 7, 6, 5), 4)
    found = {}
    for choice in (True, False):
        layer = SparselyTrainedConv2D(4, 3, winograd=choice)
        layer.build(inputs.shape)
        layer.set_weights([kernel, np.linspace(-1, 1, 4)])
        traced = tf.function(layer).get_concrete_function(tf.TensorSpec(inputs.shape))
        assert choice != ("Conv2D" in {operation.type for operation in traced.graph.get_operations()})
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(inputs)
            loss = tf.reduce_sum(tf.gather_nd(outputs, cells) ** 2)
        found[choice] = outputs, *tape.gradient(loss, [inputs, *layer.trainable_variables])
    for one, other in zip(found[True], found[False], strict=True):
        assert_equal_up_to_rounding(one, other)


@pytest.mark.usefixtures("always")
def test_the_configuration_switches_it_off(tiny_config):
    image = tiny_batch(0)["image"]
    scores, convolutions = [], []
    for choice in ("true", "false"):
        model = build_model(tiny_config(f"model.rpn.winograd={choice}").model, CLASS_NAMES)
        objectness = tf.function(lambda image, model=model: model.first_stage(image).outputs.objectness)
        traced = objectness.get_concrete_function(image)
        convolutions.append([operation.type for operation in traced.graph.get_operations()].count("Conv2D"))
        scores.append(traced(image))
    assert convolutions[0] == convolutions[1] - 1
    np.testing.assert_allclose(*scores, rtol=1e-4, atol=1e-5)

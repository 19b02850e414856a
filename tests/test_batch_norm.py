import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from detector import batch_norm
from detector.batch_norm import BatchNorm, moving_averages_held

SETTINGS = {"momentum": 0.9, "epsilon": 0.01}
INPUTS = tf.random.stateless_normal([2, 5, 4, 3], [0, 1], 2.0, 3.0)


@pytest.fixture(params=[False, True], ids=["own kernels", "oneDNN"])
def has_onednn(request, monkeypatch):
    """Normalise as with TensorFlow's own kernels and as with oneDNN's, whatever this CPU has."""
    monkeypatch.setattr(batch_norm, "has_onednn", lambda: request.param)
    return request.param


def built(kind, trainable=True, **settings):
    layer = kind(**SETTINGS, **settings)
    layer.build(INPUTS.shape)
    for number, variable in enumerate(layer.variables):
        variable.assign(tf.random.stateless_uniform(variable.shape, [1, number], 0.5, 2.0))
    layer.trainable = trainable
    return layer


def outputs_gradients_and_averages(layer, training, inputs=INPUTS):
    trained = [inputs, layer.beta] + ([layer.gamma] if layer.scale else [])

    @tf.function
    def run(inputs):
        with tf.GradientTape() as tape:
            tape.watch([inputs, *trained[1:]])
            outputs = layer(inputs, training=training)
            loss = tf.reduce_sum(
                tf.cast(outputs, tf.float32) * tf.random.stateless_normal(inputs.shape, [0, 2])
            )
        return outputs, tape.gradient(loss, [inputs, *trained[1:]])

    outputs, gradients = run(inputs)
    return outputs, *gradients, layer.moving_mean.numpy(), layer.moving_variance.numpy()


@pytest.mark.parametrize("scale", [True, False], ids=["with gamma", "without"])
@pytest.mark.parametrize(
    "training, trainable",
    [(False, True), (True, True), (True, False)],
    ids=["inference", "training", "frozen"],
)
def test_it_computes_what_kerass_does(training, trainable, scale, has_onednn):
    found, expected = (
        outputs_gradients_and_averages(built(kind, trainable, scale=scale), training)
        for kind in (BatchNorm, tf_keras.layers.BatchNormalization)
    )
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_fixed_statistics_normalise_in_training_as_in_inference(has_onednn):
    layer = built(BatchNorm)
    layer.fixed_statistics = True
    for a, b in zip(
        outputs_gradients_and_averages(layer, training=True),
        outputs_gradients_and_averages(built(tf_keras.layers.BatchNormalization), training=False),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_moving_averages_are_held_for_a_second_pass(has_onednn):
    layer = built(BatchNorm)
    before = layer.moving_mean.numpy()
    with moving_averages_held():
        again = layer(INPUTS, training=True)
    np.testing.assert_array_equal(layer.moving_mean, before)
    np.testing.assert_array_equal(layer(INPUTS, training=True), again)
    assert np.all(layer.moving_mean != before)


def test_bfloat16_is_normalised_with_statistics_in_float32(has_onednn):
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        layer = built(BatchNorm)
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")
    inputs = tf.cast(INPUTS, tf.bfloat16)
    outputs, *_, mean, _ = outputs_gradients_and_averages(layer, True, inputs)
    in_float32, *_, expected, _ = outputs_gradients_and_averages(
        built(BatchNorm), True, tf.cast(inputs, tf.float32)
    )
    assert outputs.dtype == tf.bfloat16
    np.testing.assert_allclose(mean, expected, rtol=1e-5)
    np.testing.assert_allclose(tf.cast(outputs, tf.float32), in_float32, rtol=0.01, atol=0.05)


@pytest.mark.parametrize("scale", [True, False], ids=["with gamma", "without"])
@pytest.mark.parametrize("policy, tolerance", [("float32", 1e-5), ("mixed_bfloat16", 2**-8)])
def test_a_kernel_takes_the_batch_norm_behind_it_in(policy, tolerance, scale):
    tf_keras.mixed_precision.set_global_policy(policy)
    try:
        layer = built(BatchNorm, scale=scale)
        convolution = tf_keras.layers.Conv2D(3, 3, use_bias=False, kernel_initializer="glorot_normal")
        convolution.build(INPUTS.shape)
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")
    (kernel,) = convolution.get_weights()  # float32 under either policy
    expected = built(BatchNorm, scale=scale)(tf.nn.conv2d(INPUTS, kernel, 1, "SAME"))
    folded, offset = layer.folded_into(tf.constant(kernel))
    assert {folded.dtype.name, offset.dtype.name} == {layer.compute_dtype}
    found = tf.nn.conv2d(INPUTS, tf.cast(folded, tf.float32), 1, "SAME") + tf.cast(offset, tf.float32)
    magnitude = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * magnitude)


def traced(layer, training=True):
    @tf.function
    def run(inputs):
        with tf.GradientTape() as tape:
            outputs = layer(inputs, training=training)
        return tape.gradient(outputs, layer.gamma)

    return {operation.type for operation in run.get_concrete_function(INPUTS).graph.get_operations()}


def test_training_traces_no_zeros_for_what_nothing_depends_on(monkeypatch):
    # With oneDNN and on GPUs the third version has quick ways of its own, in inference TensorFlow's fusing.
    monkeypatch.setattr(batch_norm, "has_onednn", lambda: False)
    layer = built(BatchNorm)
    types = traced(layer)
    assert {"FusedBatchNorm", "FusedBatchNormGrad"} < types and "ZerosLike" not in types
    assert "FusedBatchNormV3" in traced(layer, training=False)
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: [kind])
    assert {"FusedBatchNormV3", "ZerosLike"} < traced(layer)
    monkeypatch.undo()
    monkeypatch.setattr(batch_norm, "has_onednn", lambda: True)
    assert {"FusedBatchNormV3", "ZerosLike"} < traced(layer)

"""Classifiers and backbones of every format, from files that the projects behind them write themselves."""

import re
from functools import cache, partial

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from official.vision.modeling import backbones
from slim_process import graph_session, import_slim, slim_process
from whole_models import backbone_of, build

from detector.builder import build_model
from detector.component import child_layers
from detector.config import validate
from detector.feature_extractors import inception_v2, inception_v3, resnet
from detector.weights import model_garden
from detector.weights.importing import import_weights, model_of
from detector.weights.source import Source, WeightsError

NARROW = {"depth_multiplier": 0.1, "min_depth": 4}


@pytest.fixture(scope="module")
def models():
    return cache(build)


def relative_error(actual, expected):
    return np.linalg.norm(np.asarray(actual) - expected) / np.linalg.norm(expected)


def randomise(variables):
    """Values of their own for what initializers leave at 0 and 1, so that an exchange shows."""
    rng = np.random.RandomState(0)
    for variable in variables:
        if "variance" in variable.name or "gamma" in variable.name:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif len(variable.shape) == 1:
            variable.assign(rng.normal(0.0, 0.1, variable.shape))


def images(side=97):
    return np.random.RandomState(0).uniform(0, 255, (1, side, side, 3)).astype(np.float32)


def run_stages(model, features, skip=()):
    """Outputs by stage of the feature extractor and the tower, one after the other."""
    outputs = {}
    for component in (model.feature_extractor, model.box_classifier.tower):
        for name, stage in component.stages.items():
            if name not in skip:
                features = outputs[name] = stage(features)
    return outputs


# ---- Keras applications


@pytest.fixture(scope="module")
def keras_resnet50():
    """Keras's network without its classifier."""
    return tf_keras.applications.ResNet50(weights=None, include_top=False)


def test_keras_applications_compute_the_same(models, keras_resnet50, tmp_path):
    theirs = keras_resnet50
    randomise(theirs.variables)
    path = tmp_path / "resnet50.h5"
    theirs.save(path)
    model = models("resnet50", "keras")
    report = import_weights(model, path)
    assert set(report.restored) == backbone_of(model)
    assert not report.left
    assert model_of(path) == ({"feature_extractor": {"type": "resnet50", "topology": "keras"}}, [])

    names = {"conv1": "conv1_relu", "pool1": "pool1_pool"}
    names |= {f"conv{i}": f"conv{i}_block{blocks}_out" for i, blocks in ((2, 3), (3, 4), (4, 6), (5, 3))}
    expected = tf_keras.Model(
        theirs.input, {ours: theirs.get_layer(name).output for ours, name in names.items()}
    )(tf_keras.applications.resnet.preprocess_input(images(224).copy()))
    ours = run_stages(
        model, resnet.preprocess(images(224)), skip=("pool1", "conv2", "conv3", "conv4", "conv5")
    )
    assert relative_error(ours["conv1"], expected["conv1"]) < 1e-5
    # Keras pads the pool by a pixel on every side, the Object Detection API "SAME": from there on again.
    for name, output in run_stages(model, expected["pool1"], skip=("conv1", "pool1")).items():
        assert relative_error(output, expected[name]) < 1e-5, name


def test_the_classifier_of_a_keras_application_is_left(models, keras_resnet50, tmp_path):
    pooled = tf_keras.layers.GlobalAveragePooling2D(name="avg_pool")(keras_resnet50.output)
    scores = tf_keras.layers.Dense(7, name="predictions")(pooled)
    path = tmp_path / "resnet50.h5"
    tf_keras.Model(keras_resnet50.input, scores).save_weights(path)
    model = models("resnet50", "keras")
    report = import_weights(model, path)
    assert set(report.restored) == backbone_of(model)
    assert set(report.left) == {"predictions/kernel", "predictions/bias"}
    assert model_of(path) == ({"feature_extractor": {"type": "resnet50", "topology": "keras"}}, [])


def test_keras_epsilon_is_folded_into_small_variances(models, keras_resnet50, tmp_path):
    theirs = keras_resnet50
    theirs.get_layer("conv1_bn").moving_variance.assign(np.full(64, 1e-6))
    theirs.save_weights(tmp_path / "resnet50.h5")
    model = models("resnet50", "keras")
    import_weights(model, tmp_path / "resnet50.h5")
    variance = model.variables_by_path["feature_extractor/conv1/BatchNorm/moving_variance"].numpy()
    np.testing.assert_allclose(variance + 1e-5, 1e-6 + 1.001e-5, rtol=1e-6)


# ---- Model Garden


@pytest.fixture(scope="module")
def garden_resnet50():
    """Model Garden's network, in the variant that detectors take."""
    return backbones.ResNet(50, norm_epsilon=1e-5)


@pytest.fixture(scope="module")
def garden_checkpoint(garden_resnet50, tmp_path_factory):
    """A checkpoint of it, with values of its own."""
    randomise(garden_resnet50.variables)
    whole = tf.train.Checkpoint(backbone=garden_resnet50, head=tf_keras.layers.Dense(1))
    return whole.save(tmp_path_factory.mktemp("garden") / "ckpt")


def test_model_garden_backbones_compute_the_same(models, garden_resnet50, garden_checkpoint):
    theirs, path = garden_resnet50, garden_checkpoint
    model = models("resnet50", "garden")
    report = import_weights(model, path, "classification")
    assert set(report.restored) == backbone_of(model)
    assert set(report.left) == {"_CHECKPOINTABLE_OBJECT_GRAPH", "save_counter/.ATTRIBUTES/VARIABLE_VALUE"}
    assert model_of(path)[0] == {"feature_extractor": {"type": "resnet50", "topology": "garden"}}

    pool = next(layer for layer in theirs.layers if isinstance(layer, tf_keras.layers.MaxPool2D))
    both = tf_keras.Model(theirs.input, {"conv1": pool.input, "pool1": pool.output, **theirs.output})
    pixels = images(128)
    mean, deviation = (np.float32(values) * 255 for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = both((pixels - mean) / deviation)
    conv1 = model.feature_extractor.conv1(resnet.preprocess(pixels))
    # Beyond the edge there is 0, which stands for two slightly different greys.
    assert relative_error(conv1[:, 2:-2, 2:-2], expected["conv1"][:, 2:-2, 2:-2]) < 1e-5
    assert relative_error(conv1, expected["conv1"]) < 1e-2
    np.testing.assert_allclose(model.feature_extractor.pool1(expected["conv1"]), expected["pool1"])
    outputs = run_stages(model, expected["pool1"], skip=("conv1", "pool1"))
    for level in (2, 3, 4, 5):
        assert relative_error(outputs[f"conv{level}"], expected[str(level)]) < 1e-5, level


def test_model_garden_variants_and_other_topologies_are_refused(models, garden_checkpoint):
    with pytest.raises(
        WeightsError, match=r"holds resnet50 \(garden topology\), but the model is resnet50 \(keras"
    ):
        import_weights(models("resnet50", "keras"), garden_checkpoint)
    # As `backbones.ResNet(50, stem_type="v1")` has it: three convolutions in the place of the first one.
    layer = "backbone/layer_with_weights-{}/{}kernel/.ATTRIBUTES/VARIABLE_VALUE"
    shapes = {layer.format(6 + block, "_conv3/"): (1, 1, 64, 256) for block in range(16)}
    source = Source(
        "stem", "tensorflow", {layer.format(0, ""): (3, 3, 3, 32), **shapes}, lambda _: np.zeros(1)
    )
    with pytest.raises(
        WeightsError,
        match=r"16 bottleneck blocks behind a first kernel of \(3, 3, 3, 32\); expected 16 \(resn",
    ):
        model_garden.plan(models("resnet50", "garden"), source, "classification")


# ---- slim


def save_slim(network, prefix, pixels):
    """Save slim's classifier with values of its own; return the end points of the features."""
    compat = tf.compat.v1
    with tf.Graph().as_default():
        compat.set_random_seed(0)
        if network == "inception_v2":
            tf_slim, net, inception = import_slim("inception_v2", "inception")
            with tf_slim.arg_scope(inception.inception_v2_arg_scope()):
                _, ends = net.inception_v2(tf.constant(pixels), num_classes=5, is_training=False)
            outputs = {name: ends[name] for name in ("Mixed_4e", "Mixed_5c")}
        elif network == "inception_v3":
            tf_slim, net = import_slim("inception_v3")
            with tf_slim.arg_scope(net.inception_v3_arg_scope()):
                _, ends = net.inception_v3(tf.constant(pixels), num_classes=5, is_training=False, **NARROW)
            outputs = {name: ends[name] for name in ("Conv2d_4a_3x3", "Mixed_5d", "Mixed_6e", "Mixed_7c")}
        else:
            tf_slim, net, parts = import_slim("resnet_v1", "resnet_utils")
            with tf_slim.arg_scope(parts.resnet_arg_scope()):
                _, ends = net.resnet_v1_50(
                    tf.constant(pixels), num_classes=5, is_training=False, output_stride=16
                )
            # Not block4, which is dilated here and not in a detector's tower.
            outputs = {"conv4": ends["resnet_v1_50/block3"]}
            compat.get_variable("resnet_v1_50/mean_rgb", [3])
        compat.train.create_global_step()
        rng = np.random.RandomState(0)
        with graph_session() as session:
            session.run(compat.global_variables_initializer())
            for variable in compat.global_variables():
                if re.search("(beta|moving_mean|biases)$", variable.op.name):
                    variable.load(rng.normal(0.0, 0.1, variable.shape).astype(np.float32), session)
                elif re.search("(gamma|moving_variance)$", variable.op.name):
                    variable.load(rng.uniform(0.5, 1.5, variable.shape).astype(np.float32), session)
            compat.train.Saver().save(session, str(prefix), write_meta_graph=False)
            return session.run(outputs)


@pytest.fixture(scope="module")
def slim():
    with slim_process() as call:
        yield partial(call, save_slim)


@pytest.mark.slow
def test_slim_inception_v2_computes_the_same(models, slim, tmp_path):
    pixels = images()
    expected = slim("inception_v2", tmp_path / "inception_v2.ckpt", inception_v2.preprocess(pixels).numpy())
    model = models("inception_v2")
    report = import_weights(model, tmp_path / "inception_v2.ckpt")
    assert set(report.restored) == backbone_of(model)
    assert set(report.left) == {
        "global_step",
        "InceptionV2/Logits/Conv2d_1c_1x1/weights",
        "InceptionV2/Logits/Conv2d_1c_1x1/biases",
    }
    # Slim's classifier has no scale in its batch norm, and in its first layer a bias and no batch norm.
    names = {name for name, _ in tf.train.list_variables(str(tmp_path / "inception_v2.ckpt"))}
    assert not any(name.endswith("gamma") for name in names)
    assert "InceptionV2/Conv2d_1a_7x7/biases" in names
    np.testing.assert_array_equal(
        model.variables_by_path["feature_extractor/Mixed_3b/Branch_0/Conv2d_0a_1x1/BatchNorm/gamma"], 1.0
    )
    outputs = run_stages(model, inception_v2.preprocess(pixels))
    for name, output in expected.items():
        assert relative_error(outputs[name], output) < 1e-5, name


@pytest.mark.slow
def test_slim_inception_v3_computes_the_same(slim, tmp_path):
    pixels = images(139)
    path = tmp_path / "inception_v3.ckpt"
    expected = slim("inception_v3", path, inception_v3.preprocess(pixels).numpy())
    assert model_of(path)[0] == {"feature_extractor": {"type": "inception_v3"}}
    section = {"feature_extractor": {"type": "inception_v3", **NARROW}}
    model = build_model(validate({"model": section}, "test").model, ("a", "b"))
    report = import_weights(model, path)
    assert set(report.restored) == backbone_of(model)
    assert len(set(report.restored.values())) == len(report.restored)
    assert {name.split("/")[1] for name in report.left if "/" in name} == {"Logits", "AuxLogits"}
    # The classifier pads nothing, as our layers do where they are asked.
    features = inception_v3.preprocess(pixels)
    for component, make in (
        (model.feature_extractor, inception_v3.first_stage),
        (model.box_classifier.tower, inception_v3.tower),
    ):
        unpadded = make(**NARROW, padding="valid")
        unpadded(features)
        for ours, theirs in zip(unpadded.variables, component.variables, strict=True):
            ours.assign(theirs)
        for name, stage in unpadded.stages.items():
            features = stage(features)
            if name in expected:
                assert relative_error(features, expected.pop(name)) < 1e-5, name
    assert not expected


@pytest.mark.slow
def test_slim_resnet_computes_the_same(models, slim, tmp_path):
    pixels = images()
    expected = slim("resnet50", tmp_path / "resnet_v1_50.ckpt", resnet.preprocess(pixels).numpy())
    model = models("resnet50", "slim")
    report = import_weights(model, tmp_path / "resnet_v1_50.ckpt", "classification")
    assert set(report.restored) == backbone_of(model)
    assert set(report.left) == {
        *("global_step", "resnet_v1_50/mean_rgb", "resnet_v1_50/logits/weights", "resnet_v1_50/logits/biases")
    }
    outputs = run_stages(model, resnet.preprocess(pixels))
    assert relative_error(outputs["conv4"], expected["conv4"]) < 1e-5
    np.testing.assert_array_equal(
        model.variables_by_path["box_classifier/tower/conv5/block2/conv3/kernel"],
        tf.train.load_variable(
            str(tmp_path / "resnet_v1_50.ckpt"), "resnet_v1_50/block4/unit_2/bottleneck_v1/conv3/weights"
        ),
    )


def test_every_topology_is_told_from_the_layers(models):
    """The same variables, but the sizes are halved elsewhere: an import must not mix them up."""
    strides = {}
    for topology in ("keras", "slim", "garden"):
        stages = models("resnet50", topology).feature_extractor.stages
        strides[topology] = [
            (block.conv1.strides[0], block.conv2.strides[0])
            for name in ("conv2", "conv3", "conv4")
            for _, block in child_layers(stages[name])
        ]
    one, two = (1, 1), (1, 2)
    assert strides["slim"] == [one, one, two, one, one, one, two, *[one] * 6]
    assert strides["garden"] == [*[one] * 3, two, *[one] * 3, two, *[one] * 5]
    assert strides["keras"] == [*[one] * 3, (2, 1), *[one] * 3, (2, 1), *[one] * 5]

"""Inception v3 and Inception-ResNet v2: the networks, their weights' files, and freezing in them."""

import importlib
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from conftest import CLASS_NAMES, TINY, tiny_batch, values_of

from detector.batch_norm import BatchNorm
from detector.builder import build_model
from detector.component import named_variables, own_variables, walk_layers
from detector.config import ConfigError, load, override
from detector.feature_extractors import inception_resnet_v2, inception_v3
from detector.freeze import resolve, rows_of
from detector.selectors import select
from detector.train import fit
from detector.weights import keras_inception
from detector.weights.importing import import_weights, model_of
from detector.weights.object_detection_api import api_names
from detector.weights.source import Source, WeightsError

NETWORKS = {"inception_v3": inception_v3, "inception_resnet_v2": inception_resnet_v2}
KERAS = {"inception_v3": "InceptionV3", "inception_resnet_v2": "InceptionResNetV2"}
WIDTH = {"depth_multiplier": 0.1, "min_depth": 4}
STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_3a_3x3", "Conv2d_3b_1x1")
STEM = (*STEM, "Conv2d_4a_3x3", "MaxPool_5a_3x3")
# Our stages behind the stem, and the layers of Keras's network that end them.
ENDS = {
    "inception_v3": dict(
        zip(
            [f"Mixed_{name}" for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")],
            [f"mixed{number}" for number in range(11)],
            strict=True,
        )
    ),
    "inception_resnet_v2": {
        "Mixed_5b": "mixed_5b",
        "Repeat": "block35_10_ac",
        "Mixed_6a": "mixed_6a",
        "Repeat_1": "block17_20_ac",
        "Mixed_7a": "mixed_7a",
        "Repeat_2": "block8_9_ac",
        "Conv2d_7b_1x1": "conv_7b_ac",
    },
}
TOWER = {
    "inception_v3": ["Mixed_7a", "Mixed_7b", "Mixed_7c"],
    "inception_resnet_v2": ["Mixed_7a", "Repeat_2", "Block8", "Conv2d_7b_1x1"],
}
FIRST = {name: [*STEM, *(stage for stage in ends if stage not in TOWER[name])] for name, ends in ENDS.items()}
SCOPES = {"inception_v3": "InceptionV3", "inception_resnet_v2": "InceptionResnetV2"}


class NarrowLayers:
    """`tf_keras.layers` whose convolutions have as many filters as ours of `WIDTH`."""

    def __getattr__(self, name):
        return getattr(tf_keras.layers, name)

    def Conv2D(self, filters, *args, use_bias, **kwargs):  # noqa: N802
        if not use_bias:  # a convolution with a bias has the width of the features it is added to
            filters = max(int(filters * WIDTH["depth_multiplier"]), WIDTH["min_depth"])
        return tf_keras.layers.Conv2D(filters, *args, use_bias=use_bias, **kwargs)


def keras_network(network, **arguments):
    """Keras's network with values of its own in every variable, the same every time."""
    tf_keras.utils.set_random_seed(0)
    theirs = getattr(tf_keras.applications, KERAS[network])(weights=None, **arguments)
    rng = np.random.RandomState(0)
    for variable in theirs.variables:
        if "variance" in variable.name:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif len(variable.shape) == 1:
            variable.assign(rng.normal(0.0, 0.1, variable.shape))
    return theirs


def components_of(network, **arguments):
    """The two components, by the paths that they have in a detector."""
    module = NETWORKS[network]
    return {
        "feature_extractor": module.first_stage(**arguments),
        "box_classifier/tower": module.tower(**arguments),
    }


def run_stages(components, features):
    outputs = {}
    for component in components.values():
        for name, stage in component.stages.items():
            features = outputs[name] = stage(features)
    return outputs


def assert_stages_equal(network, theirs, values, **width):
    """Compare Keras's network with ours in its published form, without padding, stage by stage."""
    images = np.random.RandomState(1).uniform(-1.0, 1.0, (1, 139, 139, 3)).astype(np.float32)
    pools = [layer for layer in theirs.layers if isinstance(layer, tf_keras.layers.MaxPool2D)]
    ends = {"MaxPool_3a_3x3": pools[0].output, "MaxPool_5a_3x3": pools[1].output}
    ends |= {stage: theirs.get_layer(name).output for stage, name in ENDS[network].items()}
    expected = tf_keras.Model(theirs.input, ends)(images)
    components = components_of(network, padding="valid", **width)
    run_stages(components, tf.zeros([1, 75, 75, 3]))
    for path, variable in named_variables(components).items():
        variable.assign(values[path])
    outputs = run_stages(components, images)
    for name, features in expected.items():
        assert outputs[name].shape == features.shape
        error = np.linalg.norm(outputs[name] - features) / np.linalg.norm(features)
        assert error < 1e-5, name


@pytest.fixture(
    scope="module", params=["inception_v3", pytest.param("inception_resnet_v2", marks=pytest.mark.slow)]
)
def imported(request, tmp_path_factory):
    """A narrow detector with the weights of a narrow Keras network, and both."""
    network = request.param
    path = tmp_path_factory.mktemp("keras") / "weights.h5"
    keras_module = importlib.import_module(f"tf_keras.src.applications.{network}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras_module, "VersionAwareLayers", NarrowLayers)
        patch.setattr(keras_module, "layers", NarrowLayers())
        theirs = keras_network(network, include_top=True, classes=7, input_shape=(139, 139, 3))
    theirs.save_weights(path)
    config = override(TINY, [f"model.feature_extractor.type={network}", "train.steps=1"], "tiny")
    model = build_model(config.model, CLASS_NAMES)
    report = import_weights(model, path)
    values = values_of(model.variables_by_path)
    return SimpleNamespace(
        network=network, config=config, theirs=theirs, path=path, model=model, report=report, values=values
    )


def test_a_file_of_keras_is_restored_whole_and_computes_the_same(imported):
    backbone = {
        path for path in imported.values if path.startswith(("feature_extractor/", "box_classifier/tower/"))
    }
    assert set(imported.report.restored) == backbone
    assert set(imported.report.restored.values()) | set(imported.report.left) == {
        variable.name.removesuffix(":0") for variable in imported.theirs.variables
    }
    assert len(set(imported.report.restored.values())) == len(backbone)
    assert set(imported.report.left) == {"predictions/kernel", "predictions/bias"}
    assert model_of(imported.path) == ({"feature_extractor": {"type": imported.network}}, [])
    assert_stages_equal(imported.network, imported.theirs, imported.values, **WIDTH)


@pytest.mark.parametrize(
    ("convolutions", "layers", "network"), [(94, 188, "inception_v3"), (244, 448, "inception_resnet_v2")]
)
def test_a_file_of_another_network_or_with_other_layers_is_refused(imported, convolutions, layers, network):
    shapes = {f"conv2d_{i}/kernel": (1, 1, 1, 1) for i in range(convolutions)}
    source = Source("weights.h5", "h5", shapes, lambda name: np.zeros(1))
    message = (
        f"holds {network}, but the model is {imported.network}: set model.feature_extractor.type={network}"
    )
    if network == imported.network:
        message = f"has {convolutions} layers with weights below the classifier; expected {layers}"
    with pytest.raises(WeightsError, match=message):
        keras_inception.plan(imported.model, source, "classification")


def test_stages_are_slims_and_features_lie_on_the_anchor_grid(imported):
    model = imported.model
    assert list(model.feature_extractor.stages) == FIRST[imported.network]
    assert list(model.box_classifier.tower.stages) == TOWER[imported.network]
    # A cell for every 16 pixels begun, as AnchorGrid has; the tower's reduction leaves its crops unpadded.
    features = model.feature_extractor(tf.zeros([1, 65, 96, 3]))
    assert features.shape[1:3] == (5, 6)
    assert model.box_classifier.tower(tf.zeros([1, 7, 8, features.shape[-1]])).shape[1:3] == (3, 3)


def test_batch_norms_have_no_gamma_and_the_published_settings(imported):
    norms = [
        layer
        for component in components_of(imported.network).values()
        for _, layer in walk_layers(component)
        if isinstance(layer, BatchNorm)
    ]
    assert {(norm.scale, norm.momentum, norm.epsilon) for norm in norms} == {(False, 0.9997, 0.001)}
    assert not any(path.endswith("gamma") for path in imported.values)


def test_selectors_reach_stages_blocks_and_old_names(imported):
    model, network = imported.model, imported.network
    rows = rows_of(model.components, api_names=api_names(model))

    def stages(selector):
        selected = select(selector, rows)
        return list(dict.fromkeys(row.stage.partition("/")[2] for row in rows if row.path in selected))

    with_variables = [stage for stage in FIRST[network] if not stage.startswith("MaxPool")]
    upto = with_variables.index("Mixed_6a") + 1
    assert stages("feature_extractor[:Mixed_6a]") == with_variables[:upto]
    assert stages("box_classifier/tower[Mixed_7a:]") == [f"tower/{stage}" for stage in TOWER[network]]
    assert stages(f"re:^FirstStageFeatureExtractor/{SCOPES[network]}/Mixed_5.*") == [
        stage for stage in with_variables if stage.startswith("Mixed_5")
    ]
    blocks, expected = {
        "inception_v3": ("feature_extractor/Mixed_6b[:Branch_1]", {"Branch_0", "Branch_1"}),
        "inception_resnet_v2": ("feature_extractor/Repeat[:block35_2]", {"block35_1", "block35_2"}),
    }[network]
    assert {path.split("/")[2] for path in select(blocks, rows)} == expected
    first_layers = model.feature_extractor.layers[:100]
    first = {id(variable) for layer in first_layers for variable in own_variables(layer).values()}
    variables = model.variables_by_path
    assert {id(variables[path]) for path in select("feature_extractor[:100]", rows)} == first


def test_old_names_are_those_of_slim_within_the_detectors_scopes(imported):
    names = api_names(imported.model)
    assert len(set(names.values())) == len(names)
    first, second = (
        f"{half}StageFeatureExtractor/{SCOPES[imported.network]}" for half in ("First", "Second")
    )
    expected = {
        "inception_v3": {
            f"{first}/Conv2d_1a_3x3/weights",
            f"{first}/Mixed_5c/Branch_1/Conv_1_0c_5x5/BatchNorm/beta",
            f"{first}/Mixed_6a/Branch_0/Conv2d_1a_1x1/weights",
            f"{second}/Mixed_7b/Branch_1/Conv2d_0b_3x1/weights",
            f"{second}/Mixed_7c/Branch_1/Conv2d_0c_3x1/BatchNorm/moving_mean",
        },
        "inception_resnet_v2": {
            f"{first}/Mixed_5b/Branch_0/Conv2d_1x1/weights",
            f"{first}/Repeat/block35_10/Branch_2/Conv2d_0c_3x3/BatchNorm/moving_variance",
            f"{first}/Repeat_1/block17_20/Conv2d_1x1/biases",
            f"{second}/Repeat/block8_9/Branch_1/Conv2d_0c_3x1/weights",
            f"{second}/Block8/Conv2d_1x1/weights",
            f"{second}/Conv2d_7b_1x1/BatchNorm/beta",
        },
    }[imported.network]
    assert expected <= set(names.values())


@pytest.mark.usefixtures("eagerly")
def test_a_step_moves_what_the_plan_trains_and_nothing_else(imported):
    model = imported.model
    plan = resolve(
        rows_of(model.components, restored=model.variables_by_path),
        ["feature_extractor[:Mixed_6a]"],
        batch_norm="fixed",  # batch statistics would take the last residual block's bias out again
    )
    before = values_of(model.variables_by_path)
    result = fit(model, plan, iter([tiny_batch(0)]), imported.config)
    after = values_of(model.variables_by_path)
    changed = {path for path in before if before[path].tobytes() != after[path].tobytes()}
    expected = set(plan.trained)
    assert changed == expected, f"still {sorted(expected - changed)}, moved {sorted(changed - expected)}"
    assert result.proof.holds


@pytest.mark.parametrize("network", NETWORKS)
def test_crops_smaller_than_the_towers_kernels_are_refused(network):
    settings = [f"model.feature_extractor.type={network}", "model.box_classifier.pool_size=2"]
    load(None, [*settings, "model.box_classifier.crop_size=6"])
    with pytest.raises(
        ConfigError, match=r"at least 3x3 cells, but crop_size 5, .* make 2x2; raise box_class"
    ):
        load(None, [*settings, "model.box_classifier.crop_size=5"])


@pytest.mark.parametrize("network", NETWORKS)
def test_a_multiplier_that_is_not_positive_is_refused(network):
    for part in (NETWORKS[network].first_stage, NETWORKS[network].tower):
        with pytest.raises(ValueError, match="depth_multiplier must be above 0, got 0"):
            part(depth_multiplier=0)


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_the_published_network_in_its_full_width(network, tmp_path):
    theirs = keras_network(network, include_top=False)
    theirs.save(tmp_path / "model.h5")
    section, _ = model_of(tmp_path / "model.h5")
    model = build_model(override({"model": section}, (), "test").model, CLASS_NAMES)
    report = import_weights(model, tmp_path / "model.h5")
    assert report.left == {}
    assert len(report.restored) == len(theirs.variables)
    assert_stages_equal(network, theirs, values_of(model.variables_by_path))

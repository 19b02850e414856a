"""Detectors of the TF1 and TF2 model zoos, by the names and shapes of what they publish."""

import importlib
import importlib.util
import re
from functools import cache

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from whole_models import backbone_of, build

from detector.weights import tf2_zoo
from detector.weights.importing import import_weights, model_of
from detector.weights.object_detection_api import api_names
from detector.weights.source import Source

INCEPTION_LIST = "faster_rcnn_inception_v2_coco_2018_01_28.tsv"
RESNET_LIST = "faster_rcnn_resnet50_v1_640x640_coco17_tpu-8.tsv"


@pytest.fixture(scope="module")
def models():
    return cache(build)


@pytest.fixture(scope="module")
def keras_resnet50():
    """Keras's network without its classifier."""
    return tf_keras.applications.ResNet50(weights=None, include_top=False)


def oracle_module(shared):
    spec = importlib.util.spec_from_file_location(
        "seeded_checkpoint", shared / "oracle" / "seeded_checkpoint.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tf1_zoo_list_of_inception_v2_is_restored_whole(shared, tmp_path):
    oracle = oracle_module(shared)
    tsv = shared / "oracle" / "zoo" / INCEPTION_LIST
    oracle.main(str(tsv), str(tmp_path / "model.ckpt"))
    section, names = model_of(tmp_path / "model.ckpt")
    assert section["feature_extractor"] == {"type": "inception_v2"}
    assert names == [str(number) for number in range(1, 91)]
    model = build("inception_v2", None, names)
    report = import_weights(model, tmp_path / "model.ckpt")
    assert (report.fresh, report.left) == ({}, {})
    assert report.restored == api_names(model)
    variables = model.variables_by_path
    for path, name in report.restored.items():
        np.testing.assert_array_equal(
            variables[path], oracle.seeded_value(name, tuple(variables[path].shape))
        )


@pytest.mark.parametrize("depth", [50, pytest.param(101, marks=pytest.mark.slow)])
def test_tf1_zoo_resnets_are_restored_whole(models, tmp_path, depth):
    model = models(f"resnet{depth}", "slim")
    names = api_names(model)
    first = "FirstStageFeatureExtractor/resnet_v1_{}/block{}/unit_{}/bottleneck_v1/conv3/weights"
    assert first.format(depth, 3, {50: 6, 101: 23}[depth]) in names.values()
    values = {
        name: variable
        for (path, variable), name in zip(model.variables_by_path.items(), names.values(), strict=True)
    }
    unused = f"FirstStageFeatureExtractor/resnet_v1_{depth}/block4/unit_1/bottleneck_v1/conv1/weights"
    saver = tf.compat.v1.train.Saver(
        {**values, unused: tf.Variable(tf.zeros(1)), "global_step": tf.Variable(1)}
    )
    saver.save(None, str(tmp_path / "model.ckpt"), write_meta_graph=False)
    report = import_weights(model, tmp_path / "model.ckpt")
    assert report.restored == names
    assert set(report.left) == {unused, "global_step"}


@pytest.mark.parametrize("shared_box", [True, False])
def test_the_tf2_zoo_list_of_resnet50_is_restored_whole(shared, tmp_path, monkeypatch, shared_box):
    """Its names and shapes alone; tests/test_compare_reference.py computes with values of such a file."""
    oracle = oracle_module(shared)
    tsv = (shared / "oracle" / "zoo" / RESNET_LIST).read_text()
    if not shared_box:
        tsv = re.sub(r"(_box_encoder_layers/1/\S+\t(?:2048,)?)4\n", r"\g<1>360\n", tsv)
    (tmp_path / "list.tsv").write_text(tsv)
    shapes = oracle.read_variables(tmp_path / "list.tsv")
    source = Source("ckpt-0", "tensorflow", shapes, lambda name: np.zeros(shapes[name], np.float32))
    monkeypatch.setattr("detector.weights.importing.open_source", lambda path: source)
    section, names = model_of("ckpt-0")
    assert section == {
        "feature_extractor": {"type": "resnet50", "topology": "keras"},
        "box_classifier": {"share_box_across_classes": shared_box},
    }
    model = build("resnet50", "keras", names, share_box_across_classes=shared_box)
    report = import_weights(model, "ckpt-0")
    assert (report.fresh, report.left) == ({}, {})
    assert len(set(report.restored.values())) == len(report.restored) == 275
    fine_tuned = build("resnet50", "keras", ["cat"], share_box_across_classes=shared_box)
    report = import_weights(fine_tuned, "ckpt-0")
    leaves = ("kernel", "bias")
    fresh = {f"box_classifier/predictor/class_scores/{leaf}" for leaf in leaves}
    if not shared_box:
        # One class has one box, so only its number tells that the file's boxes are a class's own.
        fresh |= {f"box_classifier/predictor/box_refinement/{leaf}" for leaf in leaves}
    assert set(report.fresh) == fresh


@pytest.mark.parametrize(
    "depth", [50, *(pytest.param(depth, marks=pytest.mark.slow) for depth in (101, 152))]
)
def test_tf2_zoo_numbers_layers_as_keras_does(models, keras_resnet50, depth):
    theirs = keras_resnet50
    if depth != 50:
        theirs = getattr(tf_keras.applications, f"ResNet{depth}")(weights=None, include_top=False)
    last = {50: "conv4_block6_out", 101: "conv4_block23_out", 152: "conv4_block36_out"}[depth]
    half = tf_keras.Model(theirs.input, theirs.get_layer(last).output)
    numbered = [layer for layer in half.layers if layer.weights]
    model = models(f"resnet{depth}", "keras")
    slots = {"shortcut": 0, "conv1": 1, "conv2": 2, "conv3": 3}
    first = "model/_feature_extractor_for_proposal_features/layer_with_weights-"
    checked = set()
    for path, key in tf2_zoo.key_names(model).items():
        if not path.startswith("feature_extractor/"):
            continue
        _, stage, *rest = path.split("/")
        name = stage if stage == "conv1" else f"{stage}_{rest[0]}_{slots[rest[1]]}"
        number = int(key.removeprefix(first).split("/")[0])
        assert numbered[number].name == name + ("_bn" if "BatchNorm" in path else "_conv"), path
        checked.add(number)
    assert checked == set(range(len(numbered)))


def test_tf2_backbones_are_restored_for_classification(models, tmp_path):
    """The numbering runs through both halves in the ResNet that the API saves whole."""
    donor = models("resnet50", "keras")
    layers = {}
    number = 0
    root = tf.Module()
    names = tf2_zoo.key_names(donor)
    backbone = {path: names[path] for path in backbone_of(donor)}
    halves = ["_feature_extractor_for_proposal_features", "_feature_extractor_for_box_classifier_features"]
    offset = {halves[0]: 0, halves[1]: 86}
    variables = donor.variables_by_path
    for path, key in backbone.items():
        _, half, layer, leaf = key.split("/")
        number = offset[half] + int(layer.removeprefix("layer_with_weights-"))
        setattr(layers.setdefault(number, tf.train.Checkpoint()), leaf, variables[path])
    for number, layer in layers.items():
        setattr(root, f"layer_with_weights-{number}", layer)
    path = tf.train.Checkpoint(feature_extractor=root).save(tmp_path / "ckpt")
    report = import_weights(donor, path)
    assert report.format == "Object Detection API, TF2 backbone"
    assert set(report.restored) == set(backbone)
    assert len(report.left) == 2

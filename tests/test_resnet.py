import importlib.util
from collections import Counter
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from slim_process import graph_session, import_slim, slim_process

from detector.batch_norm import BatchNorm
from detector.component import child_layers, named_variables, walk_layers
from detector.feature_extractors import resnet
from detector.resizer import KeepAspectRatioResizer

ORACLE = Path(__file__).parents[2] / "shared" / "oracle"
needs_oracle = pytest.mark.skipif(not ORACLE.exists(), reason="needs ../shared/oracle")


def build(**arguments):
    """First stage and tower, built."""
    components = {"first_stage": resnet.first_stage(**arguments), "tower": resnet.tower(**arguments)}
    features = tf.zeros((1, 64, 64, 3))
    for component in components.values():
        features = component(features)
    return components


@pytest.fixture(scope="module")
def initial():
    """Return a function from a topology to its components of seed 0; tests leave their kernels alone."""

    @cache
    def built(topology):
        tf_keras.utils.set_random_seed(0)
        return build(topology=topology)

    return built


def relative_error(actual, expected):
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


def randomise(variables):
    """Random batch norm variables, so that a forgotten or swapped one shows; kernels stay as initialised."""
    rng = np.random.RandomState(0)
    for path, variable in variables.items():
        if path.endswith(("gamma", "moving_variance")):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif path.endswith(("beta", "moving_mean")):
            variable.assign(rng.normal(0.0, 0.1, variable.shape))


def random_images():
    # One even and one odd side: "SAME" padding differs between them, fixed padding does not.
    return np.random.RandomState(0).uniform(-100, 100, (2, 96, 117, 3)).astype(np.float32)


def assert_moved_statistics_only(variables, before, expected_after, training):
    for path, variable in variables.items():
        np.testing.assert_allclose(variable, expected_after[path], rtol=1e-4, atol=1e-5, err_msg=path)
        moved = not np.array_equal(variable, before[path])
        assert moved == (training and "moving_" in path), path


def keras_variable(model, path):
    """The variable of `tf_keras.applications.ResNet50` that is ours at `path`."""
    _, stage, *block, leaf = path.split("/")
    kind = "conv" if leaf == "kernel" else "bn"
    if stage == "conv1":
        layer = f"conv1_{kind}"
    else:
        number = {"shortcut": 0, "conv1": 1, "conv2": 2, "conv3": 3}[block[1]]
        layer = f"{stage}_{block[0]}_{number}_{kind}"
    return getattr(model.get_layer(layer), leaf)


def test_keras_topology_equals_keras_applications():
    tf_keras.utils.set_random_seed(0)
    components = build(batch_norm_momentum=0.99, batch_norm_epsilon=1.001e-5)
    variables = named_variables(components)
    randomise(variables)
    model = tf_keras.applications.ResNet50(weights=None, include_top=False)  # its biases start at zero
    theirs = {path: keras_variable(model, path) for path in variables}
    assert len({id(variable) for variable in theirs.values()}) == len(variables)
    assert len(model.variables) == len(variables) + sum("bias" in v.name for v in model.variables)
    for path, variable in variables.items():
        theirs[path].assign(variable)
    before = {path: variable.numpy() for path, variable in variables.items()}
    ends = {
        "conv1": "conv1_relu",
        "pool1": "pool1_pool",
        "conv2": "conv2_block3_out",
        "conv3": "conv3_block4_out",
        "conv4": "conv4_block6_out",
        "conv5": "conv5_block3_out",
    }
    outputs = {stage: model.get_layer(name).output for stage, name in ends.items()}
    ended = tf_keras.Model(model.input, outputs)
    for training in (False, True):  # in this order: the first moves nothing
        expected = ended(random_images(), training=training)
        features, compared = tf.constant(random_images()), []
        for component in components.values():
            for name, stage in component.stages.items():
                features = stage(features, training=training)
                compared.append(name)
                assert features.shape == expected[name].shape
                if name == "pool1":
                    # The Object Detection API pads this pool "SAME", Keras by one pixel on every side.
                    features = expected[name]
                assert relative_error(features.numpy(), expected[name].numpy()) < 1e-5, name
        assert compared == list(ends)
        assert_moved_statistics_only(variables, before, theirs, training)


def test_pool_is_padded_same():
    image = np.zeros((1, 4, 4, 1), np.float32)
    image[0, :, :, 0] = np.arange(16).reshape(4, 4)
    pool = resnet.first_stage().stages["pool1"]
    # "SAME" windows of an even size start at pixels 0 and 2 and hang over at the end only.
    np.testing.assert_array_equal(pool(image)[0, :, :, 0], [[10, 11], [14, 15]])


def slim_name(path):
    """The name of the variable at `path` in slim's network, with one scope per component."""
    component, stage, *rest = path.split("/")
    rest = ["weights" if part == "kernel" else part for part in rest]
    if stage == "conv1":
        return "/".join([component, stage, *rest])
    block, *rest = rest
    unit = f"unit_{block.removeprefix('block')}"
    return "/".join([component, f"block{int(stage[-1]) - 1}", unit, "bottleneck_v1", *rest])


def run_slim(images, variables, training):
    """The two halves of slim's ResNet-50 as the Object Detection API's TF1 detectors cut it.

    Returns the outputs by our stage name and, where it is `training`, the variables by slim's name after one
    step's moving average updates.
    """
    tf_slim, network, parts = import_slim("resnet_v1", "resnet_utils")
    with tf.Graph().as_default():
        with tf_slim.arg_scope(parts.resnet_arg_scope()):
            _, end_points = network.resnet_v1_50(
                tf.constant(images),
                is_training=training,
                global_pool=False,
                output_stride=16,
                scope="first_stage",
            )
            unit = {"depth": 2048, "depth_bottleneck": 512, "stride": 1}
            block4 = parts.Block("block4", network.bottleneck, [unit] * 3)
            with (
                tf.compat.v1.variable_scope("tower"),
                tf_slim.arg_scope([tf_slim.batch_norm], is_training=training),
            ):
                tower = parts.stack_blocks_dense(end_points["first_stage/block3"], [block4])
        outputs = {
            "conv1": end_points["first_stage/conv1"],
            "conv2": end_points["first_stage/block1"],
            "conv3": end_points["first_stage/block2"],
            "conv4": end_points["first_stage/block3"],
            "conv5": tower,
        }
        updates = tf.compat.v1.get_collection(tf.compat.v1.GraphKeys.UPDATE_OPS)
        by_name = {
            variable.op.name: variable
            for variable in tf.compat.v1.global_variables()
            # The first stage is slim's whole network, whose own block4 the detectors do not use.
            if not variable.op.name.startswith("first_stage/block4/")
        }
        assert set(variables) == set(by_name)
        with graph_session() as session:
            if training:  # those of slim's own block4, whose moving averages move as well
                session.run(tf.compat.v1.global_variables_initializer())
            assigns = [by_name[name].initializer for name in variables]
            values = zip(assigns, variables.values(), strict=True)
            session.run(assigns, {assign.inputs[1]: value for assign, value in values})
            results, _ = session.run([outputs, updates])
            return results, session.run(by_name) if training else None


@pytest.fixture(scope="module")
def slim():
    with slim_process() as call:
        yield partial(call, run_slim)


@pytest.mark.parametrize("training", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_slim_topology_equals_slims(slim, initial, training):
    components = initial("slim")
    variables = named_variables(components)
    randomise(variables)
    before = {path: variable.numpy() for path, variable in variables.items()}
    values = {slim_name(path): value for path, value in before.items()}
    expected, after = slim(random_images(), values, training)

    features, compared = tf.constant(random_images()), []
    for component in components.values():
        for name, stage in component.stages.items():
            features = stage(features, training=training)
            if name != "pool1":  # slim names no output of it; conv2 shows it
                assert features.shape == expected[name].shape
                assert relative_error(features.numpy(), expected[name]) < 1e-5, name
                compared.append(name)
    assert compared == list(expected)
    after = {path: after[slim_name(path)] for path in variables} if training else before
    assert_moved_statistics_only(variables, before, after, training)


def zoo_names(components):
    """{path: name in the TF2 zoo's checkpoint}, which numbers each half's layers in Keras's order."""
    names = {}
    halves = {"first_stage": "proposal_features", "tower": "box_classifier_features"}
    for component, half in halves.items():
        layers = []  # in Keras's order, one path prefix each
        for stage_name, stage in components[component].stages.items():
            if stage_name == "conv1":
                layers += [f"{component}/conv1", f"{component}/conv1/BatchNorm"]
                continue
            for block_name, block in child_layers(stage):
                path = f"{component}/{stage_name}/{block_name}"
                for conv in ("conv1", "conv2"):
                    layers += [f"{path}/{conv}", f"{path}/{conv}/BatchNorm"]
                last = ["conv3"] if block.shortcut is None else ["shortcut", "conv3"]
                layers += [f"{path}/{conv}" for conv in last]
                layers += [f"{path}/{conv}/BatchNorm" for conv in last]
        for i, layer in enumerate(layers):
            norm = ("gamma", "beta", "moving_mean", "moving_variance")
            for leaf in norm if layer.endswith("BatchNorm") else ("kernel",):
                prefix = f"model/_feature_extractor_for_{half}/layer_with_weights-{i}"
                names[f"{layer}/{leaf}"] = f"{prefix}/{leaf}/.ATTRIBUTES/VARIABLE_VALUE"
    return names


@needs_oracle
def test_variables_are_those_of_the_published_checkpoint(initial):
    published = {
        name: shape
        for name, shape in oracle_module().read_variables(oracle_list()).items()
        if "_feature_extractor_for_" in name
    }
    components = initial("keras")
    names = zoo_names(components)
    ours = {names[path]: tuple(v.shape) for path, v in named_variables(components).items()}
    assert ours == published


@needs_oracle
@pytest.mark.slow  # tests/test_compare_reference.py compares the same numbers, of a checkpoint it imports
def test_features_and_box_classifier_features_equal_the_original_graphs():
    reference = np.load(ORACLE / "reference" / "faster_rcnn_resnet50_v1.npz")
    components = build()
    names = zoo_names(components)
    for path, variable in named_variables(components).items():
        variable.assign(oracle_module().seeded_value(names[path], tuple(variable.shape)))
    first_stage, tower = components.values()

    canvas, _ = KeepAspectRatioResizer(640, 640, pad=True)(reference["image"][0])
    preprocessed = resnet.preprocess(canvas[tf.newaxis])
    assert relative_error(preprocessed[:, ::16, ::16].numpy(), reference["infer/preprocessed"]) < 1e-6

    features = first_stage(preprocessed)
    expected = reference["infer/rpn_features_to_crop.sub448"]
    assert relative_error(features[:, ::4, ::4, ::8].numpy(), expected) < 1e-4

    boxes = reference["infer/proposal_boxes_normalized"].reshape(-1, 4)[:20]
    crops = tf.image.crop_and_resize(features, boxes, tf.zeros(20, tf.int32), (14, 14))
    outputs = tower(tf.nn.max_pool2d(crops, 2, 2, "VALID"))
    expected = reference["infer/box_classifier_features.first20.sub8"]
    assert relative_error(outputs[..., ::8].numpy(), expected) < 1e-4


def oracle_module():
    spec = importlib.util.spec_from_file_location("seeded_checkpoint", ORACLE / "seeded_checkpoint.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def oracle_list():
    return ORACLE / "zoo" / "faster_rcnn_resnet50_v1_640x640_coco17_tpu-8.tsv"


@pytest.mark.parametrize(("topology", "scale"), [("keras", 1.0), ("slim", 2.0), ("garden", 1.0)])
def test_initial_kernels_have_the_published_variance(topology, scale, initial):
    for path, variable in named_variables(initial(topology)).items():
        if path.endswith("kernel"):
            fan_in = np.prod(variable.shape[:-1])
            assert variable.numpy().std() == pytest.approx((scale / fan_in) ** 0.5, rel=0.05), path


@pytest.mark.parametrize(
    ("depth", "blocks"), [(50, (3, 4, 6, 3)), (101, (3, 4, 23, 3)), (152, (3, 8, 36, 3))]
)
def test_numbers_of_blocks_and_batch_norm_defaults(depth, blocks):
    components = [resnet.first_stage(depth), resnet.tower(depth)]
    stages = {name: stage for component in components for name, stage in component.stages.items()}
    assert tuple(len(list(child_layers(stages[f"conv{i}"]))) for i in (2, 3, 4, 5)) == blocks
    norms = [layer for c in components for _, layer in walk_layers(c) if isinstance(layer, BatchNorm)]
    # conv1, three a block, and a shortcut in each of the four stages.
    assert len(norms) == 1 + 3 * sum(blocks) + 4
    assert {(norm.momentum, norm.epsilon) for norm in norms} == {(0.997, 1e-5)}


def test_graph_fuses_and_pads_once(initial):
    # TensorFlow fuses convolution, batch norm and ReLU on CPU only where they follow each other directly.
    first_stage = initial("keras")["first_stage"]
    graph = (
        tf.function(first_stage, autograph=False).get_concrete_function(tf.TensorSpec((1, 64, 64, 3))).graph
    )
    plumbing = {"Placeholder", "ReadVariableOp", "Const", "Identity", "NoOp"}
    count = Counter(op.type for op in graph.get_operations() if op.type not in plumbing)
    blocks, convolutions = 13, 1 + 3 * 13 + 3
    assert count == {
        "Pad": 1,
        "Conv2D": convolutions,
        "FusedBatchNormV3": convolutions,
        "Relu": 1 + 3 * blocks,
        "MaxPool": 1,
        "AddV2": blocks,
    }


def test_bfloat16_policy_computes_in_bfloat16_on_float32_variables():
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        tower = resnet.tower()
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")
    crops = tf.random.stateless_uniform((2, 7, 7, 1024), (0, 0))
    with tf.GradientTape() as tape:
        outputs = tower(crops, training=True)
        total = tf.reduce_sum(tf.cast(outputs, tf.float32))
    assert outputs.dtype == tf.bfloat16
    assert outputs.shape == (2, 4, 4, 2048)
    assert {variable.dtype for variable in tower.variables} == {tf.float32}
    assert all(np.isfinite(g).all() for g in tape.gradient(total, tower.trainable_variables))


def test_preprocess_subtracts_the_mean_of_red_green_blue_in_float32():
    for dtype in (tf.uint8, tf.float32, tf.bfloat16):
        mapped = resnet.preprocess(tf.constant([[0, 0, 0], [124, 117, 104]], dtype))
        assert mapped.dtype == tf.float32
        expected = [[-123.68, -116.779, -103.939], [0.32, 0.221, 0.061]]
        np.testing.assert_allclose(mapped, expected, atol=1e-5)


@pytest.mark.parametrize("component", [resnet.first_stage, resnet.tower])
def test_unknown_depths_and_topologies_are_refused(component):
    with pytest.raises(ValueError, match="depth must be one of 50, 101, 152, got 34"):
        component(34)
    with pytest.raises(ValueError, match="topology must be one of keras, slim, garden, got 'torch'"):
        component(50, "torch")

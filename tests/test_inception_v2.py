import importlib.util
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from slim_process import graph_session, import_slim, slim_process

from detector.batch_norm import BatchNorm
from detector.component import named_variables, walk_layers
from detector.feature_extractors import inception_v2
from detector.resizer import FixedShapeResizer

ORACLE = Path(__file__).parents[2] / "shared" / "oracle"
needs_oracle = pytest.mark.skipif(not ORACLE.exists(), reason="needs ../shared/oracle")

SLIM_LEAVES = {
    "kernel": "weights",
    "depthwise_kernel": "depthwise_weights",
    "pointwise_kernel": "pointwise_weights",
}
SLIM_MOMENTUM = 0.9


def build(image_shape=(1, 64, 64, 3), **width):
    """The two components built for one width, by the Object Detection API's scope names."""
    components = {
        "FirstStageFeatureExtractor": inception_v2.first_stage(**width),
        "SecondStageFeatureExtractor": inception_v2.tower(**width),
    }
    features = tf.zeros(image_shape)
    for component in components.values():
        features = component(features)
    return components


@pytest.fixture(scope="module")
def published():
    """The two components of the published width, of seed 0; tests do not change them."""
    tf_keras.utils.set_random_seed(0)
    return build()


def slim_name(path):
    component, *stages, leaf = path.split("/")
    return "/".join([component, "InceptionV2", *stages, SLIM_LEAVES.get(leaf, leaf)])


def relative_error(actual, expected):
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


def randomise(variables, seed=0):
    """Random batch norm variables, so that a forgotten or swapped one shows; kernels stay as initialised."""
    rng = np.random.RandomState(seed)
    for path, variable in variables.items():
        if path.endswith(("gamma", "moving_variance")):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif path.endswith(("beta", "moving_mean")):
            variable.assign(rng.normal(0.0, 0.1, variable.shape))


def slim_graph(images, training, **width):
    """Put slim's network on `images` into the graph; return its end points, updates and variables by name."""
    tf_slim, network = import_slim("inception_v2")
    batch_norm = {"is_training": training, "scale": True, "decay": SLIM_MOMENTUM, "epsilon": 0.001}
    with tf_slim.arg_scope(
        [tf_slim.conv2d, tf_slim.separable_conv2d],
        normalizer_fn=tf_slim.batch_norm,
        normalizer_params=batch_norm,
    ):
        _, end_points = network.inception_v2_base(tf.constant(images), **width)
    updates = tf.compat.v1.get_collection(tf.compat.v1.GraphKeys.UPDATE_OPS)
    return end_points, updates, {variable.op.name: variable for variable in tf.compat.v1.global_variables()}


def run_slim(images, variables, training, **width):
    """Run slim's network on `images` with `variables` by slim's name.

    Returns its end points, and its variables after one step's moving average updates.
    """
    with tf.Graph().as_default():
        end_points, updates, by_name = slim_graph(images, training, **width)
        assert set(variables) == set(by_name)
        with graph_session() as session:
            assigns = [by_name[name].initializer for name in variables]
            values = zip(assigns, variables.values(), strict=True)
            session.run(assigns, {assign.inputs[1]: value for assign, value in values})
            outputs, _ = session.run([end_points, updates])
            return outputs, session.run(by_name)


def initialise_slim():
    """Return the variables of slim's network of the published width as slim initialises them."""
    with tf.Graph().as_default():
        tf.compat.v1.set_random_seed(1)
        _, _, by_name = slim_graph(np.zeros((1, 64, 64, 3), np.float32), training=False)
        with graph_session() as session:
            session.run(tf.compat.v1.global_variables_initializer())
            return session.run(by_name)


@pytest.fixture(scope="module")
def slim():
    with slim_process() as call:
        yield call


def in_slim(variables):
    """Ours by the names slim gives them where one network holds both components."""
    return {slim_name(path).split("/", 1)[1]: variable for path, variable in variables.items()}


@pytest.mark.parametrize(
    ("depth_multiplier", "training"),
    [
        (0.25, True),
        # At this width test_compare_reference sees the original's numbers, which come through all stages.
        pytest.param(1.0, False, marks=pytest.mark.slow),
        pytest.param(1.0, True, marks=pytest.mark.slow),
        pytest.param(0.25, False, marks=pytest.mark.slow),
    ],
)
def test_every_stage_equals_slims(slim, depth_multiplier, training):
    tf_keras.utils.set_random_seed(0)
    components = build(
        depth_multiplier=depth_multiplier, batch_norm_momentum=SLIM_MOMENTUM, batch_norm_epsilon=0.001
    )
    ours = in_slim(named_variables(components))
    randomise(ours)
    # One even and one odd side: "SAME" padding differs between them.
    images = np.random.RandomState(0).uniform(-1, 1, (2, 96, 117, 3)).astype(np.float32)
    before = {name: variable.numpy() for name, variable in ours.items()}
    expected, expected_after = slim(run_slim, images, before, training, depth_multiplier=depth_multiplier)

    features, compared = tf.constant(images), []
    for component in components.values():
        for name, stage in component.stages.items():
            features = stage(features, training=training)
            assert features.shape == expected[name].shape
            assert relative_error(features.numpy(), expected[name]) < 1e-5, name
            compared.append(name)
    assert compared == list(expected)

    for name, variable in ours.items():
        np.testing.assert_allclose(variable, expected_after[name], rtol=1e-4, atol=1e-5, err_msg=name)
        moved = not np.array_equal(variable, before[name])
        assert moved == (training and "moving_" in name), name


def test_initial_kernels_are_distributed_as_slims(slim, published):
    ours = in_slim(named_variables(published))
    slims = slim(initialise_slim)
    for name, variable in ours.items():
        if name.endswith("weights"):
            kernel, expected = variable.numpy(), slims[name]
            assert kernel.std() == pytest.approx(expected.std(), rel=0.05), name
            # Tells the truncated normal (ends at 2.27 deviations) from the uniform (1.73).
            assert np.ptp(kernel) == pytest.approx(np.ptp(expected), rel=0.05), name
        else:
            np.testing.assert_array_equal(variable, slims[name])


def test_batch_norm_defaults_are_the_published_detectors():
    for component in (inception_v2.first_stage(), inception_v2.tower()):
        norms = [layer for _, layer in walk_layers(component) if isinstance(layer, BatchNorm)]
        assert norms
        assert {(norm.momentum, norm.epsilon) for norm in norms} == {(0.9997, 0.001)}


@needs_oracle
def test_variables_are_those_of_the_published_checkpoint(published):
    expected = {
        name: shape
        for name, shape in oracle_module().read_variables(oracle_list()).items()
        if "FeatureExtractor/" in name
    }
    ours = {slim_name(path): tuple(v.shape) for path, v in named_variables(published).items()}
    assert ours == expected


@needs_oracle
@pytest.mark.slow  # tests/test_compare_reference.py compares the same numbers, of a checkpoint it imports
def test_features_and_box_classifier_features_equal_the_original_graphs():
    reference = np.load(ORACLE / "reference" / "faster_rcnn_inception_v2.npz")
    components = build()
    for path, variable in named_variables(components).items():
        variable.assign(oracle_module().seeded_value(slim_name(path), tuple(variable.shape)))
    first_stage, tower = components.values()

    canvas, _ = FixedShapeResizer(512, 512)(reference["image"][0])
    preprocessed = inception_v2.preprocess(canvas[tf.newaxis])
    assert relative_error(preprocessed[:, ::16, ::16].numpy(), reference["infer/preprocessed"]) < 1e-6

    features = first_stage(preprocessed)
    expected = reference["infer/rpn_features_to_crop.sub448"]
    assert relative_error(features[:, ::4, ::4, ::8].numpy(), expected) < 1e-4

    boxes = reference["infer/proposal_boxes_normalized"].reshape(-1, 4)[:20]
    crops = tf.image.crop_and_resize(features, boxes, tf.zeros(20, tf.int32), (14, 14))
    assert relative_error(crops[..., ::8].numpy(), reference["infer/crops14.first20.sub8"]) < 1e-4
    outputs = tower(tf.nn.max_pool2d(crops, 2, 2, "VALID"))
    expected = reference["infer/box_classifier_features.first20.sub8"]
    assert relative_error(outputs[..., ::8].numpy(), expected) < 1e-4


def oracle_module():
    spec = importlib.util.spec_from_file_location("seeded_checkpoint", ORACLE / "seeded_checkpoint.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def oracle_list():
    return ORACLE / "zoo" / "faster_rcnn_inception_v2_coco_2018_01_28.tsv"


def test_graph_has_one_convolution_batch_norm_and_relu_each_and_nothing_between():
    # TensorFlow fuses the three on CPU only where they follow each other directly.
    first_stage = inception_v2.first_stage(depth_multiplier=0.25)
    graph = (
        tf.function(first_stage, autograph=False).get_concrete_function(tf.TensorSpec((1, 64, 64, 3))).graph
    )
    plumbing = {"Placeholder", "ReadVariableOp", "Const", "Identity", "NoOp"}
    count = Counter(op.type for op in graph.get_operations() if op.type not in plumbing)
    norms = [op for op in graph.get_operations() if op.type == "FusedBatchNormV3"]
    assert count == {
        "DepthwiseConv2dNative": 1,
        "Conv2D": len(norms),
        "FusedBatchNormV3": len(norms),
        "Relu": len(norms),
        "MaxPool": 3,
        "AvgPool": 6,
        "ConcatV2": 7,
    }
    assert {norm.inputs[0].op.type for norm in norms} == {"Conv2D"}
    assert {op.type for norm in norms for op in norm.outputs[0].consumers()} == {"Relu"}


def test_bfloat16_policy_computes_in_bfloat16_on_float32_variables():
    width = {"depth_multiplier": 0.25}
    images = tf.random.stateless_uniform((1, 64, 64, 3), (0, 0), -1.0, 1.0)
    tf_keras.utils.set_random_seed(0)
    in_float32 = build(**width)["FirstStageFeatureExtractor"](images)
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        tf_keras.utils.set_random_seed(0)
        first_stage = build(**width)["FirstStageFeatureExtractor"]
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")
    features = first_stage(images)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(tf.cast(first_stage(images, training=True), tf.float32))
    gradients = tape.gradient(total, first_stage.trainable_variables)

    assert features.dtype == tf.bfloat16
    assert {variable.dtype for variable in first_stage.variables} == {tf.float32}
    assert relative_error(tf.cast(features, tf.float32).numpy(), in_float32.numpy()) < 0.05
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_preprocess_maps_0_to_minus_1_and_255_to_1_in_float32():
    for dtype in (tf.uint8, tf.float32, tf.bfloat16):
        mapped = inception_v2.preprocess(tf.constant([0, 51, 255], dtype))
        assert mapped.dtype == tf.float32
        np.testing.assert_allclose(mapped, [-1.0, -0.6, 1.0], atol=1e-6)


def test_min_depth_bounds_the_width_from_below():
    first_stage = build(depth_multiplier=0.125, min_depth=10)["FirstStageFeatureExtractor"]
    # 192 / 8 = 24 is above the minimum, 64 / 8 = 8 below.
    assert first_stage.stages["Conv2d_2c_3x3"].kernel.shape == (3, 3, 10, 24)
    # Three depthwise filters a colour, because 4 * 3 would be more than the 10 filters after them.
    assert first_stage.stages["Conv2d_1a_7x7"].depthwise_kernel.shape == (7, 7, 3, 3)


@pytest.mark.parametrize("component", [inception_v2.first_stage, inception_v2.tower])
def test_impossible_widths_are_refused(component):
    with pytest.raises(ValueError, match=r"depth_multiplier must be above 0, got -0\.5"):
        component(depth_multiplier=-0.5)
    with pytest.raises(ValueError, match=r"at least 3 filters.* has 2"):
        component(depth_multiplier=0.01, min_depth=2)

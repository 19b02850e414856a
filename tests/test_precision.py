"""bfloat16: in what layers compute, and what stays float32."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from conftest import CLASS_NAMES, TINY, tiny_batch, values_of

from detector import checkpoint
from detector.batch_norm import unfolded
from detector.builder import build_model
from detector.checkpoint import CheckpointInfo
from detector.config import load, override
from detector.digest import digests
from detector.freeze import resolve, rows_of
from detector.freeze_proof import prove
from detector.loading import load_checkpoint
from detector.optimizer import GroupedOptimizer
from detector.training_step import make_step
from detector.weights.importing import import_weights

SEED = tf.constant([0, 0])
EMBEDDED = Path(__file__).resolve().parents[1] / "data" / "shapes_source"
CATEGORIES = [{"id": number, "name": name} for number, name in enumerate(CLASS_NAMES, 1)]


def config_in(precision, *overrides):
    return override(TINY, [f"model.precision={precision}", *overrides], "tiny")


@pytest.fixture(scope="module")
def models():
    """The tiny detector in both precisions; tests do not change it."""
    return {name: build_model(config_in(name).model, CLASS_NAMES) for name in ("float32", "bfloat16")}


def test_weights_are_float32_and_the_same_in_both_precisions(models):
    exact, fast = (models[precision].variables_by_path for precision in ("float32", "bfloat16"))
    assert {variable.dtype for variable in fast.values()} == {tf.float32}
    assert digests(exact) == digests(fast)


def test_the_configuration_keeps_it(tmp_path):
    (tmp_path / "config.yaml").write_text(config_in("bfloat16").to_yaml())
    assert load(tmp_path / "config.yaml").model.precision == "bfloat16"
    assert load(None).model.precision == "float32"


def test_other_layers_of_the_process_are_left_alone(models):
    assert models["bfloat16"].feature_extractor.compute_dtype == "bfloat16"
    assert tf_keras.mixed_precision.global_policy().name == "float32"
    too_narrow = config_in(
        "bfloat16",
        "model.feature_extractor.depth_multiplier=0.001",
        "model.feature_extractor.min_depth=1",
    )
    with pytest.raises(ValueError, match="at least 3 filters"):
        build_model(too_narrow.model, CLASS_NAMES)
    assert tf_keras.mixed_precision.global_policy().name == "float32"


def test_layers_compute_in_bfloat16_and_everything_else_in_float32(models):
    model, batch = models["bfloat16"], tiny_batch(0)

    @tf.function(autograph=False)
    def losses():
        return model.named_losses(batch, SEED)

    types: dict[str, set[tf.DType]] = {}
    traced = losses.get_concrete_function()
    for operation in traced.graph.get_operations():
        for tensor in operation.inputs:
            if tensor.dtype.is_floating:
                types.setdefault(operation.type, set()).add(tensor.dtype)
    for fast in ("Conv2D", "DepthwiseConv2dNative", "MatMul", "Relu", "Relu6", "ConcatV2"):
        assert tf.bfloat16 in types[fast], fast
    for only in ("Conv2D", "DepthwiseConv2dNative", "MatMul"):
        assert types[only] == {tf.bfloat16}, only
    exact = ["Softmax", "LogSoftmax", "CropAndResize"]
    of_boxes = ["Exp", "Log", "RealDiv"]
    for operation in (*exact, *of_boxes):
        assert types[operation] == {tf.float32}, operation
    assert {tensor.dtype for tensor in traced.outputs} == {tf.float32}


def test_heads_give_float32_from_bfloat16_features(models):
    model = models["bfloat16"]
    first = model.first_stage(tiny_batch(0)["image"])
    assert first.features.dtype == tf.bfloat16
    assert first.outputs.objectness.dtype == first.outputs.box_encodings.dtype == tf.float32
    predictions = model.box_classifier(tf.zeros([2, 4, 4, first.features.shape[-1]]))
    assert predictions.class_logits.dtype == predictions.box_encodings.dtype == tf.float32


def test_inference_in_bfloat16_has_batch_norms_in_kernels(models):
    def batch_norms(model, training):
        traced = tf.function(partial(model.box_classifier, training=training)).get_concrete_function(
            tf.TensorSpec([2, 4, 4, model.feature_extractor.compute_output_shape([1, 64, 64, 3])[-1]])
        )
        return sum("BatchNorm" in operation.type for operation in traced.graph.get_operations())

    exact, fast = models["float32"], models["bfloat16"]
    assert batch_norms(fast, training=False) == 0
    assert batch_norms(fast, training=True) == batch_norms(exact, training=False) > 0


def test_inference_in_bfloat16_has_gradients(models):
    """As a diagnosis takes them, with and without batch norms in kernels."""
    stage = models["bfloat16"].feature_extractor.Conv2d_2c_3x3
    inputs = tf.cast(tf.random.stateless_normal([1, 8, 8, stage.kernel.shape[2]], [0, 1]), tf.bfloat16)

    def gradients():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.cast(stage(inputs, training=False), tf.float32) ** 2)
        return tape.gradient(loss, stage.trainable_variables)

    folded = gradients()
    with unfolded():
        apart = gradients()
    for one, other in zip(folded, apart, strict=True):
        assert one.dtype == tf.float32
        np.testing.assert_allclose(one, other, rtol=0, atol=0.03 * np.abs(other).max())


def test_a_trained_detector_sees_almost_the_same():
    """The embedded checkpoint, on the same image and proposals in both precisions."""
    batch = tiny_batch(0, side=128)
    exact, fast = (load_checkpoint(EMBEDDED, precision)[0] for precision in (None, "bfloat16"))
    features = exact.first_stage(batch["image"])
    rounded = fast.first_stage(batch["image"])
    error = tf.norm(features.features - tf.cast(rounded.features, tf.float32)) / tf.norm(features.features)
    assert 1e-4 < float(error) < 0.02  # bfloat16 has 8 bits: up to 0.004 a rounding
    proposals = exact.propose(features, batch["image_size_hw"])
    losses = exact.named_losses(batch, SEED, training=False, proposals=proposals)
    for name, loss in fast.named_losses(batch, SEED, training=False, proposals=proposals).items():
        assert float(loss) == pytest.approx(float(losses[name]), rel=0.03), name


@pytest.mark.slow
def test_a_step_trains_what_the_plan_trains_and_goes_on_to_the_same_bits(tmp_path):
    config = config_in("bfloat16", "train.optimizer.kind=adamw")
    model = build_model(config.model, CLASS_NAMES)
    variables = model.variables_by_path
    freeze = ["feature_extractor[:Mixed_4c]", "box_classifier/tower"]
    plan = resolve(rows_of(model.components, restored=variables), freeze, batch_norm="update")
    plan.apply(model.components)
    trained = {path: variables[path] for path in plan.trained}
    optimizer = GroupedOptimizer(config.train.optimizer, trained)
    assert {slot.dtype for name, slot in optimizer.state.items() if "iterations" not in name} == {tf.float32}
    step = make_step(model, trained, optimizer, clip_norm=10.0)

    def run(start, end):
        for number in range(start, end):
            losses = step(tiny_batch(number), tf.constant([0, number]), tf.constant(0.01))
            assert all(np.isfinite(float(loss)) for loss in losses.values())
        return values_of(variables)

    before = values_of(variables)
    frozen_digests = digests({path: variables[path] for path in plan.frozen})
    run(0, 1)
    checkpoint.save(tmp_path / "step-1", CheckpointInfo(1, CATEGORIES, {}), variables, optimizer.state)
    whole = run(1, 3)
    for variable in trained.values():
        variable.assign(variable + 1.0)
    checkpoint.restore(tmp_path / "step-1", variables, optimizer.state)
    resumed = run(1, 3)

    assert all(np.array_equal(whole[path], resumed[path]) for path in whole)
    moved = {path for path in before if not np.array_equal(before[path], whole[path])}
    assert moved == set(plan.trained) | set(plan.updated)
    proof = prove(frozen_digests, variables, 3, {})
    assert proof.holds and set(proof.before) == set(plan.frozen)


def test_a_checkpoint_of_one_precision_loads_in_the_other(models, tmp_path):
    trained = config_in("bfloat16").model.model_dump(mode="json")
    saved = models["bfloat16"].variables_by_path
    checkpoint.save(tmp_path / "saved", CheckpointInfo(7, CATEGORIES, trained), saved)
    model, _, info = load_checkpoint(tmp_path / "saved", "float32")
    assert info.model["precision"] == "bfloat16"
    assert model.feature_extractor.compute_dtype == model.box_classifier.compute_dtype == "float32"
    variables = model.variables_by_path
    assert digests(variables) == digests(saved)
    for variable in variables.values():
        variable.assign(variable + 1.0)
    assert not import_weights(model, tmp_path / "saved").fresh
    assert digests(variables) == digests(saved)

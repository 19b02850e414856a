import itertools
import re

import numpy as np
import pytest
import tensorflow as tf
from conftest import CLASS_NAMES, TINY

from detector import checkpoint
from detector.builder import build_model
from detector.config import override
from detector.experiment import prepare
from detector.run_log import RunLog
from detector.selectors import FreezeError
from detector.train import fit
from detector.weights.importing import import_weights, model_of
from detector.weights.object_detection_api import api_names
from detector.weights.source import WeightsError

PREDICTOR = [
    f"box_classifier/predictor/{layer}/{leaf}"
    for layer in ("class_scores", "box_refinement")
    for leaf in ("kernel", "bias")
]


def save_by_name(prefix, values):
    """A name-based TensorFlow checkpoint."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    names = sorted(values)
    tf.raw_ops.SaveV2(
        prefix=f"{prefix}_part",
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[tf.constant(values[name]) for name in names],
    )
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=[f"{prefix}_part"], destination_prefix=str(prefix))
    return prefix


def tf1_values(model):
    names = api_names(model)
    return {names[path]: variable.numpy() for path, variable in model.variables_by_path.items()}


def values_of(model):
    return {path: variable.numpy() for path, variable in model.variables_by_path.items()}


def assert_same_values(model, other):
    values = values_of(other)
    for path, value in values_of(model).items():
        np.testing.assert_array_equal(value, values[path], err_msg=path)


def changed(before, model):
    return {path for path, value in values_of(model).items() if not np.array_equal(value, before[path])}


@pytest.fixture(scope="module")
def donor():
    """A tiny detector with values of its own in every variable."""
    model = build_model(override(TINY, (), "tiny").model, CLASS_NAMES, seed=1)
    rng = np.random.RandomState(0)
    for variable in model.variables_by_path.values():
        variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return model


@pytest.fixture(scope="module")
def built():
    """A tiny detector for the same classes, and its fresh values."""
    model = build_model(override(TINY, (), "tiny").model, CLASS_NAMES)
    return model, values_of(model)


@pytest.fixture
def model(built):
    """The tiny detector, fresh again."""
    model, fresh = built
    for path, variable in model.variables_by_path.items():
        variable.assign(fresh[path])
    return model


@pytest.fixture
def tf1_checkpoint(donor, tmp_path):
    return save_by_name(tmp_path / "model.ckpt", tf1_values(donor))


def test_a_detector_is_restored_whole_and_what_training_left_is_accounted_for(donor, model, tmp_path):
    values = tf1_values(donor)
    kernel = next(name for name in values if name.endswith("/weights"))
    extra = {
        "global_step": np.int64(7),
        f"{kernel}/Momentum": values[kernel],
        f"{kernel}/ExponentialMovingAverage": values[kernel],
        "FirstStageFeatureExtractor/resnet_v1_50/block4/unit_1/bottleneck_v1/conv1/weights": np.zeros(3),
    }
    report = import_weights(model, save_by_name(tmp_path / "model.ckpt", values | extra))
    assert_same_values(model, donor)
    assert report.restored == api_names(model)
    assert report.fresh == {}
    assert report.classes == CLASS_NAMES  # by their places in the file, which has no names
    assert set(report.left) == set(extra)
    assert report.left["global_step"] == "the training step"
    assert report.left[f"{kernel}/Momentum"] == "the optimizer's state"
    assert report.format == "Object Detection API, TF1 detector"
    parts = report.provenance()
    assert [parts[name]["restored"] for name in parts] == [251, 6, 99]
    assert all(
        part["checkpoint"] == str(tmp_path / "model.ckpt") and not part["fresh"] for part in parts.values()
    )


def test_detection_restores_the_feature_extractor_and_the_tower_alone(tf1_checkpoint, model):
    before = values_of(model)
    report = import_weights(model, tf1_checkpoint, "detection")
    backbone = {path for path in before if path.startswith(("feature_extractor/", "box_classifier/tower/"))}
    assert changed(before, model) == set(report.restored) == backbone
    assert set(report.fresh) == set(before) - backbone
    assert report.classes == ()
    assert len(report.left) == len(report.fresh)


def test_another_number_of_classes_makes_the_predictor_fresh_and_nothing_else(tf1_checkpoint, tiny_model):
    model = tiny_model(class_names=["a", "b"])
    before = values_of(model)
    report = import_weights(model, tf1_checkpoint)
    assert report.fresh == dict.fromkeys(PREDICTOR, "3 classes in the file, 2 in the model")
    assert changed(before, model) == set(report.restored) == set(before) - set(PREDICTOR)
    assert report.provenance()["box_classifier"]["fresh"] == PREDICTOR
    assert report.classes == ()


def test_every_difference_is_listed_in_one_error_and_nothing_is_assigned(donor, model, tmp_path):
    values = tf1_values(donor)
    del values["Conv/biases"]
    values["Conv/weights"] = np.zeros([3, 3, 1, 8], np.float32)
    values["Surprise"] = np.zeros(2, np.float32)
    before = values_of(model)
    with pytest.raises(WeightsError) as caught:
        import_weights(model, save_by_name(tmp_path / "model.ckpt", values))
    message = str(caught.value)
    assert "3 differences" in message
    assert "missing in the file: Conv/biases (for rpn/conv/bias)" in message
    assert re.search(
        r"another shape: Conv/weights is \[3, 3, 1, 8\] in the file, rpn/conv/kernel \[3, 3,", message
    )
    assert "unexpected in the file: Surprise" in message
    assert changed(before, model) == set()


def test_a_wrong_architecture_is_named(tf1_checkpoint, model, tmp_path):
    scope = "FirstStageFeatureExtractor/{}/conv1/weights"
    resnet = save_by_name(tmp_path / "resnet.ckpt", {scope.format("resnet_v1_101"): np.zeros(1)})
    with pytest.raises(
        WeightsError, match=r"holds resnet101 \(slim topology\), but the model is inception_v2: set"
    ):
        import_weights(model, resnet)
    other = save_by_name(tmp_path / "other.ckpt", {scope.format("InceptionResnetV2"): np.zeros(1)})
    with pytest.raises(
        WeightsError, match="is a detector on InceptionResnetV2; expected InceptionV2 or resnet_v1_50"
    ):
        import_weights(model, other)
    unknown = save_by_name(tmp_path / "unknown.ckpt", {"dense/kernel": np.zeros(1)})
    with pytest.raises(WeightsError, match="of no known format: it holds dense/kernel; expected"):
        import_weights(model, unknown)


def test_a_box_shared_across_classes_is_told_from_another_number_of_classes(donor, model, tmp_path):
    values = tf1_values(donor)
    for leaf in ("weights", "biases"):
        name = f"SecondStageBoxPredictor/BoxEncodingPredictor/{leaf}"
        values[name] = values[name][..., :4]
    prefix = save_by_name(tmp_path / "model.ckpt", values)
    with pytest.raises(WeightsError, match=r"set model.box_classifier.share_box_across_classes=true"):
        import_weights(model, prefix)
    assert model_of(prefix)[0]["box_classifier"] == {"share_box_across_classes": True}


def test_the_kind_must_go_with_the_file(donor, tf1_checkpoint, model, tmp_path):
    with pytest.raises(
        WeightsError, match="is a detector's checkpoint, not a classifier's: use the type 'full'"
    ):
        import_weights(model, tf1_checkpoint, "classification")
    classifier = save_by_name(
        tmp_path / "classifier.ckpt", {"InceptionV2/Conv2d_1a_7x7/weights": np.zeros(1)}
    )
    for kind in ("detection", "full"):
        with pytest.raises(
            WeightsError, match=f"is a classifier's checkpoint, which the type '{kind}' cannot"
        ):
            import_weights(model, classifier, kind)
    with pytest.raises(WeightsError, match="one of classification, detection, full; got 'all'"):
        import_weights(model, tf1_checkpoint, "all")


def test_a_truncated_or_missing_file_is_one_clear_error(donor, tf1_checkpoint, model, tmp_path):
    before = values_of(model)
    data = tmp_path / "model.ckpt.data-00000-of-00001"
    whole = data.read_bytes()
    data.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="is damaged or incomplete; get it again"):
        import_weights(model, tf1_checkpoint)
    data.write_bytes(whole)
    index = tmp_path / "model.ckpt.index"
    index.write_bytes(index.read_bytes()[:100])
    with pytest.raises(WeightsError, match="is damaged or incomplete; get it again"):
        import_weights(model, tf1_checkpoint)
    with pytest.raises(FileNotFoundError, match=r"no weights at .*nowhere.ckpt"):
        import_weights(model, tmp_path / "nowhere.ckpt")
    (tmp_path / "model.tar.gz").write_bytes(b"archive")
    with pytest.raises(WeightsError, match="unpack it"):
        import_weights(model, tmp_path / "model.tar.gz")
    (tmp_path / "cut.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(WeightsError, match="no HDF5 file or is cut short"):
        import_weights(model, tmp_path / "cut.h5")
    assert changed(before, model) == set()


@pytest.mark.parametrize("named", ["model.ckpt", "model.ckpt.index", "model.ckpt.data-00000-of-00001", "."])
def test_a_checkpoint_may_be_named_by_its_prefix_its_files_or_its_folder(
    tf1_checkpoint, model, tmp_path, named
):
    assert len(import_weights(model, tmp_path / named).restored) == 356


def save_native(path, model, config, **more):
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(model.class_names)]
    info = checkpoint.CheckpointInfo(
        **{"step": 5, "categories": categories, "model": config.model_dump(mode="json"), **more}
    )
    return checkpoint.save(path, info, model.variables_by_path, {"momentum/x": tf.Variable(1.0)})


def test_an_own_checkpoint_is_restored_whole(donor, model, tiny_config, tmp_path):
    report = import_weights(model, save_native(tmp_path / "own", donor, tiny_config().model))
    assert set(report.restored) == set(values_of(model))
    assert report.classes == ()  # matched by name
    assert report.left == {"optimizer/momentum/x": "the optimizer's state"}
    assert_same_values(model, donor)


def test_a_run_stands_for_its_best_checkpoint_or_else_its_last(donor, model, tiny_config, tmp_path):
    run = RunLog(tmp_path / "run")
    run.write_text("config.yaml", "")
    with pytest.raises(WeightsError, match="has no last checkpoint; the run was cut off before"):
        import_weights(model, run.folder)
    last = save_native(run.checkpoint_path(2), donor, tiny_config().model)
    run.point("last", last)
    assert import_weights(model, run.folder).source == str(last)
    assert_same_values(model, donor)
    # The best may be another one later on: what is noted is the checkpoint itself.
    best = save_native(run.checkpoint_path(1), donor, tiny_config().model)
    run.point("best", best)
    report = import_weights(model, run.folder)
    assert report.source == report.provenance()["rpn"]["checkpoint"] == str(best)
    assert model_of(run.folder)[1] == list(CLASS_NAMES)


def test_classes_are_matched_by_name(donor, tiny_model, tiny_config, tmp_path):
    path = save_native(tmp_path / "own", donor, tiny_config().model)  # circle, square, star
    model = tiny_model(class_names=["star", "moon", "circle"])
    before, theirs = values_of(model), values_of(donor)
    report = import_weights(model, path)
    assert set(report.fresh) == set(PREDICTOR)
    assert report.fresh[PREDICTOR[0]] == "new: moon; keep their values: star, circle"
    after = values_of(model)
    for layer, columns in (
        ("class_scores", {0: 0, 1: 3, 3: 1}),
        ("box_refinement", {0: 8, 1: 9, 2: 10, 3: 11, 8: 0, 9: 1, 10: 2, 11: 3}),
    ):
        for leaf in ("kernel", "bias"):
            name = f"box_classifier/predictor/{layer}/{leaf}"
            for column in range(after[name].shape[-1]):
                source = (
                    theirs[name][..., columns[column]] if column in columns else before[name][..., column]
                )
                np.testing.assert_array_equal(after[name][..., column], source, err_msg=f"{name} {column}")


def test_why_numbered_classes_are_not_found_is_told(donor, model, tiny_config, tmp_path):
    numbered = [{"id": number, "name": str(number)} for number in (1, 2, 3)]
    path = save_native(tmp_path / "own", donor, tiny_config().model, categories=numbered)
    report = import_weights(model, path)
    assert report.fresh[PREDICTOR[0]] == (
        "new: circle, square, star; keep their values: none but the background; the file's classes are "
        "called 1 … 3: to name them, import it again with tools/import_weights.py --label-map"
    )


def test_a_reason_names_a_few_classes(donor, tiny_model, tiny_config, tmp_path):
    path = save_native(tmp_path / "own", donor, tiny_config().model)
    report = import_weights(tiny_model(class_names=[*"abcdefgh"]), path)
    why = "new: a, b, c, d, e, f and 2 more; keep their values: none but the background"
    assert report.fresh[PREDICTOR[0]] == why


def test_fewer_classes_in_another_order_are_all_restored(donor, tiny_model, tiny_config, tmp_path):
    path = save_native(tmp_path / "own", donor, tiny_config().model)
    model = tiny_model(class_names=["star", "circle"])
    report = import_weights(model, path)
    assert report.fresh == {}
    bias = "box_classifier/predictor/class_scores/bias"
    np.testing.assert_array_equal(values_of(model)[bias], values_of(donor)[bias][[0, 3, 1]])


def test_what_was_fresh_and_never_trained_is_still_fresh(donor, model, tiny_config, tmp_path):
    provenance = {"box_classifier": {"fresh": PREDICTOR}}
    untrained = save_native(tmp_path / "a", donor, tiny_config().model, step=0, provenance=provenance)
    assert set(import_weights(model, untrained).fresh) == set(PREDICTOR)
    trained = save_native(tmp_path / "b", donor, tiny_config().model, step=1, provenance=provenance)
    assert import_weights(model, trained).fresh == {}


def test_what_no_step_of_a_run_moved_is_still_fresh(donor, model, tiny_config, tmp_path):
    kernel, bias, *rest = PREDICTOR
    provenance = {"box_classifier": {"fresh": PREDICTOR}, "rpn": {"fresh": []}}
    still = {"rpn/conv/bias": "", kernel: "", bias: ""}  # the RPN's stood still at a restored value

    def fresh_after(step, **training):
        path = save_native(
            tmp_path / "own", donor, tiny_config().model, step=step, provenance=provenance, training=training
        )
        report = import_weights(model, path)
        assert_same_values(model, donor)  # fresh values are taken over, too
        return set(report.fresh)

    def proof(step, *paths):
        return {"step": step, "variables": {path: {} for path in paths}}

    assert fresh_after(5, frozen_digests=still, proofs=[]) == {kernel, bias}
    # Two freeze stages: what either trained is trained.
    assert fresh_after(5, frozen_digests=still, proofs=[proof(2, kernel, *rest)]) == {kernel}
    # The second was stopped before its first step.
    assert fresh_after(2, frozen_digests=still, proofs=[proof(2, kernel, *rest)]) == {kernel, *rest}
    assert fresh_after(0, frozen_digests=still, proofs=[]) == set(PREDICTOR)


@pytest.mark.usefixtures("eagerly")
def test_a_run_and_its_successor_say_alike_what_is_fresh(tiny_model, tiny_config, make_batch, tmp_path):
    config = tiny_config("freeze.freeze=[box_classifier]", "freeze.allow_fresh=true", "train.steps=1")
    first = prepare(config, CLASS_NAMES)
    run = RunLog(tmp_path / "run")
    batches = (make_batch(step) for step in itertools.count())
    fit(first.model, first.schedule, batches, config, run=run, provenance=first.provenance)

    restore = f"train.restore.path={run.last}"
    with pytest.raises(FreezeError, match="would freeze 99 fresh variables"):
        prepare(tiny_config("freeze.freeze=[box_classifier]", restore), CLASS_NAMES)
    again = prepare(tiny_config("model.batch_norm=update", restore), CLASS_NAMES)
    assert again.provenance["box_classifier"] == first.provenance["box_classifier"]
    assert again.provenance["rpn"]["format"] == "checkpoint of this package"
    assert [len(part["fresh"]) for part in again.provenance.values()] == [0, 0, 99]


def test_an_own_checkpoint_of_another_network_or_damaged_is_refused(donor, model, tiny_config, tmp_path):
    resnet = tiny_config("model.feature_extractor.type=resnet50").model
    with pytest.raises(
        WeightsError, match=r"holds resnet50 \(keras topology\), but the model is inception_v2: set"
    ):
        import_weights(model, save_native(tmp_path / "own", donor, resnet))
    path = save_native(tmp_path / "own", donor, tiny_config().model)
    data = next(path.glob("variables.data*"))
    whole = data.read_bytes()
    for short in (whole[:-100], whole[:1000]):
        data.write_bytes(short)
        with pytest.raises(WeightsError, match="is damaged"):
            import_weights(model, path)

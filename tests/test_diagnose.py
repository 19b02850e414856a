import io
import json
import math
from dataclasses import replace

import diagnose as diagnose_tool
import numpy as np
import pytest
import tensorflow as tf
from conftest import CLASS_NAMES, TINY, tiny_batch, values_of
from PIL import Image
from rich.console import Console
from test_freeze_suggestion import EXAMPLE, STAGES

from detector import checkpoint
from detector.builder import build_model
from detector.checkpoint import CheckpointInfo
from detector.config import override
from detector.diagnose import batch_norms, diagnose, recorded_inputs
from detector.diagnosis_report import diagnosis_table, save_picture
from detector.freeze import rows_of
from detector.freeze_suggestion import Suggestion, suggest
from detector.run_log import RunLog, find_checkpoint
from detector.selectors import select_each

RESTORED_BUT = "box_classifier/predictor/class_scores/bias"


def batches():
    """Two batches with objects and one whose objects are crowds, which count for nothing."""
    crowd = tiny_batch(2)
    return [tiny_batch(0), tiny_batch(1), {**crowd, "is_crowd": tf.ones_like(crowd["is_crowd"])}]


def inputs_of(model, layer):
    """Return what a BatchNorm layer of the feature extractor gets from all batches, float64 [n, depth]."""
    inputs = []
    for batch in batches():
        with recorded_inputs({"it": layer}) as recorded:
            model.first_stage(batch["image"])
        inputs.append(recorded["it"].numpy().reshape(-1, recorded["it"].shape[-1]))
    return np.concatenate(inputs).astype(np.float64)


@pytest.fixture(scope="module")
def model():
    """A detector whose first BatchNorm layer has the batches' own statistics; the others have 0 and 1."""
    model = build_model(override(TINY, (), "tiny").model, CLASS_NAMES, seed=1)
    layer = model.feature_extractor.Conv2d_1a_7x7.BatchNorm
    inputs = inputs_of(model, layer)
    layer.moving_mean.assign(inputs.mean(axis=0))
    layer.moving_variance.assign(inputs.var(axis=0))
    return model


def test_in_bfloat16_batch_norms_have_inputs_to_record():
    model = build_model(override(TINY, ["model.precision=bfloat16"], "tiny").model, CLASS_NAMES)
    norms = {
        path: layer for path, layer in batch_norms(model).items() if path.startswith("feature_extractor")
    }
    with recorded_inputs(norms) as recorded:
        model.first_stage(tiny_batch(0)["image"])
    assert recorded.keys() == norms.keys()


@pytest.fixture(scope="module")
def measured(model):
    """The diagnosis, and every variable before and after it."""
    before = values_of(model.variables_by_path)
    model.rpn.trainable = False  # as a plan may have left it: it may not matter
    diagnosis = diagnose(model, batches(), restored=set(before) - {RESTORED_BUT})
    model.rpn.trainable = True
    return diagnosis, before, values_of(model.variables_by_path)


def stage(diagnosis, path):
    return next(stage for stage in diagnosis.stages if stage.path == path)


def test_no_variable_changes(measured):
    _, before, after = measured
    assert [path for path in before if before[path].tobytes() != after[path].tobytes()] == []


def test_gradients_and_losses_are_those_of_plain_passes(model, measured):
    diagnosis, *_ = measured
    weights = [value for path, value in model.variables_by_path.items() if path.startswith("rpn/")]
    gradients, losses = [], []
    for number, batch in enumerate(batches()):
        with tf.GradientTape() as tape:
            named = model.named_losses(batch, tf.constant([0, number]), training=False)
            loss = tf.add_n(list(named.values()))
        gradients.append(float(tf.linalg.global_norm(tape.gradient(loss, weights))))
        losses.append(named)
    norm = float(tf.linalg.global_norm(weights))
    assert stage(diagnosis, "rpn").relative_gradient == pytest.approx(np.mean(gradients) / norm, rel=1e-3)
    for name in ("rpn_box", "rpn_objectness", "box", "class"):
        assert diagnosis.losses[name] == pytest.approx(np.mean([loss[name] for loss in losses]), rel=1e-3)


def test_shifts_are_between_all_batches_together_and_the_stored_statistics(model, measured):
    diagnosis, *_ = measured
    layer = model.feature_extractor.Conv2d_2b_1x1.BatchNorm
    inputs = inputs_of(model, layer)  # against means of 0 and variances of 1
    second = stage(diagnosis, "feature_extractor/Conv2d_2b_1x1")
    expected = np.abs(inputs.mean(axis=0)).mean() / math.sqrt(1 + layer.epsilon)
    assert second.mean_shift == pytest.approx(expected, rel=1e-3)
    expected = np.abs(np.log((inputs.var(axis=0) + layer.epsilon) / (1 + layer.epsilon))).mean()
    assert second.variance_shift == pytest.approx(expected, rel=1e-3)
    assert second.shift == pytest.approx(second.mean_shift + second.variance_shift / 2)
    assert second.shift > 0.1

    assert stage(diagnosis, "feature_extractor/Conv2d_1a_7x7").shift < 1e-3
    assert stage(diagnosis, "rpn").shift is None


def test_every_stage_is_there_once_in_order(model, measured):
    diagnosis, *_ = measured
    paths = [stage.path for stage in diagnosis.stages]
    extractor = [name for name, layer in model.feature_extractor.stages.items() if layer.weights]
    tower = [name for name, layer in model.box_classifier.tower.stages.items() if layer.weights]
    assert paths == [
        *(f"feature_extractor/{name}" for name in extractor),
        "rpn",
        *(f"box_classifier/tower/{name}" for name in tower),
        "box_classifier/predictor",
    ]
    assert [stage.path for stage in diagnosis.stages if stage.fresh] == ["box_classifier/predictor"]
    weights = [row for row in rows_of(model.components) if not row.statistic]
    assert sum(stage.parameters for stage in diagnosis.stages) == sum(row.size for row in weights)


def test_recall_is_the_part_of_the_objects_that_a_proposal_finds(model, measured):
    diagnosis, *_ = measured
    assert (diagnosis.images, diagnosis.batches, diagnosis.objects) == (6, 3, 12)
    found = {0.5: 0, 0.75: 0}
    for step in range(2):
        batch = tiny_batch(step)
        proposals = model.propose(model.first_stage(batch["image"]), batch["image_size_hw"])
        for row in range(2):
            candidates = proposals.boxes_yxyx[row, : int(proposals.count[row])].numpy()
            for slot in range(3):
                top, left, bottom, right = batch["boxes_yxyx"][row, slot].numpy()
                heights = np.minimum(candidates[:, 2], bottom) - np.maximum(candidates[:, 0], top)
                widths = np.minimum(candidates[:, 3], right) - np.maximum(candidates[:, 1], left)
                shared = np.maximum(heights, 0) * np.maximum(widths, 0)
                areas = np.prod(candidates[:, 2:] - candidates[:, :2], axis=1)
                best = (shared / (areas + (bottom - top) * (right - left) - shared)).max()
                for iou in found:
                    found[iou] += best >= iou
    assert 0 < found[0.5] < 12
    assert diagnosis.recall == {iou: count / 12 for iou, count in found.items()}


def test_recording_leaves_the_layers_as_they_were(model):
    norms = batch_norms(model)
    layer = norms["feature_extractor/Conv2d_1a_7x7/BatchNorm"]
    image = tiny_batch(0)["image"]
    alone = model.first_stage(image).features
    with pytest.raises(KeyError), recorded_inputs(norms) as recorded:
        np.testing.assert_array_equal(model.first_stage(image).features, alone)
        assert "call" in vars(layer)
        assert set(recorded) == {path for path in norms if path.startswith("feature_extractor")}
        raise KeyError
    assert not any("call" in vars(each) for each in norms.values())


def test_what_cannot_be_diagnosed_is_an_error(model, monkeypatch):
    with pytest.raises(ValueError, match="no batches"):
        diagnose(model, [], restored=())
    losses = {"losses": {"box": 1.0, "class": math.nan}}
    monkeypatch.setattr("detector.diagnose._measurement", lambda *_: lambda *_: losses)
    with pytest.raises(ValueError, match=r"batch 0: a loss is not finite.*'class': nan"):
        diagnose(model, batches(), restored=())


def test_the_suggested_selectors_are_ones_that_freeze_takes(model, measured):
    suggestion = suggest(measured[0])
    assert suggestion.freeze != ("none",)  # random weights have still stages too
    assert select_each(suggestion.freeze, rows_of(model.components))


def test_the_table_fits_and_says_what_is_suggested():
    file = io.StringIO()
    stages = (replace(STAGES[0], path="feature_extractor/Conv2d_1a_7x7", parameters=12_345_678), *STAGES[1:])
    diagnosis = replace(EXAMPLE, stages=stages)
    Console(file=file, width=80).print(diagnosis_table(diagnosis, suggest(diagnosis)))
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80 and "…" not in file.getvalue()
    (row,) = [line.split() for line in lines if line.startswith("rpn ")]
    assert row == ["rpn", "10", "0.100", "–", "–", "○", "freeze"]
    (row,) = [line.split() for line in lines if "Conv2d_1a_7x7" in line]
    assert row[1:] == ["12,345,678", "3.000", "0.600", "0.400", "●", "train"]
    assert "objects that the proposals find: 95% at IoU 0.5, 40% at IoU 0.75" in lines


def test_the_picture_has_a_bar_where_there_is_a_number(tmp_path):
    def blue(suggestion):
        save_picture(EXAMPLE, suggestion, tmp_path / "picture.png")
        picture = np.asarray(Image.open(tmp_path / "picture.png").convert("RGB"))
        assert picture.shape[1] > 1000
        return np.all(picture == (0x3B, 0x6F, 0xB6), axis=-1).sum()

    # The legend has some too.
    assert blue(Suggestion(("feature_extractor",), ())) > blue(Suggestion(("none",), ())) + 1000


@pytest.fixture(scope="module")
def run(tmp_path_factory, few_shapes):
    """A run's folder on the shapes, with one checkpoint."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    source = {"format": "shapes", "domain": "target", "split": "train", "root": str(folder / "shapes")}
    values = {**TINY, "data": {"train": source, "augment": [{"name": "HorizontalFlip"}]}}
    config = override(values, (), "tiny")
    log = RunLog(folder)
    log.write_text("config.yaml", config.to_yaml())
    names = ("circle", "square", "star", "triangle")
    model = build_model(config.model, names, seed=3)
    info = CheckpointInfo(5, [{"id": i, "name": name} for i, name in enumerate(names, 1)], {})
    log.point("last", checkpoint.save(log.checkpoint_path(5), info, model.variables_by_path))
    return folder


@pytest.mark.filterwarnings("ignore:Even though the:UserWarning")
@pytest.mark.usefixtures("eagerly")  # the measurements above are traced
def test_the_tool_writes_a_page_and_a_picture(run, capsys):
    assert diagnose_tool.main([str(run), "--batches", "2"]) == 0
    printed = capsys.readouterr().out
    page = json.loads((run / "diagnosis-step-000005" / "diagnose.json").read_text())
    assert page["model"].endswith("step-000005") and page["batches"] == 2 and page["images"] == 4
    assert f"suggested (a rule of thumb): --freeze {','.join(page['suggestion']['freeze'])}\n" in printed
    for reason in page["suggestion"]["reasons"]:
        assert reason in printed
    assert not any(stage["fresh"] for stage in page["stages"])
    assert set(page["recall"]) == {"0.50", "0.75"} and len(page["losses"]) == 4
    assert (run / "diagnosis-step-000005" / "diagnose.png").read_bytes().startswith(b"\x89PNG")


def test_a_checkpoint_of_no_run_is_diagnosed_as_the_model_that_it_is(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("detector.diagnose.diagnose", lambda *arguments, **options: EXAMPLE)
    info = checkpoint.read_info(find_checkpoint(run))
    settings = override(TINY, (), "tiny").model
    model = build_model(settings, info.class_names)
    # What it was trained with says nothing of the classes of this data.
    page = {**settings.model_dump(mode="json"), "num_classes": 90}
    checkpoint.save("start", replace(info, model=page), model.variables_by_path)
    assert diagnose_tool.main(["start"]) == 2
    assert "names no data: set data.train" in capsys.readouterr().err
    source = f"data.train={{format: shapes, domain: target, split: train, root: {run / 'shapes'}}}"
    assert diagnose_tool.main(["start", "--set", source]) == 0
    assert "\nstart: checkpoint of this package, all 356 variables restored\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "--batches", "0"], "--batches: expected 1 or more, got 0"),
        (
            ["{run}/nowhere"],
            "nowhere; expected a run's folder, a checkpoint, or the weights of another project",
        ),
        (["--config", "{run}/config.yaml"], "name a MODEL or set train.restore.path"),
        (["{run}", "--set", "data.train=null"], "set data.train"),
        (["{run}", "--checkpoint", "best"], "has no best checkpoint"),
    ],
)
def test_a_users_mistake_is_one_line(arguments, message, run, capsys):
    assert diagnose_tool.main([argument.format(run=run) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error


def test_a_savedmodel_has_no_gradients(tmp_path, capsys):
    (tmp_path / "saved_model.pb").write_bytes(b"")
    assert diagnose_tool.main([str(tmp_path)]) == 2
    assert "name its run or its checkpoint" in capsys.readouterr().err

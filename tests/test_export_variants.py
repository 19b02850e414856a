"""Exports of another precision, or with other numbers of proposals, than the checkpoint has."""

import json
import re

import export as export_tool
import pytest
import tensorflow as tf
from conftest import CLASS_NAMES, TINY, tiny_batch
from PIL import Image

from detector import checkpoint
from detector.builder import build_model
from detector.checkpoint import CheckpointInfo
from detector.config import override
from detector.export import MANIFEST
from detector.run_log import RunLog

CATEGORIES = [{"id": number, "name": name} for number, name in enumerate(CLASS_NAMES, 1)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder: a checkpoint, and data whose labels are what the checkpoint detects best."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    config = override(TINY, ["model.box_classifier.max_detections_per_class=6"], "tiny")
    model = build_model(config.model, CLASS_NAMES, seed=1)
    run = RunLog(folder)
    info = CheckpointInfo(3, CATEGORIES, config.model.model_dump(mode="json"))
    run.point("last", checkpoint.save(run.checkpoint_path(3), info, model.variables_by_path))
    batch = tiny_batch(0)  # images of the canvas's size
    found = model.detect(batch["image"], batch["image_size_hw"])
    annotations = []
    for row in range(2):
        Image.fromarray(batch["image"][row].numpy()).save(folder / f"{row + 1}.png")
        for (ymin, xmin, ymax, xmax), of_class in zip(
            found.boxes_yxyx[row, :8].numpy().tolist(), found.classes[row, :8].numpy().tolist(), strict=True
        ):
            bbox = [xmin, ymin, xmax - xmin, ymax - ymin]
            place = {"id": len(annotations) + 1, "image_id": row + 1}
            annotations.append({**place, "category_id": of_class + 1, "bbox": bbox})
    truth = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 64, "width": 64} for i in (1, 2)],
        "annotations": annotations,
        "categories": CATEGORIES,
    }
    (folder / "truth.json").write_text(json.dumps(truth))
    source = {"format": "coco", "annotations": str(folder / "truth.json"), "images": str(folder)}
    run.write_text("config.yaml", override({**TINY, "data": {"evaluate": source}}, (), "tiny").to_yaml())
    return folder


@pytest.mark.slow
@pytest.mark.usefixtures("reloaded_here", "loaded_once")
def test_an_export_with_other_settings_says_what_they_cost(run, capsys):
    assert export_tool.main([str(run), "--precision", "bfloat16", "--max-proposals", "3"]) == 0
    printed = capsys.readouterr().out
    assert "precision: bfloat16 instead of float32\nmax_proposals: 3 instead of 16\n" in printed
    found = re.search(
        r"AP (\S+) as trained, (\S+) as exported: (\S+), 95% interval .* over 2 images", printed
    )
    as_trained, as_exported, difference = map(float, found.groups())
    assert as_trained > as_exported > 0  # three proposals do not reach eight objects
    assert difference == pytest.approx(as_exported - as_trained, abs=2e-3)

    exported = run / "saved_model-bfloat16-3-proposals"
    manifest = json.loads((exported / MANIFEST).read_text())
    assert manifest["export"] == {"precision": "bfloat16", "max_proposals": 3}
    assert manifest["model"]["precision"] == "float32"
    assert manifest["model"]["rpn"]["max_proposals"] == 16
    loaded = tf.saved_model.load(str(exported))
    for signature in loaded.signatures.values():
        outputs = signature.structured_outputs
        assert {spec.dtype for spec in outputs.values()} == {tf.float32}
        assert outputs["raw_detection_boxes"].shape[1:] == (3, 4)
        assert outputs["detection_boxes"].shape[1:] == (20, 4)
    assert {value.dtype for value in loaded.model_variables.values()} == {tf.float32}


def test_mistakes_are_found_before_anything_is_written(run, tmp_path, capsys):
    for arguments, message in (
        (["--max-proposals", "0"], "--max-proposals takes a number from 1 on, got 0"),
        (
            ["--max-proposals", "4", "--set", "model.rpn.l2=1"],
            "only --precision and --max-proposals can be set",
        ),
        (["--precision", "float32", "--set", "data.evaluate=null"], "leave --config, --pipeline-config and"),
    ):
        assert export_tool.main([str(run), *arguments, "--output", str(tmp_path / "new")]) == 2
        assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_exports_that_differ_have_folders_of_their_own(run):
    assert export_tool._default_output(run, {}) == run / "saved_model"
    assert export_tool._default_output(run, {"max_proposals": 100}) == run / "saved_model-100-proposals"
    step = run / "checkpoints" / "step-000003"
    assert export_tool._default_output(step, {"precision": "bfloat16"}) == (
        run / "saved_model-bfloat16-step-000003"
    )

import json
import shutil

import evaluate as evaluate_tool
import numpy as np
import pytest
from exported_run import CATEGORIES, KEEP_ASPECT, STEP, config_with
from PIL import Image

from detector.checkpoint import CheckpointInfo, save
from detector.config import override
from detector.loading import load_detector, place_beside, run_of
from detector.run_log import RunLog, find_checkpoint

pytestmark = pytest.mark.usefixtures("loaded_once")

# Another checkpoint of the run, later than that which was exported and not as good.
LATER = STEP + 1
# The data set has ids of its own, another order, and one class less.
DATA_IDS = {"star": 11, "circle": 40}


@pytest.fixture(scope="module")
def run(exported_run, models, loaded_once, tmp_path_factory):
    """A run's folder: two checkpoints, the first of them the best, its SavedModel, and data in its config.

    The ground truth is what the model detects best, so that its AP is not 0.
    """
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    shutil.copytree(exported_run.folder, folder, symlinks=True)
    config, run = config_with(KEEP_ASPECT), RunLog(folder)
    info = CheckpointInfo(LATER, CATEGORIES, config.model.model_dump(mode="json"))
    run.point("best", run.checkpoint_path(STEP))
    run.point("last", save(run.checkpoint_path(LATER), info, models.lend().variables_by_path))
    models.take_back()

    images, annotations = [], []
    (folder / "images").mkdir()
    detector = load_detector(folder / "saved_model")
    names = list(detector.label_map.values())
    rng = np.random.default_rng(0)
    for image_id, (file, height, width) in enumerate(
        [("a.png", 80, 120), ("b.jpg", 60, 60), ("c.png", 90, 50)], 5
    ):
        tiles = rng.integers(0, 256, [height // 10, width // 10, 3], np.uint8)
        Image.fromarray(tiles.repeat(10, 0).repeat(10, 1)).save(folder / "images" / file)
        images.append({"id": image_id, "file_name": file, "height": height, "width": width})
        (found,) = detector.detect([(folder / "images" / file).read_bytes()])
        for name, category_id in DATA_IDS.items():
            best = np.flatnonzero(found.classes == names.index(name))[:3]
            for ymin, xmin, ymax, xmax in found.boxes_in_pixels(height, width)[best].tolist():
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": category_id,
                        "bbox": [xmin, ymin, xmax - xmin, ymax - ymin],
                    }
                )
    # The last is listed and labels nothing.
    categories = [{"id": id, "name": name} for name, id in {**DATA_IDS, "hexagon": 50}.items()]
    truth = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "truth.json").write_text(json.dumps(truth))
    source = {"format": "coco", "annotations": str(folder / "truth.json"), "images": str(folder / "images")}
    values = {**config.model_dump(mode="json"), "data": {"evaluate": source}, "evaluate": {"batch_size": 2}}
    asked = override(values, (), "tiny")
    run.write_text("config.yaml", asked.to_yaml())
    return folder


def results(folder):
    return [json.loads((folder / f"{name}.json").read_text()) for name in ("evaluation", "detections")]


def by_image(detections):
    """Return {image id: its rows of (category id, score, box), in a fixed order}."""
    rows = {}
    for entry in detections:
        row = (entry["category_id"], entry["score"], *entry["bbox"])
        rows.setdefault(entry["image_id"], []).append(row)
    return {image_id: np.array(sorted(found)) for image_id, found in rows.items()}


def test_a_run_and_its_savedmodel_score_the_same(run, capsys):
    own = run / "evaluation.json"  # of the training, which a sweep reads
    own.write_text("{}")
    assert evaluate_tool.main([str(run)]) == 0
    assert evaluate_tool.main([str(run / "saved_model")]) == 0
    assert own.read_text() == "{}"
    live, alone = results(run / "evaluation"), results(run / "evaluation-saved_model")
    assert "AP     IoU 0.50:0.95" in capsys.readouterr().out

    assert live[0]["model"].endswith("step-000012")  # the best
    assert live[0]["AP"] > 0.1
    assert live[0]["AP"] == pytest.approx(alone[0]["AP"], abs=1e-6)
    assert set(live[0]["classes"]) == {*DATA_IDS, "hexagon"}
    assert live[0]["classes"]["hexagon"] == {"AP": None, "AP50": None}
    found, found_alone = by_image(live[1]), by_image(alone[1])
    assert set(found) == set(found_alone) == {5, 6, 7}
    assert {row[0] for rows in found.values() for row in rows} == set(DATA_IDS.values())
    for image_id, rows in found.items():
        alone_rows = found_alone[image_id]
        np.testing.assert_allclose(rows[:, 1], alone_rows[:, 1], atol=1e-4)  # scores
        np.testing.assert_allclose(rows, alone_rows, atol=3e-3)  # boxes, in pixels


def test_which_checkpoint_of_a_run_and_where_its_results_go(run, tmp_path, monkeypatch):
    checkpoints = run / "checkpoints"
    assert find_checkpoint(run) == checkpoints / "step-000012"
    assert find_checkpoint(run, "last") == checkpoints / "step-000013"
    assert find_checkpoint(checkpoints / "last") == checkpoints / "last"
    assert run_of(checkpoints / "step-000013") == run_of(run / "saved_model") == run
    assert place_beside(checkpoints / "last", "evaluation") == run / "evaluation-step-000013"
    assert place_beside(tmp_path / "elsewhere", "saved_model") == tmp_path / "saved_model-elsewhere"
    monkeypatch.chdir(run.parent)
    assert str(run_of(run / "saved_model")) == "tiny"

    # A folder called checkpoints does not make its parent a run.
    (tmp_path / "checkpoints").mkdir()
    assert run_of(tmp_path / "checkpoints") is None


def test_mistakes_are_one_line(run, tmp_path, capsys):
    def error(*arguments):
        assert evaluate_tool.main(list(arguments)) == 2
        return capsys.readouterr().err

    assert "there is nothing at" in error(str(tmp_path / "nowhere"))
    assert "only data and evaluate can be set" in error(str(run), "--set", "model.rpn.l2=1")
    assert "names no data: set data.evaluate" in error(str(run), "--set", "data.evaluate=null")
    shutil.copytree((run / "checkpoints" / "best").resolve(), tmp_path / "of_no_run")
    assert "names no data: set data.evaluate, like --set" in error(str(tmp_path / "of_no_run"))
    (run / "checkpoints" / "best").rename(run / "checkpoints" / "hidden")
    try:
        assert "has no best checkpoint; try --checkpoint last" in error(str(run), "--checkpoint", "best")
    finally:
        (run / "checkpoints" / "hidden").rename(run / "checkpoints" / "best")
    (tmp_path / "saved_model.pb").write_bytes(b"")
    assert "is not of tools/export.py: it has no assets" in error(
        str(tmp_path), "--config", str(run / "config.yaml")
    )


def test_a_class_that_the_model_does_not_know_is_an_error(run, tmp_path, capsys):
    truth = json.loads((run / "truth.json").read_text())
    truth["categories"][0]["name"] = "ellipse"
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    setting = f"data.evaluate.annotations={tmp_path / 'truth.json'}"
    assert evaluate_tool.main([str(run / "saved_model"), "--set", setting]) == 2
    assert "the model does not know the data set's classes 'ellipse'" in capsys.readouterr().err

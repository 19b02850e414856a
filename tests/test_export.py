import io
import json
import shutil
import subprocess
from pathlib import Path

import export as export_tool
import numpy as np
import pytest
import tensorflow as tf
from exported_run import CATEGORIES, IDS, KEEP_ASPECT, build, config_with
from PIL import Image

from detector import checkpoint, export_check
from detector.builder import build_resizer
from detector.digest import digest
from detector.export import (
    ENCODED_SIGNATURE,
    IMAGES_SIGNATURE,
    LABEL_MAP,
    MANIFEST,
    export,
    freeze_manifest,
    label_map_ids,
    serving_functions,
)
from detector.freeze_proof import FreezeProofError
from detector.label_map import read_label_map
from detector.loading import load_detector
from detector.resizer import to_canvas

pytestmark = pytest.mark.usefixtures("rewritten_graphs")

RESIZERS = {
    "fixed": {"kind": "fixed_shape", "height": 64, "width": 96},
    "keep aspect": KEEP_ASPECT,
    "keep aspect, padded": {**KEEP_ASPECT, "pad": True},
}


def make_image(seed, height, width):
    rng = np.random.default_rng(seed)
    tiles = rng.integers(0, 256, [height // 16 + 1, width // 16 + 1, 3], np.uint8)
    return tiles.repeat(16, 0).repeat(16, 1)[:height, :width]


def png(image):
    return tf.io.encode_png(image).numpy()


def expected(model, resizer, images):
    """Return detections by the model itself on canvases padded here: per image (boxes 0 … 1, scores, ids)."""
    canvases = [tuple(part.numpy() for part in to_canvas(resizer)(tf.constant(image))) for image in images]
    canvas = np.zeros([len(images), *np.max([part.shape for part, _ in canvases], axis=0)], np.uint8)
    for row, (part, _) in enumerate(canvases):
        canvas[row, : part.shape[0], : part.shape[1]] = part
    sizes = np.stack([size for _, size in canvases])
    found = model.detect(tf.constant(canvas), tf.constant(sizes))
    return [
        (
            found.boxes_yxyx[row, :count].numpy() / np.tile(sizes[row], 2),
            found.scores[row, :count].numpy(),
            np.array(IDS)[found.classes[row, :count].numpy()],
        )
        for row, count in enumerate(found.count.numpy())
    ]


def assert_detects(outputs, reference):
    assert len(outputs["num_detections"]) == len(reference)
    for row, (boxes, scores, ids) in enumerate(reference):
        count = len(scores)
        assert count > 0
        assert outputs["num_detections"][row] == count
        np.testing.assert_allclose(outputs["detection_boxes"][row, :count], boxes, atol=1e-5)
        np.testing.assert_allclose(outputs["detection_scores"][row, :count], scores, atol=1e-5)
        np.testing.assert_array_equal(outputs["detection_classes"][row, :count], ids)


@pytest.fixture(scope="module")
def model():
    """The detector that was exported, which no test changes."""
    return build()


def resizer_of(kind="keep aspect"):
    return build_resizer(config_with(RESIZERS[kind]).model)


@pytest.mark.filterwarnings("ignore:Even though the:UserWarning")
@pytest.mark.parametrize("kind", RESIZERS)
def test_both_signatures_detect_what_the_model_does(kind, model, request):
    if kind != "keep aspect":
        request.getfixturevalue("eagerly")  # the one that leaves sizes open to the graph is traced
    resizer = resizer_of(kind)
    serve = serving_functions(model, resizer, IDS)
    first, second, other = make_image(1, 80, 120), make_image(2, 80, 120), make_image(3, 131, 70)

    for images in ([first, second], [other]):
        assert_detects(serve[IMAGES_SIGNATURE](np.stack(images)), expected(model, resizer, images))
    jpeg = tf.io.encode_jpeg(other).numpy()
    images = [first, tf.io.decode_image(jpeg).numpy(), second]
    outputs = serve[ENCODED_SIGNATURE](tf.constant([png(first), jpeg, png(second)]))
    assert_detects(outputs, expected(model, resizer, images))


def test_ids_that_a_label_map_cannot_hold_are_numbered_anew():
    assert label_map_ids(CATEGORIES) == [7, 3, 90]
    assert label_map_ids([{"id": 0, "name": "a"}, {"id": 5, "name": "b"}]) == [1, 2]
    assert label_map_ids([{"id": 2**24 + 1, "name": "a"}]) == [1]


@pytest.fixture(scope="module")
def run(exported_run):
    return exported_run.folder


@pytest.fixture(scope="module")
def exported(exported_run):
    """What the tool wrote of the run, and what that gave in a process of its own."""
    return exported_run.saved_model, exported_run.alone


@pytest.fixture(scope="module")
def loaded(exported):
    return tf.saved_model.load(str(exported[0]))


def test_the_tool_exports_a_run_that_runs_without_this_package(exported, run):
    _, alone = exported
    cases = {key.split(":")[1] for key in alone}
    assert cases == {"one image", "a batch of two", "a batch of two, encoded", "JPEG and PNG of two sizes"}
    assert alone[f"{IMAGES_SIGNATURE}:a batch of two:detection_boxes"].shape == (2, 20, 4)
    assert {entry.name for entry in run.iterdir()} >= {"saved_model", "checkpoints"}
    assert not list(run.glob(".*"))  # nothing half written is left


def test_the_savedmodel_has_the_names_and_types_of_the_object_detection_api(loaded):
    assert set(loaded.signatures) == {"serving_default", "encoded_image_string_tensor"}
    images, encoded = loaded.signatures["serving_default"], loaded.signatures["encoded_image_string_tensor"]
    assert images.structured_input_signature[1] == {
        "input_tensor": tf.TensorSpec([None, None, None, 3], tf.uint8, name="input_tensor")
    }
    assert encoded.structured_input_signature[1] == {
        "input_tensor": tf.TensorSpec([None], tf.string, name="input_tensor")
    }
    for signature in (images, encoded):
        shapes = {name: tuple(spec.shape) for name, spec in signature.structured_outputs.items()}
        assert shapes == {
            "detection_boxes": (None, 20, 4),
            "detection_scores": (None, 20),
            "detection_classes": (None, 20),
            "num_detections": (None,),
            "raw_detection_boxes": (None, 16, 4),
            "raw_detection_scores": (None, 16, 4),
        }
        assert {spec.dtype for spec in signature.structured_outputs.values()} == {tf.float32}


def test_the_savedmodel_refuses_a_bmp_with_a_palette(loaded):
    image, buffer = Image.fromarray(make_image(1, 80, 120)), io.BytesIO()
    image.save(buffer, "BMP")
    outputs = loaded.signatures[ENCODED_SIGNATURE](tf.constant([buffer.getvalue()]))
    reference = loaded.signatures[IMAGES_SIGNATURE](tf.constant(np.asarray(image)[None]))
    np.testing.assert_array_equal(outputs["detection_boxes"], reference["detection_boxes"])
    buffer = io.BytesIO()
    image.quantize(16).save(buffer, "BMP")
    message = "it is a BMP with a palette, which TensorFlow cannot read; convert it to PNG or JPEG"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        loaded.signatures[ENCODED_SIGNATURE](tf.constant([buffer.getvalue()]))


def test_the_savedmodel_holds_the_models_variables_and_only_those(exported, loaded, model):
    manifest = json.loads((exported[0] / MANIFEST).read_text())
    assert {path: digest(value.numpy()) for path, value in loaded.model_variables.items()} == manifest[
        "digests"
    ]
    assert set(manifest["digests"]) == set(model.variables_by_path)
    reader = tf.train.load_checkpoint(str(exported[0] / "variables" / "variables"))
    stored = [name for name in reader.get_variable_to_shape_map() if name != "_CHECKPOINTABLE_OBJECT_GRAPH"]
    assert len(stored) == len(model.variables_by_path)


def test_raw_detections_are_the_proposals_before_suppression(loaded):
    outputs = loaded.signatures[IMAGES_SIGNATURE](tf.constant(make_image(1, 80, 120)[None]))
    boxes, scores = outputs["raw_detection_boxes"][0].numpy(), outputs["raw_detection_scores"][0].numpy()
    assert boxes.shape == (16, 4) and scores.shape == (16, 4)
    assert boxes.min() >= 0 and boxes.max() <= 1
    is_proposal = scores.any(axis=1)
    np.testing.assert_allclose(scores[is_proposal].sum(axis=1), 1.0, atol=1e-5)
    # Nothing scores more than the best detection, which keeps its proposal's box for its likeliest class.
    best = scores[:, 1:].max(axis=1).argmax()
    assert scores[best, 1:].max() == pytest.approx(float(outputs["detection_scores"][0, 0]))
    np.testing.assert_allclose(boxes[best], outputs["detection_boxes"][0, 0], atol=1e-5)


def test_detecting_prints_nothing(exported, run, capfd):
    for place in (exported[0], run):
        load_detector(place).detect([png(make_image(1, 80, 120))])
    assert capfd.readouterr() == ("", "")


def test_label_map_and_manifest_are_inside(exported):
    saved_model = exported[0]
    assert read_label_map(saved_model / LABEL_MAP) == {3: "square", 7: "circle", 90: "star"}
    manifest = json.loads((saved_model / MANIFEST).read_text())
    assert manifest["step"] == 12
    assert manifest["categories"] == CATEGORIES
    assert manifest["plan"] == {"freeze": ["made up"]}
    assert manifest["proof"]["holds"] and manifest["proof"]["frozen_variables"] == 2
    assert manifest["model"]["resizer"]["min_dimension"] == 64
    assert "tensorflow" in manifest["environment"]["packages"]


def test_a_savedmodel_that_detects_something_else_fails_loudly(exported, run, tmp_path, monkeypatch, capfd):
    key = f"{ENCODED_SIGNATURE}:JPEG and PNG of two sizes:detection_boxes"
    wrong = {**exported[1], key: exported[1][key] + 0.01}
    monkeypatch.setattr(export_check, "_run_alone", lambda *arguments: wrong)
    # What it would write is there already.
    monkeypatch.setattr(
        "detector.export.export", lambda model, resizer, place, **_: shutil.copytree(exported[0], place)
    )
    assert export_tool.main([str(run), "--output", str(tmp_path / "other")]) == 1
    written = capfd.readouterr()
    *head, _, one, two, encoded, mixed, each_other = written.out.splitlines()
    assert [line.split()[0] for line in head] == ["checkpoint:", "wrote"]
    assert mixed.startswith("  DIFFERS JPEG and PNG of two sizes, against the live model: ")
    assert all(line.startswith("  ok ") for line in (one, two, encoded, each_other))
    # Nothing else is said, by TensorFlow neither.
    assert "does not detect what the checkpoint does" in written.err and written.err.count("\n") == 1
    assert (tmp_path / "other" / "saved_model.pb").is_file()

    failed = subprocess.CompletedProcess([], 1, stderr="Traceback …\nModuleNotFoundError: detector")
    monkeypatch.undo()
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: failed)
    with pytest.raises(export_check.ExportCheckError, match=r"TensorFlow alone(.|\n)*ModuleNotFoundError"):
        export_check._run_alone(tmp_path / "other", {})


def test_rows_agree_in_any_order_and_a_missing_one_does_not():
    rows = np.arange(40, dtype=np.float32)[:, np.newaxis] * np.ones(6)
    assert export_check._agreement([rows], [rows[::-1]]) == export_check.Agreement(1.0, 0.0)
    fewer = export_check._agreement([rows], [rows[:-1]])
    assert fewer.part == 78 / 79 and fewer.largest == 1.0 and fewer.holds
    assert not export_check._agreement([rows], [rows[:-5]]).holds
    assert not export_check._agreement([rows], [rows[:0]]).holds
    assert not export_check._agreement([rows], [rows + 0.01]).holds


def test_only_a_savedmodel_is_replaced(tmp_path, monkeypatch, model):
    def save(module, folder, **options):
        (Path(folder) / "saved_model.pb").write_bytes(b"a newer one")
        assets = Path(folder) / "assets"
        assets.mkdir()
        for asset in (module.label_map, module.freeze_manifest):
            shutil.copy(asset.asset_path.numpy().decode(), assets)

    monkeypatch.setattr(tf.saved_model, "save", save)
    resizer = resizer_of()
    (tmp_path / "precious").mkdir()
    with pytest.raises(ValueError, match="precious exists and is no SavedModel"):
        export(model, resizer, tmp_path / "precious", categories=CATEGORIES, manifest={})
    with pytest.raises(ValueError, match="expected the categories of the model's classes"):
        export(model, resizer, tmp_path / "new", categories=CATEGORIES[:2], manifest={})
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]

    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "saved_model.pb").write_bytes(b"an older one")
    export(model, resizer, tmp_path / "old", categories=CATEGORIES, manifest={"page": "new"})
    assert (tmp_path / "old" / "saved_model.pb").read_bytes() == b"a newer one"
    assert json.loads((tmp_path / "old" / MANIFEST).read_text()) == {"page": "new"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old", "precious"]


def test_a_full_disk_is_one_line_and_leaves_the_older_savedmodel(tmp_path, monkeypatch, model):
    place = tmp_path / "saved_model"
    place.mkdir()
    (place / "saved_model.pb").write_bytes(b"an older one")

    def full(module, folder, **options):
        (Path(folder) / "variables").mkdir()
        raise tf.errors.ResourceExhaustedError(None, None, f"{folder}/variables; No space left on device")

    monkeypatch.setattr(tf.saved_model, "save", full)
    message = f"the SavedModel could not be written to {place}: No space left on device; make room"
    with pytest.raises(OSError, match=message):
        export(model, resizer_of(), place, categories=CATEGORIES, manifest={})
    assert [path.name for path in tmp_path.iterdir()] == ["saved_model"]
    assert (place / "saved_model.pb").read_bytes() == b"an older one"


def test_a_frozen_variable_that_moved_is_not_exported(run, model):
    info = checkpoint.restore(run / "checkpoints" / "last", model.variables_by_path)
    assert freeze_manifest(model, info)["proof"]["holds"]
    first = next(iter(model.variables_by_path.values()))
    value = first.numpy()
    first.assign(value + 1e-3)
    try:
        with pytest.raises(FreezeProofError, match="1 of 2 frozen variables moved"):
            freeze_manifest(model, info)
    finally:
        first.assign(value)


def test_mistakes_are_one_line(tmp_path, capsys):
    assert export_tool.main([str(tmp_path / "nowhere")]) == 2
    assert "there is nothing at" in capsys.readouterr().err
    assert export_tool.main([str(tmp_path)]) == 2
    assert "is no SavedModel, no checkpoint and no run's folder" in capsys.readouterr().err
    (tmp_path / "saved_model.pb").touch()
    assert export_tool.main([str(tmp_path)]) == 2
    assert "is a SavedModel already; name its run or its checkpoint" in capsys.readouterr().err

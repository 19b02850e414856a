import io
import json

import numpy as np
import predict as predict_tool
import pytest
import tensorflow as tf
from conftest import CLASS_NAMES, TINY
from PIL import Image

from detector import checkpoint
from detector.builder import build_model, build_resizer
from detector.checkpoint import CheckpointInfo
from detector.config import override
from detector.loading import load_detector
from detector.resizer import to_canvas

IDS = (7, 3, 90)


@pytest.fixture(scope="module")
def model_and_path(tmp_path_factory):
    config = override(TINY, (), "tiny").model
    model = build_model(config, CLASS_NAMES, seed=5)
    info = CheckpointInfo(
        step=1,
        categories=[{"id": id, "name": name} for id, name in zip(IDS, CLASS_NAMES, strict=True)],
        model=config.model_dump(mode="json"),
    )
    path = checkpoint.save(tmp_path_factory.mktemp("model") / "checkpoint", info, model.variables_by_path)
    return (model, build_resizer(config)), path


@pytest.fixture
def images(tmp_path):
    """Two images, a text and a damaged image in a folder, and an image elsewhere called as the first."""
    rng = np.random.default_rng(0)
    for place, size_hw in [("in/a.png", (80, 120)), ("in/b.JPG", (50, 40)), ("else/a.png", (64, 64))]:
        (tmp_path / place).parent.mkdir(exist_ok=True)
        tiles = rng.integers(0, 256, [*(side // 10 for side in size_hw), 3], np.uint8)
        Image.fromarray(tiles.repeat(10, 0).repeat(10, 1)).save(
            tmp_path / place, format="JPEG" if place.endswith("JPG") else "PNG"
        )
    (tmp_path / "in" / "readme.txt").write_text("no image")
    (tmp_path / "in" / "broken.jpg").write_bytes((tmp_path / "in" / "b.JPG").read_bytes()[:60])
    return tmp_path


def test_pictures_and_predictions_of_files_and_folders(model_and_path, images, capsys):
    (model, resizer), path = model_and_path
    output = images / "out"
    canvas, size_hw = to_canvas(resizer)(tf.constant(np.asarray(Image.open(images / "in" / "a.png"))))
    found = model.detect(canvas[tf.newaxis], size_hw[tf.newaxis])
    count = 4
    threshold = found.scores[0].numpy()[count - 1 : count + 1].mean()
    inputs = [str(images / "in"), str(images / "else" / "a.png"), str(images / "in" / "a.png")]
    code = predict_tool.main(
        [str(path), *inputs, "--output", str(output), "--score-threshold", str(threshold)]
    )
    written = capsys.readouterr()

    assert f"{images / 'in'}: passed over 1 of 4 entries, which do not end in .jpg" in written.err
    assert code == 1  # one image is broken
    assert f"skipped {images / 'in' / 'broken.jpg'}" in written.err
    assert "1 of 4 images could not be read" in written.err
    page = json.loads((output / "predictions.json").read_text())
    assert [entry["file_name"] for entry in page["skipped"]] == [str(images / "in" / "broken.jpg")]
    assert [(entry["id"], entry["picture"]) for entry in page["images"]] == [
        (1, "a.jpg"),
        (2, "b.jpg"),
        (3, "a-2.jpg"),
    ]
    assert {file.name for file in output.iterdir()} == {"a.jpg", "b.jpg", "a-2.jpg", "predictions.json"}
    assert Image.open(output / "a.jpg").size == (480, 320)
    assert page["categories"] == [
        {"id": 3, "name": "square"},
        {"id": 7, "name": "circle"},
        {"id": 90, "name": "star"},
    ]

    # The boxes are pixels of the file's image, and the classes those of the model.
    boxes = found.boxes_yxyx[0, :count].numpy() / 64 * [80, 120, 80, 120]
    mine = [entry for entry in page["detections"] if entry["image_id"] == 1]
    assert len(mine) == count
    np.testing.assert_allclose(
        [entry["bbox"] for entry in mine],
        np.stack([boxes[:, 1], boxes[:, 0], boxes[:, 3] - boxes[:, 1], boxes[:, 2] - boxes[:, 0]], axis=1),
        atol=2e-3,
    )
    classes = found.classes[0, :count].numpy()
    assert [entry["category_name"] for entry in mine] == [CLASS_NAMES[index] for index in classes]
    assert [entry["category_id"] for entry in mine] == [IDS[index] for index in classes]
    assert {entry["file_name"] for entry in mine} == {str(images / "in" / "a.png")}


def test_a_bmp_with_a_palette_is_skipped_as_training_refuses_it(model_and_path, images, capsys):
    source, colours = images / "map.bmp", Image.open(images / "in" / "a.png").quantize(16)
    colours.save(source)
    assert predict_tool.main([str(model_and_path[1]), str(source), "--output", str(images / "out")]) == 1
    reason = "it is a BMP with a palette, which TensorFlow cannot read; convert it to PNG or JPEG"
    assert f"skipped {source}: {reason}\n" in capsys.readouterr().err
    page = json.loads((images / "out" / "predictions.json").read_text())
    assert page["skipped"] == [{"file_name": str(source), "reason": reason}] and not page["images"]


def test_what_cannot_be_decoded_is_said_in_one_line(model_and_path, images):
    detector = load_detector(model_and_path[1])
    with pytest.raises(ValueError, match=r"^an image cannot be decoded: Unknown image file format[^\n]*$"):
        detector.detect([(images / "in" / "readme.txt").read_bytes()])
    buffer = io.BytesIO()
    Image.open(images / "in" / "a.png").quantize(16).save(buffer, "BMP")
    with pytest.raises(
        ValueError, match=r"^an image cannot be decoded: it is a BMP with a palette, .* JPEG$"
    ):
        detector.detect([buffer.getvalue()])


def test_mistakes_are_named_before_the_model_is_loaded(images, capsys):
    def error(*arguments):
        assert predict_tool.main(["no_model", *arguments]) == 2
        return capsys.readouterr().err

    (images / "empty").mkdir()
    output = ["--output", str(images / "out")]
    assert "has no images (.jpg" in error(str(images / "empty"), *output)
    assert "there is nothing at" in error(str(images / "gone.jpg"), *output)
    assert "between 0 and 1, got 50.0" in error(str(images / "in"), *output, "--score-threshold", "50")
    assert "name another --output" in error(str(images / "in"), "--output", str(images / "in"))
    assert "there is nothing at no_model" in error(str(images / "in"), *output)
    assert not (images / "out").exists()

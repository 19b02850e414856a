import json

import cv2
import numpy as np
import pytest

from data import shapes
from data.dataset import LabelError
from data.shapes import CLASS_NAMES, IMAGE_COUNTS, IMAGE_SIZE, draw_image, make_shapes, read_shapes

FEW = {"source/train": 6, "target/train": 5, "target/val": 2}


def contents(folders):
    return {
        f"{name}/{path.relative_to(folder)}": path.read_bytes()
        for name, folder in folders.items()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_same_bytes_every_time_and_drawn_once(tmp_path):
    first = make_shapes(tmp_path / "a", FEW)
    second = make_shapes(tmp_path / "b", FEW)
    assert contents(first) == contents(second)
    assert len(contents(first)) == sum(FEW.values()) + len(FEW)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")}
    assert make_shapes(tmp_path / "a", FEW) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")} == times
    # A smaller set has the same first images.
    fewer = make_shapes(tmp_path / "a", {"target/train": 2})
    images = [folder / "images/00002.jpg" for folder in (first["target/train"], fewer["target/train"])]
    assert images[0].read_bytes() == images[1].read_bytes()


@pytest.mark.parametrize("lost", ["images/00003.jpg", "annotations.json"])
def test_a_folder_that_lost_files_is_drawn_again(tmp_path, lost):
    folders = make_shapes(tmp_path, FEW)
    whole = contents(folders)
    (folders["target/train"] / lost).unlink()
    assert contents(make_shapes(tmp_path, FEW)) == whole


def test_an_interrupted_drawing_leaves_nothing_that_is_taken_for_whole(tmp_path, monkeypatch):
    draw_split = shapes._draw_split

    def interrupted(folder, name, count):
        draw_split(folder, name, count)
        if name == "target/train":
            raise KeyboardInterrupt

    monkeypatch.setattr(shapes, "_draw_split", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_shapes(tmp_path, FEW)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert len(contents(make_shapes(tmp_path, FEW))) == sum(FEW.values()) + len(FEW)


def test_the_labels(tmp_path):
    for domain, count in (("source", 6), ("target", 5)):
        dataset = read_shapes(tmp_path, domain, "train", FEW)
        assert dataset.class_names == list(CLASS_NAMES)
        assert len(dataset) == count
        assert dataset.report.lines() == []
        assert cv2.imread(str(dataset.examples[0].source.path)).shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
    with pytest.raises(ValueError, match="expected a domain of source, target"):
        read_shapes(tmp_path, "sorce", "train", FEW)
    labels = json.loads((make_shapes(tmp_path, FEW)["source/train"] / "annotations.json").read_text())
    assert set(labels) == {"images", "annotations", "categories"}


def test_the_classes_come_in_the_order_asked_for(tmp_path):
    usual = read_shapes(tmp_path, "source", "train", FEW)
    reordered = read_shapes(tmp_path, "source", "train", FEW, class_names=CLASS_NAMES[::-1])
    assert reordered.class_names == list(CLASS_NAMES[::-1])
    for one, other in zip(usual.examples, reordered.examples, strict=True):
        np.testing.assert_array_equal(other.classes, len(CLASS_NAMES) - 1 - one.classes)
    with pytest.raises(LabelError, match="category 'star' is not in class_names"):
        read_shapes(tmp_path, "source", "train", FEW, class_names=CLASS_NAMES[:3])
    with pytest.raises(LabelError, match="has no class 'sqare' of class_names; nearest: 'square'"):
        read_shapes(tmp_path, "source", "train", FEW, class_names=["sqare"])


def test_the_documented_sizes():
    assert IMAGE_COUNTS == {"source/train": 800, "source/val": 100, "target/train": 120, "target/val": 100}


@pytest.mark.parametrize("domain", ["source", "target"])
def test_objects_of_every_class_within_bounds_hardly_overlapping(domain):
    classes, sides, counts = [], [], []
    for seed in range(150):
        image, objects = draw_image(domain, np.random.default_rng(seed))
        assert (image.dtype, image.shape) == (np.uint8, (IMAGE_SIZE, IMAGE_SIZE, 3))
        counts.append(len(objects))
        for number, (class_id, box, area) in enumerate(objects):
            xmin, ymin, xmax, ymax = box
            assert 0 <= xmin < xmax <= IMAGE_SIZE
            assert 0 <= ymin < ymax <= IMAGE_SIZE
            assert area <= (xmax - xmin) * (ymax - ymin) + 0.1
            classes.append(class_id)
            sides.append(max(xmax - xmin, ymax - ymin))
            for _, other, _ in objects[:number]:
                width = max(0, min(xmax, other[2]) - max(xmin, other[0]))
                height = max(0, min(ymax, other[3]) - max(ymin, other[1]))
                assert width * height <= 0.11 * (xmax - xmin) * (ymax - ymin)
    assert min(np.bincount(classes, minlength=4)) > 60
    assert (min(counts), max(counts)) == (0, 4)
    assert counts.count(0) < 15
    assert min(sides) >= 19.9
    assert max(sides) <= 60.1


def test_a_box_is_where_its_object_was_drawn(monkeypatch):
    # Without noise what differs from the ground, drawn with the same seed, is the object.
    monkeypatch.setattr(shapes, "_source_ground", lambda rng: np.full((IMAGE_SIZE, IMAGE_SIZE, 3), 255.0))
    monkeypatch.setattr(shapes, "_source_fill", lambda rng: np.zeros(3))
    alone = 0
    for seed in range(60):
        image, objects = draw_image("source", np.random.default_rng(seed))
        if len(objects) != 1:
            continue
        alone += 1
        y, x = np.nonzero(image[:, :, 0] < 128)
        # The tips of a star or a triangle cover too little of their pixels to count.
        atol = 1 if CLASS_NAMES[objects[0][0]] in ("circle", "square") else 2.5
        np.testing.assert_allclose((x.min(), y.min(), x.max() + 1, y.max() + 1), objects[0][1], atol=atol)
        assert len(x) == pytest.approx(objects[0][2], rel=0.1)
    assert alone > 5


def test_the_domains_look_different():
    def roughness(domain):
        images = (draw_image(domain, np.random.default_rng(seed))[0].astype(float) for seed in range(20))
        return [np.abs(np.diff(image, axis=1)).mean() for image in images]

    assert max(roughness("source")) < min(roughness("target"))

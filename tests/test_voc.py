from pathlib import Path

import cv2
import numpy as np
import pytest

from data.dataset import LabelError
from data.voc import read_voc

BCCD = Path(__file__).parents[2] / "shared" / "data" / "bccd"


def write_xml(root, name, objects, filename=None, size=(40, 60)):
    body = "".join(
        f"<object><name>{label}</name><difficult>1</difficult><bndbox><xmin>{xmin}</xmin><ymin>{ymin}</ymin>"
        f"<xmax>{xmax}</xmax><ymax>{ymax}</ymax></bndbox></object>"
        for label, xmin, ymin, xmax, ymax in objects
    )
    (root / "Annotations" / f"{name}.xml").write_text(
        f"<annotation><filename>{filename or name + '.jpg'}</filename><size><width>{size[1]}</width>"
        f"<height>{size[0]}</height></size>{body}</annotation>"
    )


@pytest.fixture
def root(tmp_path):
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("one.jpg", "two.png", "three.jpg"):
        cv2.imwrite(str(tmp_path / "JPEGImages" / name), np.zeros((40, 60, 3), np.uint8))
    write_xml(tmp_path, "one", [("dog", 1, 1, 60, 40), ("cat", 11, 21, 20, 30)])
    write_xml(tmp_path, "two", [("bird", 5, 5, 5, 5), ("cat", 50, 30, 70, 35)], filename="stale.jpg")
    write_xml(tmp_path, "three", [])
    (tmp_path / "ImageSets/Main/train.txt").write_text("two\nthree\n")
    (tmp_path / "ImageSets/Main/cat_train.txt").write_text("one  1\ntwo -1\n")
    return tmp_path


def test_corners_from_one_become_pixels_from_zero(root):
    dataset = read_voc(root)
    assert [example.source.path.name for example in dataset.examples] == ["one.jpg", "three.jpg", "two.png"]
    assert [example.image_id for example in dataset.examples] == [1, 2, 3]
    assert [(category.id, category.name) for category in dataset.categories] == [
        (1, "bird"), (2, "cat"), (3, "dog"),
    ]  # fmt: skip
    one, three, _ = dataset.examples
    np.testing.assert_array_equal(one.boxes_yxyx, [[0, 0, 40, 60], [20, 10, 30, 20]])
    np.testing.assert_array_equal(one.classes, [2, 1])
    np.testing.assert_array_equal(one.areas, [2400, 100])
    assert not one.is_crowd.any()
    assert three.boxes_yxyx.shape == (0, 4)


def test_a_split_has_the_classes_of_all_and_reports_what_it_dropped(root):
    dataset = read_voc(root, "train")
    assert [example.source.path.name for example in dataset.examples] == ["two.png", "three.jpg"]
    assert dataset.class_names == ["bird", "cat", "dog"]
    np.testing.assert_array_equal(dataset.examples[0].boxes_yxyx, [[29, 49, 35, 60]])
    file = root / "Annotations" / "two.xml"
    assert dataset.report.lines() == [
        f"1 × box of zero or negative size: dropped ({file}: object 1, bird)",
        f"1 × box partly outside the image: clipped ({file}: object 2, cat)",
    ]


def test_class_names_set_the_order(root):
    dataset = read_voc(root, "cat_train", class_names=["dog", "cat", "bird"])
    assert [(category.id, category.name) for category in dataset.categories] == [
        (1, "dog"), (2, "cat"), (3, "bird"),
    ]  # fmt: skip
    np.testing.assert_array_equal(dataset.examples[0].classes, [0, 1])


def unknown_class(root):
    write_xml(root, "one", [("dog", 1, 1, 9, 9), ("cta", 1, 1, 9, 9)])


def missing_image(root):
    (root / "JPEGImages/two.png").unlink()


def unreadable_image(root):
    (root / "JPEGImages/one.jpg").write_bytes(b"\xff\xd8\xff")


def broken_xml(root):
    (root / "Annotations/one.xml").write_text("<annotation>")


def other_xml(root):
    (root / "Annotations/one.xml").write_text("<html></html>")


def bad_number(root):
    write_xml(root, "one", [("dog", "x", 1, 9, 9)])


def nameless(root):
    write_xml(root, "one", [("", 1, 1, 9, 9)])


def bad_size(root):
    write_xml(root, "one", [("dog", 1, 1, 9, 9)], size=("", 60))


def missing_annotation(root):
    (root / "Annotations/two.xml").unlink()


def listed_twice(root):
    (root / "ImageSets/Main/cat_train.txt").write_text("one\ntwo\none\n")


def no_boxes(root):
    write_xml(root, "one", [])
    write_xml(root, "two", [])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (unknown_class, r"one\.xml: object 2, cta: unknown class; nearest: 'cat'"),
        (missing_image, r"cat_train\.txt: 1 of 2 images do not exist \(.*two\.jpg"),
        (unreadable_image, r"cat_train\.txt: 1 of 2 images are unreadable \(.*one\.jpg"),
        (broken_xml, r"one\.xml: is not an XML file"),
        (other_xml, r"one\.xml: expected VOC's <annotation>, got <html>"),
        (bad_number, r"one\.xml: object 1, dog: expected numbers .*'x'"),
        (nameless, r"one\.xml: an <object> has no <name>"),
        (bad_size, r"one\.xml: <size>: expected whole"),
        (missing_annotation, r"cat_train\.txt: entry two: .*two\.xml does not exist"),
        (listed_twice, r"cat_train\.txt: one is listed twice"),
        (no_boxes, r"cat_train\.txt: none of the 2 images has a usable box"),
    ],
)
def test_what_cannot_be_dropped_is_one_error_that_names_file_and_entry(root, spoil, message):
    spoil(root)
    with pytest.raises(LabelError, match=message):
        read_voc(root, "cat_train", class_names=["dog", "cat", "bird"])


def test_names_with_spaces(root):
    write_xml(root, "my photo", [("dog", 1, 1, 60, 40)])
    cv2.imwrite(str(root / "JPEGImages" / "my photo.jpg"), np.zeros((40, 60, 3), np.uint8))
    for text in ("my photo\n", "my photo  1\r\n", "my photo -1\n"):
        (root / "ImageSets/Main/own.txt").write_text(text)
        assert len(read_voc(root, "own")) == 1


def test_absent_folders_and_splits(root, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"trian\.txt does not exist; splits there: cat_train, train"):
        read_voc(root, "trian")
    with pytest.raises(FileNotFoundError, match="has no folder Annotations"):
        read_voc(tmp_path / "ImageSets")
    (root / "JPEGImages").rename(root / "Pictures")
    with pytest.raises(FileNotFoundError, match="none of the image folders JPEGImages, Images"):
        read_voc(root)


@pytest.mark.skipif(not BCCD.is_dir(), reason="../shared/data/bccd is not there")
def test_bccd():
    sizes = {}
    for split in ("train", "val", "test"):
        dataset = read_voc(BCCD, split)
        assert dataset.class_names == ["Platelets", "RBC", "WBC"]
        sizes[split] = len(dataset)
    assert sizes == {"train": 205, "val": 87, "test": 72}
    dataset = read_voc(BCCD)
    assert len(dataset) == 364
    assert sum(len(example.boxes_yxyx) for example in dataset.examples) == 4888 - 2
    (line,) = dataset.report.lines()
    assert line.startswith("2 × box of zero or negative size: dropped (")
    assert "BloodImage_00338.xml: object" in line
    assert "BloodImage_00343.xml: object" in line

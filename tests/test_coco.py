import json

import cv2
import numpy as np
import pytest

from data.coco import read_coco
from data.dataset import LabelError


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.jpg", "b.png", "unlisted.jpg"):
        cv2.imwrite(str(folder / name), np.zeros((40, 60, 3), np.uint8))
    return folder


def labels():
    return {
        "images": [
            {"id": 9, "file_name": "b.png", "height": 40, "width": 60},
            {"id": 4, "file_name": "a.jpg", "height": 40, "width": 60},
        ],
        "annotations": [
            {"id": 1, "image_id": 4, "category_id": 18, "bbox": [2, 1, 20, 10], "area": 150, "iscrowd": 0},
            {"id": 2, "image_id": 4, "category_id": 3, "bbox": [0.5, 0, 59.5, 40], "iscrowd": 1},
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}],
    }


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "labels.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def test_boxes_classes_and_crowds(write, images):
    dataset = read_coco(write(labels()), images)
    assert dataset.report.lines() == []
    assert [(category.id, category.name) for category in dataset.categories] == [(3, "car"), (18, "dog")]
    empty, full = dataset.examples
    assert (empty.image_id, full.image_id) == (9, 4)
    assert empty.boxes_yxyx.shape == (0, 4)
    assert (empty.classes.dtype, empty.is_crowd.dtype) == (np.int32, bool)
    np.testing.assert_array_equal(full.boxes_yxyx, [[1, 2, 11, 22], [0, 0.5, 40, 60]])
    np.testing.assert_array_equal(full.classes, [1, 0])
    np.testing.assert_array_equal(full.is_crowd, [False, True])
    np.testing.assert_array_equal(full.areas, [150, 59.5 * 40])
    assert dataset.encoded_image(1) == (images / "a.jpg").read_bytes()


def test_ground_truth_is_the_file(write, images):
    truth = read_coco(write(labels()), images).coco_ground_truth()
    for written, read in zip(labels()["annotations"], truth["annotations"], strict=True):
        assert {key: read[key] for key in ("id", "image_id", "category_id", "bbox", "iscrowd")} == {
            key: written[key] for key in ("id", "image_id", "category_id", "bbox", "iscrowd")
        }


def test_class_names_set_the_order_of_the_class_ids(write, images):
    dataset = read_coco(write(labels()), images, class_names=["dog", "car"])
    assert [category.id for category in dataset.categories] == [18, 3]
    np.testing.assert_array_equal(dataset.examples[1].classes, [0, 1])


def test_what_can_be_dropped_is_dropped_and_counted(write, images):
    content = labels()
    content["images"][1]["width"] = 600
    content["annotations"] += [
        {"id": 3, "image_id": 4, "category_id": 3, "bbox": [10, 10, 0, 5]},
        {"id": 4, "image_id": 4, "category_id": 3, "bbox": [10, 10, 8, -5]},
        {"id": 5, "image_id": 4, "category_id": 3, "bbox": [100, 10, 8, 5]},
        {"id": 6, "image_id": 9, "category_id": 3, "bbox": [50, 30, 20, 20]},
        {"id": 7, "image_id": 77, "category_id": 3, "bbox": [50, 30, 20, 20]},
    ]
    dataset = read_coco(path := write(content), images)
    np.testing.assert_array_equal(dataset.examples[0].boxes_yxyx, [[30, 50, 40, 60]])
    assert len(dataset.examples[1].boxes_yxyx) == 2
    assert sorted(dataset.report.counts.values()) == [1, 1, 1, 1, 2]
    lines = "\n".join(dataset.report.lines())
    assert (
        f"zero or negative size: dropped ({path}: annotation 3, a.jpg; {path}: annotation 4, a.jpg)" in lines
    )
    assert f"outside the image: dropped ({path}: annotation 5, a.jpg)" in lines
    assert f"partly outside the image: clipped ({path}: annotation 6, b.png)" in lines
    assert f"not listed: dropped ({path}: annotation 7, image 77)" in lines
    assert "a.jpg: 60x40, labelled 600x40" in lines


def test_a_file_with_a_byte_order_mark(write, images):
    path = write(labels())
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read_coco(path, images)) == 2


def remove_image_file(content, images):
    (images / "a.jpg").unlink()


def break_image_file(content, images):
    (images / "b.png").write_bytes(b"not an image")


def unknown_category(content, images):
    content["annotations"][1]["category_id"] = 99


def duplicate_image(content, images):
    content["images"][1]["id"] = 9


def duplicate_annotation(content, images):
    content["annotations"][1]["id"] = 1


def duplicate_category(content, images):
    content["categories"][1]["id"] = 18


def duplicate_class_name(content, images):
    content["categories"][1]["name"] = "dog"


def no_annotations(content, images):
    content["annotations"].clear()


def only_empty_boxes(content, images):
    for annotation in content["annotations"]:
        annotation["bbox"] = [1, 1, 0, 0]


def no_box(content, images):
    del content["annotations"][0]["bbox"]


def three_numbers(content, images):
    content["annotations"][0]["bbox"] = [1, 2, 3]


def text_id(content, images):
    content["images"][0]["id"] = "000009"


def no_file_name(content, images):
    del content["images"][0]["file_name"]


def negative_image_id(content, images):
    content["images"][0]["id"] = -9


def text_area(content, images):
    content["annotations"][0]["area"] = "2500"


def text_crowd(content, images):
    content["annotations"][0]["iscrowd"] = "0"


def no_categories(content, images):
    del content["categories"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove_image_file, r"1 of 2 images do not exist \(.*a\.jpg\)"),
        (break_image_file, r"1 of 2 images are unreadable \(.*b\.png: .*header"),
        (unknown_category, "annotation 2: unknown category 99; 'categories' lists 18, 3"),
        (duplicate_image, "image number 1: duplicate image id 9"),
        (duplicate_annotation, "annotation number 1: duplicate annotation id 1"),
        (duplicate_category, "category number 1: duplicate category id 18"),
        (duplicate_class_name, "class 'dog' is listed twice"),
        (no_annotations, "'annotations' is empty"),
        (only_empty_boxes, r"none of the 2 images has a usable box \(2 × box of zero"),
        (no_box, r"annotation 1: expected 'bbox' to be \[x, y, width, height\], got None"),
        (three_numbers, r"annotation 1: .*got \[1, 2, 3\]"),
        (text_id, "image number 0: expected 'id' to be a int, got '000009'"),
        (no_file_name, "image 9: expected 'file_name' to be a str, got None"),
        (negative_image_id, "image id -9: expected a whole number from 0"),
        (text_area, "annotation 1: expected 'area' to be a number, got '2500'"),
        (text_crowd, "annotation 1: expected 'iscrowd' to be 0 or 1, got '0'"),
        (no_categories, "a list 'categories'"),
    ],
)
def test_what_cannot_be_dropped_is_one_error_that_names_file_and_entry(write, images, spoil, message):
    content = labels()
    spoil(content, images)
    path = write(content)
    with pytest.raises(LabelError, match=message) as error:
        read_coco(path, images)
    assert str(error.value).startswith(str(path))


def test_wrong_class_names_and_files(write, images, tmp_path):
    path = write(labels())
    with pytest.raises(
        LabelError, match="no class 'cat' of class_names; nearest: 'car'; it has 'dog', 'car'"
    ):
        read_coco(path, images, class_names=["dog", "car", "cat"])
    with pytest.raises(LabelError, match="annotation 2: category 'car' is not in class_names"):
        read_coco(path, images, class_names=["dog"])
    with pytest.raises(LabelError, match="is not a JSON file"):
        read_coco(write("{"), images)
    with pytest.raises(FileNotFoundError, match=r"label file .*absent\.json does not exist"):
        read_coco(tmp_path / "absent.json", images)
    with pytest.raises(FileNotFoundError, match=r"image folder .*absent"):
        read_coco(path, tmp_path / "absent")

import hashlib

import numpy as np
import pytest

from data.dataset import Category, DetectionDataset, EncodedImage, Example, LabelError, LabelReport
from data.label_checks import make_example


def example(source, boxes_yxyx, classes, image_id=1, is_crowd=None):
    boxes = np.array(boxes_yxyx, np.float32).reshape(-1, 4)
    return Example(
        image_id=image_id,
        height=40,
        width=60,
        boxes_yxyx=boxes,
        classes=np.array(classes, np.int32),
        is_crowd=np.array(is_crowd or [False] * len(boxes), bool),
        areas=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1),
        source=EncodedImage(source),
    )


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"0123456789")
    return path


CATEGORIES = (Category(7, "cat"), Category(3, "dog"))


def test_ground_truth_uses_the_data_sets_own_category_ids_and_counts_from_one(source):
    dataset = DetectionDataset(
        "set",
        CATEGORIES,
        (
            example(source, [[1, 2, 11, 22]], [0], image_id=5),
            example(source, [], [], image_id=6),
            # 12.34 + 5.67 in float32 is not 18.01; the width must come back as it was written.
            example(source, [[0, 12.34, 4, 12.34 + 5.67]], [1], image_id=8, is_crowd=[True]),
        ),
    )
    truth = dataset.coco_ground_truth()
    assert [image["id"] for image in truth["images"]] == [5, 6, 8]
    assert truth["images"][0] == {"id": 5, "width": 60, "height": 40, "file_name": "a.jpg"}
    first, second = truth["annotations"]
    assert first == {
        "id": 1, "image_id": 5, "category_id": 7, "bbox": [2.0, 1.0, 20.0, 10.0], "area": 200.0, "iscrowd": 0,
    }  # fmt: skip
    assert (second["id"], second["image_id"], second["category_id"], second["iscrowd"]) == (2, 8, 3, 1)
    assert second["bbox"] == [12.34, 0.0, 5.67, 4.0]
    assert truth["categories"] == [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]
    assert dataset.class_names == ["cat", "dog"]
    assert dataset.max_boxes == 1
    assert len(dataset) == 3


def test_digest_changes_with_labels_and_with_pixels_but_not_with_the_place(source, tmp_path):
    def digest(path, box=(1, 2, 11, 22), class_id=0, crowd=False, categories=CATEGORIES):
        return DetectionDataset(
            "set", categories, (example(path, [box], [class_id], is_crowd=[crowd]),)
        ).digest()

    elsewhere = tmp_path / "b.jpg"
    elsewhere.write_bytes(source.read_bytes())
    changed = tmp_path / "c.jpg"
    changed.write_bytes(b"0123456780")
    base = digest(source)
    assert len(base) == len(hashlib.sha256().hexdigest())
    assert digest(elsewhere) == base
    different = {
        digest(changed),
        digest(source, box=(1, 2, 11, 23)),
        digest(source, class_id=1),
        digest(source, crowd=True),
        digest(source, categories=CATEGORIES[::-1]),
    }
    assert len(different | {base}) == 6


def test_a_slice_of_a_file_is_read(source):
    assert EncodedImage(source, 2, 3).read() == b"234"
    assert EncodedImage(source).read() == b"0123456789"
    assert str(EncodedImage(source, 2, 3, "record 1")) == f"{source}, record 1"


def test_report_counts_all_and_names_the_first_three():
    report = LabelReport()
    assert report.lines() == []
    for number in range(5):
        report.note("empty box: dropped", f"a.xml: object {number}")
    report.note("other", "b.xml")
    assert report.counts == {"empty box: dropped": 5, "other": 1}
    assert report.lines() == [
        "5 × empty box: dropped (a.xml: object 0; a.xml: object 1; a.xml: object 2; and 2 more)",
        "1 × other (b.xml)",
    ]


def test_a_data_set_without_images_or_without_boxes_is_an_error(source):
    with pytest.raises(LabelError, match="set: expected at least one image"):
        DetectionDataset("set", CATEGORIES, ())
    report = LabelReport()
    report.note("empty box: dropped", "a.xml")
    with pytest.raises(LabelError, match=r"none of the 1 images has a usable box.*empty box"):
        DetectionDataset("set", CATEGORIES, (example(source, [], []),), report)


def test_boxes_are_dropped_clipped_and_counted(source):
    report = LabelReport()
    nan = float("nan")
    boxes = [
        [0, 0, 40, 60],  # exactly the image
        [-5, 10, 10, 70],  # partly outside: becomes 0, 10, 10, 60
        [5, 60, 10, 80],  # touches the right edge from outside
        [5, 5, 5, 9],  # no height
        [9, 9, 5, 20],  # negative height
        [nan, 0, 5, 5],
        [0, 0, 40.005, 60],  # rounding: nothing to report
    ]
    made = make_example(
        image_id=1,
        size_hw=(40, 60),
        labelled_hw=(60, 40),
        boxes_yxyx=boxes,
        classes=range(7),
        is_crowd=[False] * 7,
        areas=[None, 900.0, *[None] * 5],
        places=[f"object {number}" for number in range(7)],
        source=EncodedImage(source),
        report=report,
    )
    np.testing.assert_array_equal(made.boxes_yxyx, [[0, 0, 40, 60], [0, 10, 10, 60], [0, 0, 40, 60]])
    assert made.boxes_yxyx.dtype == np.float32
    np.testing.assert_array_equal(made.classes, [0, 1, 6])
    np.testing.assert_array_equal(made.areas, [2400, 500, 2400])  # never more than the clipped box holds
    assert (made.height, made.width) == (40, 60)
    lines = "\n".join(report.lines())
    assert "1 × box partly outside the image: clipped (object 1)" in lines
    assert "1 × box outside the image: dropped (object 2)" in lines
    assert "2 × box of zero or negative size: dropped (object 3; object 4)" in lines
    assert "1 × box with a coordinate that is not a finite number: dropped (object 5)" in lines
    assert "swapped in its labels" in lines
    assert "60x40, labelled 40x60" in lines
    assert len(report.counts) == 5


def test_boxes_that_float32_cannot_hold_and_areas_that_are_none(source):
    report = LabelReport()
    boxes = [
        [10, 599.99999, 60, 650],  # inside by less than float32 tells
        [300, 3999.9999, 320, 4000],
        [0, 0, 10, 10],
        [0, 0, 10, 20],
        [0, 0, 10, 30],
        [0, 0, 10, 40],
    ]
    made = make_example(
        image_id=1,
        size_hw=(400, 600),
        labelled_hw=None,
        boxes_yxyx=boxes,
        classes=range(6),
        is_crowd=[False] * 6,
        areas=[None, None, 0.0, -1.0, float("nan"), 7.0],
        places=[f"object {number}" for number in range(6)],
        source=EncodedImage(source),
        report=report,
    )
    np.testing.assert_array_equal(made.classes, [2, 3, 4, 5])
    np.testing.assert_array_equal(made.areas, [100, 200, 300, 7])
    assert report.lines() == [
        "1 × box outside the image: dropped (object 0)",
        "1 × box of a hundredth of a pixel or less: dropped (object 1)",
        "3 × object whose area is not a number above zero: its box's area is used "
        "(object 2; object 3; object 4)",
    ]

import gzip
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow as tf

from data.dataset import LabelError
from data.tfrecord import read_tfrecord

RACCOON = Path(__file__).parents[2] / "shared" / "data" / "raccoon" / "test.record"


def image_bytes(value=0, suffix=".png"):
    return cv2.imencode(suffix, np.full((40, 60, 3), value, np.uint8))[1].tobytes()


def record(boxes=(), labels=(), texts=(), source_id="7", encoded=None, **more):
    """`boxes` are ymin, xmin, ymax, xmax, normalised."""
    columns = {
        "image/encoded": [image_bytes() if encoded is None else encoded],
        "image/format": [b"png"],
        "image/height": [40],
        "image/width": [60],
        "image/filename": [f"{source_id}.png".encode()],
        "image/source_id": [source_id.encode()],
        "image/object/class/label": list(labels),
        "image/object/class/text": [text.encode() for text in texts],
    }
    for column, side in enumerate(("ymin", "xmin", "ymax", "xmax")):
        columns[f"image/object/bbox/{side}"] = [float(box[column]) for box in boxes]
    columns.update({"image/object/" + key: value for key, value in more.items()})
    feature = {}
    for key, values in columns.items():
        if values and isinstance(values[0], bytes):
            feature[key] = tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
        elif values and isinstance(values[0], float):
            feature[key] = tf.train.Feature(float_list=tf.train.FloatList(value=values))
        elif values:
            feature[key] = tf.train.Feature(int64_list=tf.train.Int64List(value=values))
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


def write(path, *records):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for each in records:
            writer.write(each)
    return path


BOX = (0.25, 0.1, 0.75, 0.5)  # of 40x60 pixels: 10, 6, 30, 30


def test_records(tmp_path):
    path = write(
        tmp_path / "a.record",
        record([BOX, (0, 0, 1, 1)], [2, 1], ["dog", "cat"], "12", image_bytes(50), is_crowd=[0, 1]),
        record(source_id="3", encoded=image_bytes(90, ".jpg")),
        record([BOX], [2], ["dog"], "5", image_bytes(70), area=[321.0]),
    )
    dataset = read_tfrecord(path)
    assert dataset.report.lines() == []
    assert [(category.id, category.name) for category in dataset.categories] == [(1, "cat"), (2, "dog")]
    first, empty, last = dataset.examples
    assert [example.image_id for example in dataset.examples] == [12, 3, 5]
    np.testing.assert_allclose(first.boxes_yxyx, [[10, 6, 30, 30], [0, 0, 40, 60]], atol=1e-5)
    np.testing.assert_array_equal(first.classes, [1, 0])
    np.testing.assert_array_equal(first.is_crowd, [False, True])
    np.testing.assert_allclose(first.areas, [480, 2400], rtol=1e-6)
    assert empty.boxes_yxyx.shape == (0, 4)
    np.testing.assert_array_equal(last.areas, [321])
    # Each image is found again by seeking, in any order.
    assert dataset.encoded_image(2) == image_bytes(70)
    assert dataset.encoded_image(1) == image_bytes(90, ".jpg")
    assert dataset.encoded_image(0) == image_bytes(50)


def test_label_maps_and_class_names(tmp_path):
    path = write(tmp_path / "a.record", record([BOX, BOX], [5, 2]))
    dataset = read_tfrecord(path, label_map={2: "dog", 3: "cow", 5: "cat"})
    assert dataset.class_names == ["dog", "cow", "cat"]
    np.testing.assert_array_equal(dataset.examples[0].classes, [2, 0])
    dataset = read_tfrecord(path, {2: "dog", 3: "cow", 5: "cat"}, class_names=["cat", "dog"])
    assert [category.id for category in dataset.categories] == [5, 2]
    np.testing.assert_array_equal(dataset.examples[0].classes, [0, 1])

    text_only = write(tmp_path / "b.record", record([BOX], [], ["cow"]))
    assert read_tfrecord(text_only, {2: "dog", 3: "cow"}).examples[0].classes.tolist() == [1]

    with_text = write(tmp_path / "c.record", record([BOX], [4], ["dog"]))
    dataset = read_tfrecord(with_text, class_names=["cat", "dog"])
    assert [(category.id, category.name) for category in dataset.categories] == [(5, "cat"), (4, "dog")]
    assert dataset.examples[0].classes.tolist() == [1]


def test_shards(tmp_path):
    for shard in range(3):
        name = f"train-{shard:05d}-of-00003"
        write(tmp_path / name, record([BOX], [1], ["dog"], str(shard + 1), image_bytes(shard)))
    for pattern in ("train@3", "train-?????-of-00003", "train*"):
        dataset = read_tfrecord(str(tmp_path / pattern))
        assert [example.image_id for example in dataset.examples] == [1, 2, 3]
        assert [dataset.encoded_image(index) for index in range(3)] == [image_bytes(v) for v in range(3)]
    some = [tmp_path / "train-00002-of-00003", tmp_path / "train-00000-of-00003"]
    assert [example.image_id for example in read_tfrecord(some).examples] == [3, 1]
    with pytest.raises(FileNotFoundError, match=r"1 of 4 files do not exist.*00000-of-00004") as error:
        for shard in range(1, 4):
            write(tmp_path / f"val-{shard:05d}-of-00004", record())
        read_tfrecord(str(tmp_path / "val@4"))
    assert "val@4" in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"matches 3 of the 4 files .*val-\?\?\?\?\?-of-00004"):
        read_tfrecord(str(tmp_path / "val-*"))
    with pytest.raises(FileNotFoundError, match=r"no TFRecord file matches .*test"):
        read_tfrecord(str(tmp_path / "test*"))


@pytest.mark.parametrize("ids", [("7", "7"), ("7", "b.jpg"), ("7", ""), ("7", "-3"), ("7", "9" * 30)])
def test_source_ids_that_are_no_image_ids_are_replaced_and_reported(tmp_path, ids):
    path = write(
        tmp_path / "a.record",
        *(record([BOX], [1], ["dog"], source_id) for source_id in ids),
    )
    dataset = read_tfrecord(path)
    assert [example.image_id for example in dataset.examples] == [1, 2]
    (line,) = dataset.report.lines()
    assert line.startswith("1 × source_id is not a whole number of its own")
    assert "record 2" in line


def test_boxes_outside_and_empty_are_dropped_and_other_sizes_said(tmp_path):
    boxes = [BOX, (0.5, 0.5, 0.5, 0.9), (-0.1, 0, 1.05, 1), (0, 1.01, 1, 1.2)]
    wide = cv2.imencode(".png", np.zeros((20, 80, 3), np.uint8))[1].tobytes()
    path = write(tmp_path / "a.record", record(boxes, [1] * 4, ["dog"] * 4, encoded=wide))
    dataset = read_tfrecord(path)
    # Normalised boxes follow the image, whatever size its labels claim.
    np.testing.assert_allclose(dataset.examples[0].boxes_yxyx, [[5, 8, 15, 40], [0, 0, 20, 80]], atol=1e-5)
    place = f"{path}, record 1 (7.png)"
    assert set(dataset.report.lines()) == {
        f"1 × image of another size than its labels say: the image's own size is used ({place}: 80x20, "
        "labelled 60x40)",
        f"1 × box of zero or negative size: dropped ({place}, object 2)",
        f"1 × box partly outside the image: clipped ({place}, object 3)",
        f"1 × box outside the image: dropped ({place}, object 4)",
    }


@pytest.mark.parametrize(
    ("bad", "arguments", "message"),
    [
        (b"\x0a\xffnot a record", {}, "is not a tf.train.Example"),
        (record(encoded=b""), {}, "has no image/encoded"),
        (record([BOX], [1], ["dog"], encoded=b"JFIF"), {}, r"\(7.png\): the image is unreadable"),
        (record([BOX], [1, 2], ["dog"] * 2), {}, r"as many .* and labels, got 1, 1, 1, 1 and 2"),
        (record([BOX], [1], ["dog"], ymin=[1.0]), {}, None),
        (record([BOX], [1], ["dog"], is_crowd=[0, 1]), {}, "1 boxes but 2 values of is_crowd"),
        (record([(10, 10, 30, 30)], [1], ["dog"]), {}, "normalised to 0 … 1, got 30; in pixels"),
        (record([BOX], [3]), {"label_map": {1: "dog"}}, r"object 1: unknown label 3; .*\[1\]"),
        (record([BOX], [3], ["cow"]), {"label_map": {1: "dog"}}, r"object 1: unknown label 3; .*\[1\]"),
        (record([BOX], [], [""]), {"label_map": {1: "dog"}}, "unknown class ''"),
        (record([BOX], [], ["dgo"]), {"label_map": {1: "dog"}}, "unknown class 'dgo'; nearest: 'dog'"),
        (record([BOX], [2], ["cow"]), {"class_names": ["dog"]}, "class 'cow' is not in class_names"),
        (record([BOX], [1]), {}, "without label or without text; give a label map"),
        (record([BOX], [1], ["cat"]), {}, "label 1 is called 'cat' here and 'dog' before"),
        (record([BOX], [1], ["dog"], area=[5]), {}, "area to be a float_list, got a int64_list"),
    ],
)  # fmt: skip
def test_what_cannot_be_dropped_is_one_error_that_names_file_and_entry(tmp_path, bad, arguments, message):
    good = record([BOX], [1], ["dog"], "1")
    path = write(tmp_path / "a.record", good, bad)
    if message is None:  # a key of no meaning is no error
        assert len(read_tfrecord(path)) == 2
        return
    with pytest.raises(LabelError, match=message) as error:
        read_tfrecord(path, **arguments)
    assert str(error.value).startswith(f"{path}, record 2")


def test_with_a_label_map_texts_come_before_numbers(tmp_path):
    """As `tf_example_decoder.py` looks them up, by name or display name."""
    path = write(
        tmp_path / "a.record",
        record([BOX] * 5, [1, 7, 2, 1, 1], ["dog", "dog", "", "cow", "/m/cat"], "1"),
        record([BOX] * 2, [2, 1], ["", ""], "2"),
    )
    dataset = read_tfrecord(path, {1: "cat", 2: "dog"}, other_names={"/m/cat": 1, "/m/dog": 2})
    assert [list(example.classes) for example in dataset.examples] == [[1, 1, 1, 0, 0], [1, 0]]
    first, second = dataset.report.lines()
    assert "2 × object whose class text and label number disagree: its text is used" in first
    assert "object 1: 'dog', 1" in first and "object 2: 'dog', 7" in first
    assert "2 × object whose class text the label map does not have: its label number is used" in second


def test_weights_are_reported(tmp_path):
    path = write(tmp_path / "a.record", record([BOX] * 2, [1, 1], ["dog"] * 2, weight=[1.0, 0.0]))
    (line,) = read_tfrecord(path).report.lines()
    place = f"{path}, record 1 (7.png), object 2"
    assert line == f"1 × object with a weight other than 1: the weight is ignored ({place})"


def test_no_records_or_no_boxes(tmp_path):
    with pytest.raises(LabelError, match=r"a\.record: holds no records"):
        read_tfrecord(write(tmp_path / "a.record"))
    with pytest.raises(LabelError, match=r"b\.record: none of the 1 images has a usable box"):
        read_tfrecord(write(tmp_path / "b.record", record()), {1: "dog"})


def test_truncated_and_corrupt_files(tmp_path):
    good = record([BOX], [1], ["dog"], "1")
    whole = write(tmp_path / "a.record", good, good).read_bytes()
    half = len(whole) // 2  # where the second record starts
    path = tmp_path / "b.record"
    for length in (half + 5, half + 12, half + 40, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(LabelError, match=f"b.record: record 2, at byte {half}, is truncated or corrupt"):
            read_tfrecord(path)
    flipped = bytearray(whole)
    flipped[half + 60] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(LabelError, match=f"record 2, at byte {half}"):
        read_tfrecord(path)
    path.write_bytes(gzip.compress(whole))
    with pytest.raises(LabelError, match="compressed with gzip"):
        read_tfrecord(path)


@pytest.mark.skipif(not RACCOON.is_file(), reason="../shared/data/raccoon is not there")
def test_raccoon():
    dataset = read_tfrecord(RACCOON)
    assert len(dataset) == 40
    assert [(category.id, category.name) for category in dataset.categories] == [(1, "raccoon")]
    first = dataset.examples[0]
    assert (first.height, first.width) == (315, 639)
    # As TensorFlow reads the first record: 0.0761905, 0.2222222, 0.8761905, 0.6917058.
    np.testing.assert_allclose(first.boxes_yxyx, [[24, 142, 276, 442]], atol=1e-3)
    raw = next(tf.data.TFRecordDataset(str(RACCOON)).skip(39).as_numpy_iterator())
    features = tf.train.Example.FromString(raw).features.feature
    assert dataset.encoded_image(39) == features["image/encoded"].bytes_list.value[0]
    assert [example.image_id for example in dataset.examples] == list(range(1, 41))
    assert dataset.report.lines()[0].startswith("40 × source_id")

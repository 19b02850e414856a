"""Reads TFRecord files in the TensorFlow Object Detection API's schema.

The schema: `using_your_own_dataset.md` of the Object Detection API.  The container: each record is its length
(8 bytes), a checksum of that (4), its data, and a checksum of the data (4).
"""

import glob
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from data.dataset import DetectionDataset, EncodedImage, LabelError, LabelReport
from data.label_checks import encoded_size, make_example, nearest, select_categories

ASSIGNED_IDS = (
    "source_id is not a whole number of its own: images are numbered from 1 in the order of the files"
)

OTHER_LABEL = "object whose class text and label number disagree: its text is used, as in the original"
UNKNOWN_TEXT = "object whose class text the label map does not have: its label number is used"
WEIGHT = "object with a weight other than 1: the weight is ignored"

_HEADER_BYTES, _FOOTER_BYTES = 12, 4
_SHARD = re.compile(r"(?P<stem>.*)-\d{5}-of-(?P<total>\d{5})")
_SPREAD = re.compile(r"(?P<stem>.*)@(?P<total>\d+)")


class _Record(NamedTuple):
    """One record's labels, and where its image is."""

    source: EncodedImage
    source_id: str
    size_hw: tuple[int, int]
    labelled_hw: tuple[int, int] | None
    boxes_yxyx: np.ndarray
    """float64 [n, 4], normalised."""
    labels: list[int]
    """[n], or empty if the record has texts only."""
    texts: list[str]
    """[n], or empty if the record has labels only."""
    is_crowd: list[int]
    areas: list[float]
    weights: list[float]


def read_tfrecord(
    paths: str | Path | Sequence[str | Path],
    label_map: Mapping[int, str] | None = None,
    class_names: Sequence[str] | None = None,
    other_names: Mapping[str, int] | None = None,
) -> DetectionDataset:
    """Read every record of the files, in order.

    The whole of each file is read once, checksums included; afterwards an image's bytes are read by seeking.

    Args:
        paths: one or several of: a file, a glob pattern (`train-?????-of-00010`), or `train@10`, which stands
            for the ten files of that pattern.
        label_map: class name by label (from 1).  None takes the names from the records' own
            `image/object/class/text`.  With one, a record's texts come before its numbers, as in the
            original (`tf_example_decoder.py`).
        class_names: the classes in the order of the class ids; None takes every class, by its label.
            Without a label map, classes that do not occur in the records get the next free category ids.
        other_names: labels by further names that texts may call a class by.

    Raises:
        FileNotFoundError: no file matches, or shards are missing.
        LabelError: the labels are wrong in a way that nothing can be dropped to mend: a truncated or corrupt
            file, a record of another schema, an unknown label, an unreadable image, no usable box at all.
    """
    paths = [paths] if isinstance(paths, str | Path) else list(paths)
    files = [file for pattern in paths for file in _expand(str(pattern))]
    title = ", ".join(map(str, paths))
    records = [record for file in files for record in _read_file(file)]
    if not records:
        raise LabelError(f"{title}: holds no records")

    names = dict(label_map) if label_map is not None else _names_in(records)
    if label_map is None and class_names is not None:
        for name in class_names:
            if name not in names.values():
                names[max(names, default=0) + 1] = name
    categories = select_categories(names, class_names, title)
    class_of = {category.id: index for index, category in enumerate(categories)}
    ids = {**(other_names or {}), **{name: id for id, name in names.items()}}

    report = LabelReport()
    image_ids = _image_ids(records, report)
    examples = []
    for image_id, record in zip(image_ids, records, strict=True):
        places = [f"{record.source}, object {number}" for number in range(1, len(record.boxes_yxyx) + 1)]
        labels = _labels_of(record, ids, places, report)
        for weight, place in zip(record.weights, places, strict=False):
            if weight != 1:
                report.note(WEIGHT, place)
        for label, place in zip(labels, places, strict=True):
            if label not in names:
                raise LabelError(f"{place}: unknown label {label}; the label map has {sorted(names)}")
            if label not in class_of:
                name = names[label]
                raise LabelError(
                    f"{place}: class {name!r} is not in class_names{nearest(name, class_names or ())}"
                )
        examples.append(
            make_example(
                image_id=image_id,
                size_hw=record.size_hw,
                labelled_hw=record.labelled_hw,
                boxes_yxyx=record.boxes_yxyx * np.tile(record.size_hw, 2),
                classes=[class_of[label] for label in labels],
                is_crowd=[bool(value) for value in record.is_crowd] or [False] * len(labels),
                areas=record.areas or [None] * len(labels),
                places=places,
                source=record.source,
                report=report,
            )
        )
    return DetectionDataset(title, categories, tuple(examples), report)


def _expand(pattern: str) -> list[Path]:
    """Return the files that `pattern` stands for, sorted."""
    if Path(pattern).is_file():  # a file's name may itself hold a character that means something in a pattern
        return [Path(pattern)]
    spread = _SPREAD.fullmatch(pattern)
    if spread:
        total = int(spread["total"])
        files = [Path(f"{spread['stem']}-{shard:05d}-of-{total:05d}") for shard in range(total)]
        missing = [str(file) for file in files if not file.is_file()]
        if missing or not files:
            raise FileNotFoundError(f"{pattern}: {len(missing)} of {total} files do not exist: {missing[:3]}")
        return files
    files = [Path(name) for name in sorted(glob.glob(pattern)) if Path(name).is_file()]
    if not files:
        raise FileNotFoundError(f"no TFRecord file matches {pattern}")
    shards: dict[tuple[str, str], int] = {}
    for file in files:
        match = _SHARD.fullmatch(str(file))
        if match:
            shards[match["stem"], match["total"]] = shards.get((match["stem"], match["total"]), 0) + 1
    for (stem, of), found in shards.items():
        if found != int(of):
            raise FileNotFoundError(
                f"{pattern}: matches {found} of the {int(of)} files {stem}-?????-of-{of}; "
                "name the files one by one if that is meant"
            )
    return files


def _read_file(file: Path) -> Iterator[_Record]:
    with open(file, "rb") as opened:
        if opened.read(2) == b"\x1f\x8b":
            raise LabelError(
                f"{file}: is compressed with gzip; decompress it, since its images are read by seeking"
            )
    offset = 0
    number = 0
    try:
        for number, data in enumerate(tf.data.TFRecordDataset(str(file)).as_numpy_iterator(), start=1):
            yield _parse(data, file, offset + _HEADER_BYTES, f"record {number}")
            offset += _HEADER_BYTES + len(data) + _FOOTER_BYTES
    except tf.errors.DataLossError as error:
        raise _corrupt(file, number + 1, offset) from error
    # A file cut off right behind a record's length ends without an error from TensorFlow.
    if offset != file.stat().st_size:
        raise _corrupt(file, number + 1, offset)


def _corrupt(file: Path, number: int, offset: int) -> LabelError:
    return LabelError(
        f"{file}: record {number}, at byte {offset}, is truncated or corrupt; write the file again"
    )


def _parse(data: bytes, file: Path, offset: int, place: str) -> _Record:
    try:
        features = tf.train.Example.FromString(data).features.feature
    except Exception as error:  # protobuf's DecodeError, whose module depends on its version
        raise LabelError(f"{file}, {place}: is not a tf.train.Example") from error

    def values(key: str, kind: str) -> list:
        feature = features[key] if key in features else tf.train.Feature()
        found = feature.WhichOneof("kind")
        if found not in (None, kind):
            raise LabelError(f"{file}, {place}: expected {key} to be a {kind}, got a {found}")
        return list(getattr(feature, kind).value)

    def text(key: str) -> str:
        return b"".join(values(key, "bytes_list")).decode("utf-8", "replace")

    source_id, filename = text("image/source_id"), text("image/filename")
    place += f" ({filename or source_id})" if filename or source_id else ""
    encoded = b"".join(values("image/encoded", "bytes_list"))
    if not encoded:
        raise LabelError(f"{file}, {place}: has no image/encoded; expected the Object Detection API's schema")
    source = EncodedImage(file, offset + data.index(encoded), len(encoded), place)

    sides = [values(f"image/object/bbox/{side}", "float_list") for side in ("ymin", "xmin", "ymax", "xmax")]
    labels = values("image/object/class/label", "int64_list")
    texts = [raw.decode("utf-8", "replace") for raw in values("image/object/class/text", "bytes_list")]
    is_crowd = values("image/object/is_crowd", "int64_list")
    areas = values("image/object/area", "float_list")
    weights = values("image/object/weight", "float_list")
    count = len(sides[0])
    if {len(side) for side in sides} != {count} or not (len(labels) == count or len(texts) == count):
        raise LabelError(
            f"{source}: expected as many ymin, xmin, ymax, xmax and labels, "
            f"got {', '.join(str(len(side)) for side in sides)} and {len(labels) or len(texts)}"
        )
    columns = {"label": labels, "text": texts, "is_crowd": is_crowd, "area": areas, "weight": weights}
    for key, column in columns.items():
        if len(column) not in (0, count):
            raise LabelError(f"{source}: {count} boxes but {len(column)} values of {key}")
    boxes = np.asarray(sides, np.float64).T
    if np.any(boxes > 2):
        raise LabelError(
            f"{source}: expected box coordinates normalised to 0 … 1, got {np.nanmax(boxes):g}; in pixels?"
        )
    height, width = values("image/height", "int64_list"), values("image/width", "int64_list")
    return _Record(
        source=source,
        source_id=source_id,
        size_hw=encoded_size(encoded, str(source)),
        labelled_hw=(height[0], width[0]) if height and width else None,
        boxes_yxyx=boxes,
        labels=labels,
        texts=texts,
        is_crowd=is_crowd,
        areas=areas,
        weights=weights,
    )


def _names_in(records: list[_Record]) -> dict[int, str]:
    """Return {label: text} as the records pair them."""
    names: dict[int, str] = {}
    for record in records:
        if len(record.texts) != len(record.labels):
            raise LabelError(f"{record.source}: has boxes without label or without text; give a label map")
        for label, text in zip(record.labels, record.texts, strict=True):
            if names.setdefault(label, text) != text:
                raise LabelError(
                    f"{record.source}: label {label} is called {text!r} here and {names[label]!r} before; "
                    "give a label map"
                )
    return names


def _labels_of(
    record: _Record, ids: Mapping[str, int], places: Sequence[str], report: LabelReport
) -> list[int]:
    """Return the label of each object: its text's, or its number where it has no text that `ids` knows."""
    if record.labels and not any(record.texts):
        return record.labels
    labels = []
    for row, (text, place) in enumerate(zip(record.texts, places, strict=True)):
        number = record.labels[row] if record.labels else None
        label = ids.get(text, number)
        if label is None:
            raise LabelError(f"{record.source}: unknown class {text!r}{nearest(text, ids)}")
        if text not in ids:
            report.note(UNKNOWN_TEXT, f"{place}: {text!r}, {number}")
        elif number not in (None, label):
            report.note(OTHER_LABEL, f"{place}: {text!r}, {number}")
        labels.append(label)
    return labels


def _image_ids(records: list[_Record], report: LabelReport) -> list[int]:
    """Return the records' source ids if all are unique whole numbers, else 1, 2, …"""
    seen: set[int] = set()
    for record in records:
        # int64 is what the batches hold; 18 digits fit.
        valid = re.fullmatch(r"\d{1,18}", record.source_id)
        if not valid or int(record.source_id) in seen:
            report.note(ASSIGNED_IDS, f"{record.source}: {record.source_id!r}")
        else:
            seen.add(int(record.source_id))
    if report.counts:
        return list(range(1, len(records) + 1))
    return [int(record.source_id) for record in records]

"""Reads data sets in the COCO format: a JSON file and a folder of images."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.dataset import DetectionDataset, EncodedImage, LabelError, LabelReport
from data.label_checks import image_sizes, make_example, nearest, select_categories

UNLISTED_IMAGE = "annotation of an image that is not listed: dropped"


def read_coco(
    annotations_json: str | Path, images_dir: str | Path, class_names: Sequence[str] | None = None
) -> DetectionDataset:
    """Read the images that `annotations_json` lists, in its order, with their boxes.

    Crowd annotations are kept, marked.  Images without annotations are kept.

    Args:
        annotations_json: the label file.
        images_dir: the folder that its file names are relative to.
        class_names: the classes in the order of the class ids; None takes every category, by its id.

    Raises:
        FileNotFoundError: there is no such label file or folder.
        LabelError: the label file is wrong in a way that nothing can be dropped to mend: not JSON of this
            format, an id or a class that is there twice, an annotation of an unknown category or without a
            box, a missing or unreadable image, no usable box at all.
    """
    path, folder = Path(annotations_json), Path(images_dir)
    if not path.is_file():
        raise FileNotFoundError(f"label file {path} does not exist")
    if not folder.is_dir():
        raise FileNotFoundError(f"image folder {folder} of {path} does not exist")
    labels = _load(path)

    report = LabelReport()
    images = _by_id(labels["images"], "image", path)
    if outside := [id for id in images if not 0 <= id < 2**63]:
        raise LabelError(f"{path}: image id {outside[0]}: expected a whole number from 0 to 2^63 - 1")
    annotations = _by_id(labels["annotations"], "annotation", path)
    names = {
        id: _get(entry, "name", str, f"{path}: category {id}")
        for id, entry in _by_id(labels["categories"], "category", path).items()
    }
    if not annotations:
        raise LabelError(f"{path}: 'annotations' is empty; training and scoring need labelled boxes")
    categories = select_categories(names, class_names, str(path))
    class_of = {category.id: index for index, category in enumerate(categories)}

    files = {
        id: folder / _get(entry, "file_name", str, f"{path}: image {id}") for id, entry in images.items()
    }
    annotations_of: dict[int, list[tuple[int, dict[str, Any]]]] = {id: [] for id in images}
    for annotation_id, annotation in annotations.items():
        place = f"{path}: annotation {annotation_id}"
        image_id = _get(annotation, "image_id", int, place)
        if image_id not in images:
            report.note(UNLISTED_IMAGE, f"{place}, image {image_id}")
            continue
        category_id = _get(annotation, "category_id", int, place)
        if category_id not in names:
            raise LabelError(
                f"{place}: unknown category {category_id}; 'categories' lists {', '.join(map(str, names))}"
            )
        if category_id not in class_of:
            name = names[category_id]
            raise LabelError(
                f"{place}: category {name!r} is not in class_names{nearest(name, class_names or ())}; "
                "add it there or take its annotations out of the file"
            )
        annotations_of[image_id].append((annotation_id, annotation))

    examples = []
    for (image_id, image), size_hw in zip(
        images.items(), image_sizes(list(files.values()), path), strict=True
    ):
        rows = annotations_of[image_id]
        height, width = image.get("height"), image.get("width")
        examples.append(
            make_example(
                image_id=image_id,
                size_hw=size_hw,
                labelled_hw=None if height is None or width is None else (height, width),
                boxes_yxyx=[_box_yxyx(row, f"{path}: annotation {id}") for id, row in rows],
                classes=[class_of[row["category_id"]] for _, row in rows],
                is_crowd=[_is_crowd(row, f"{path}: annotation {id}") for id, row in rows],
                areas=[_area(row, f"{path}: annotation {id}") for id, row in rows],
                places=[f"{path}: annotation {id}, {files[image_id].name}" for id, _ in rows],
                source=EncodedImage(files[image_id]),
                report=report,
            )
        )
    return DetectionDataset(str(path), categories, tuple(examples), report)


def _is_crowd(annotation: dict[str, Any], place: str) -> bool:
    value = annotation.get("iscrowd", 0)
    if not isinstance(value, int) or value not in (0, 1):
        raise LabelError(f"{place}: expected 'iscrowd' to be 0 or 1, got {value!r}")
    return bool(value)


def _area(annotation: dict[str, Any], place: str) -> float | None:
    value = annotation.get("area")
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise LabelError(f"{place}: expected 'area' to be a number, got {value!r}")
    return value


def _load(path: Path) -> dict[str, list]:
    try:
        labels = json.loads(path.read_text(encoding="utf-8-sig"))  # Windows' editors write a mark first
    except ValueError as error:
        raise LabelError(f"{path}: is not a JSON file: {error}") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(labels, dict) or not isinstance(labels.get(key), list):
            raise LabelError(f"{path}: expected COCO's format, an object with a list {key!r}; there is none")
    return labels


def _by_id(entries: list, kind: str, path: Path) -> dict[int, dict[str, Any]]:
    by_id: dict[int, dict[str, Any]] = {}
    for number, entry in enumerate(entries):
        place = f"{path}: {kind} number {number}"
        if not isinstance(entry, dict):
            raise LabelError(f"{place}: expected an object, got {entry!r}")
        id = _get(entry, "id", int, place)
        if id in by_id:
            raise LabelError(f"{place}: duplicate {kind} id {id}; ids must be unique")
        by_id[id] = entry
    return by_id


def _get(entry: dict[str, Any], key: str, kind: type, place: str) -> Any:
    value = entry.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise LabelError(f"{place}: expected {key!r} to be a {kind.__name__}, got {value!r}")
    return value


def _box_yxyx(annotation: dict[str, Any], place: str) -> tuple[float, float, float, float]:
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(value, int | float) for value in box):
        raise LabelError(f"{place}: expected 'bbox' to be [x, y, width, height], got {box!r}")
    x, y, width, height = box
    return y, x, y + height, x + width

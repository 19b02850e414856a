"""What a reader returns: categories, examples, and what the labels had wrong."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


class LabelError(ValueError):
    """A label file or an image of a data set is wrong in a way that nothing can be dropped to mend.

    The message names the file and the entry.
    """


class LabelReport:
    """Counts what a reader dropped or changed, and names the first few places of each finding."""

    NAMED = 3  # enough to open one and see the pattern, few enough to stay one line

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self._places: dict[str, list[str]] = {}

    def note(self, finding: str, place: str) -> None:
        """Count one `finding` (what was found: what was done about it) at `place` (file and entry)."""
        self.counts[finding] = self.counts.get(finding, 0) + 1
        places = self._places.setdefault(finding, [])
        if len(places) < self.NAMED:
            places.append(place)

    def lines(self) -> list[str]:
        """Return one line per finding for the terminal; none if the labels were clean."""
        return [
            f"{count} × {finding} ({name_a_few(self._places[finding], count)})"
            for finding, count in self.counts.items()
        ]


def name_a_few(places: list[str], count: int) -> str:
    """Return the first of `places` joined, and how many of `count` are not named."""
    named = places[: LabelReport.NAMED]
    rest = count - len(named)
    return "; ".join(named) + (f"; and {rest} more" if rest else "")


@dataclass(frozen=True)
class Category:
    """A class as the data set's own label file knows it."""

    id: int
    name: str


@dataclass(frozen=True)
class EncodedImage:
    """Where the encoded bytes of an image are: a file, or `length` bytes of one from `offset` on."""

    path: Path
    offset: int = 0
    length: int | None = None
    entry: str = ""
    """What the slice is called within the file, for messages."""

    def __str__(self) -> str:
        return f"{self.path}, {self.entry}" if self.entry else str(self.path)

    def read(self) -> bytes:
        """Return the encoded bytes; OSError if the file cannot be read."""
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return file.read(self.length)


@dataclass(frozen=True, eq=False)
class Example:
    """One image and its n labelled boxes."""

    image_id: int
    height: int
    """Pixels of the file's image, as is `width`."""
    width: int
    boxes_yxyx: np.ndarray
    """float32 [n, 4], pixels of the file's image; inside it, and of positive size."""
    classes: np.ndarray
    """int32 [n], contiguous 0 … C-1: the index into the data set's categories."""
    is_crowd: np.ndarray
    """bool [n]"""
    areas: np.ndarray
    """float32 [n], square pixels: of the segmentation where the label file has one, else of the box."""
    source: EncodedImage


@dataclass(frozen=True, eq=False)
class DetectionDataset:
    """Labelled images, in a fixed order.  `report` says what its labels had wrong."""

    name: str
    categories: tuple[Category, ...]
    examples: tuple[Example, ...]
    report: LabelReport = field(default_factory=LabelReport)

    def __post_init__(self) -> None:
        if not self.examples:
            raise LabelError(f"{self.name}: expected at least one image, got none")
        if not any(len(example.boxes_yxyx) for example in self.examples):
            dropped = "; ".join(self.report.lines())
            raise LabelError(
                f"{self.name}: none of the {len(self.examples)} images has a usable box"
                + (f" ({dropped})" if dropped else "")
            )

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def class_names(self) -> list[str]:
        """The class names; a class id is an index into them."""
        return [category.name for category in self.categories]

    @property
    def max_boxes(self) -> int:
        """The number of boxes on the image that has most."""
        return max(len(example.boxes_yxyx) for example in self.examples)

    def encoded_image(self, index: int) -> bytes:
        """Return the JPEG, PNG, BMP or GIF bytes of the image of `examples[index]`."""
        return self.examples[index].source.read()

    def coco_ground_truth(self) -> dict[str, Any]:
        """Return the labels as the COCO format's dict, with the data set's own category ids.

        Boxes are x, y, width, height in pixels of the file's image; annotation ids count from 1 (0 means
        "no match" to pycocotools).
        """
        annotations: list[dict[str, Any]] = []
        for example in self.examples:
            # Rounding to a thousandth of a pixel undoes what float32 did to a coordinate written in decimals.
            ymin, xmin, ymax, xmax = np.round(example.boxes_yxyx.astype(np.float64).T, 3)
            boxes_xywh = np.round(np.stack([xmin, ymin, xmax - xmin, ymax - ymin], axis=-1), 3)
            for box_xywh, class_id, is_crowd, area in zip(
                boxes_xywh, example.classes, example.is_crowd, example.areas, strict=True
            ):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": example.image_id,
                        "category_id": self.categories[class_id].id,
                        "bbox": box_xywh.tolist(),
                        "area": float(area),
                        "iscrowd": int(is_crowd),
                    }
                )
        return {
            "info": {"description": self.name},
            "images": [
                {
                    "id": example.image_id,
                    "width": example.width,
                    "height": example.height,
                    "file_name": example.source.entry or example.source.path.name,
                }
                for example in self.examples
            ],
            "annotations": annotations,
            "categories": [{"id": category.id, "name": category.name} for category in self.categories],
        }

    def digest(self) -> str:
        """Return the SHA-256, as hex, of everything that determines the training examples.

        Every image's bytes count, so this reads the whole data set; where it lies does not count.
        """
        sha = hashlib.sha256(self.labels_digest().encode())
        for index in range(len(self.examples)):
            encoded = self.encoded_image(index)
            sha.update(str(len(encoded)).encode())
            sha.update(encoded)
        return sha.hexdigest()

    def labels_digest(self) -> str:
        """Return the SHA-256, as hex, of the classes and of every example's id, size and boxes; quick."""
        sha = hashlib.sha256(repr(self.class_names).encode())
        for example in self.examples:
            count = len(example.boxes_yxyx)
            sha.update(f"{example.image_id} {example.height} {example.width} {count}".encode())
            for array in (example.boxes_yxyx, example.classes, example.is_crowd):
                sha.update(array.tobytes())
        return sha.hexdigest()

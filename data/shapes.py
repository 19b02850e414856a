"""The embedded data set: drawn shapes in two domains that share their classes and differ in appearance.

In the *source* domain shapes of any colour stand on light, smooth ground.  In the *target* domain, of which
there are few images, the same shapes are textured, lighter or darker than murky, textured ground, blurred,
noisy, and often striped.  What makes a triangle a triangle stays the same, so that a detector of the
source domain may keep its box classifier and has to learn to see anew.
"""

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from data.coco import read_coco
from data.dataset import DetectionDataset

CLASS_NAMES = ("circle", "square", "triangle", "star")
DOMAINS = ("source", "target")
SPLITS = ("train", "val")

IMAGE_COUNTS: Mapping[str, int] = {
    "source/train": 800,
    "source/val": 100,
    "target/train": 120,
    "target/val": 100,
}

IMAGE_SIZE = 128
"""Height and width of every image, pixels."""

_VERSION = 3  # raise it with every change to what is drawn: it names the folder
_SEED = 20150604
_EMPTY_PART = 0.04  # of the images show no object
_STRIPED_PART = 0.6  # of the target domain's images
_MAX_OBJECTS = 4
_SIDES = (20.0, 60.0)  # of the longer side of an object's box, pixels
_MAX_COVERED = 0.1  # of the smaller of two boxes, by the other
_JPEG_QUALITY = 92
_FINER = 4  # masks are drawn on so much finer a grid and averaged; OpenCV's own smooth edges make shapes grow


def read_shapes(
    root: str | Path,
    domain: str,
    split: str,
    image_counts: Mapping[str, int] = IMAGE_COUNTS,
    class_names: Sequence[str] | None = None,
) -> DetectionDataset:
    """Return one split of one domain, drawing the whole data set into `root` first if it is not there.

    `class_names` are the classes in the order of their ids, as for `read_coco`; None for the usual order.

    Raises:
        ValueError: there is no such domain, split or class, or `class_names` leaves one out.
    """
    if domain not in DOMAINS or split not in SPLITS:
        raise ValueError(
            f"shapes: expected a domain of {', '.join(DOMAINS)} and a split of {', '.join(SPLITS)}, "
            f"got {domain!r} and {split!r}"
        )
    folder = make_shapes(root, image_counts)[f"{domain}/{split}"]
    return read_coco(folder / "annotations.json", folder / "images", class_names)


def make_shapes(root: str | Path, image_counts: Mapping[str, int] = IMAGE_COUNTS) -> dict[str, Path]:
    """Draw the data set below `root` unless it is there, whole; return the folder of each "domain/split".

    Each folder holds `images/*.jpg` and `annotations.json` in the COCO format.  The data set is drawn beside
    its place and then moved there, so that it is there whole or not at all; one that lost files since is
    drawn again.
    """
    key = hashlib.sha256(repr((_VERSION, _SEED, IMAGE_SIZE, sorted(image_counts.items()))).encode())
    place = Path(root) / f"shapes-{key.hexdigest()[:12]}"
    if not _is_whole(place, image_counts):
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".drawing-") as temporary:
            drawn = Path(temporary) / "shapes"
            for name, count in image_counts.items():
                _draw_split(drawn / name, name, count)
            if not _is_whole(place, image_counts):  # another process may have drawn the same meanwhile
                shutil.rmtree(place, ignore_errors=True)
                os.rename(drawn, place)
    return {name: place / name for name in image_counts}


def _is_whole(place: Path, image_counts: Mapping[str, int]) -> bool:
    return all(
        (place / name / "annotations.json").is_file()
        and sum(1 for _ in (place / name / "images").glob("*.jpg")) == count
        for name, count in image_counts.items()
    )


def _draw_split(folder: Path, name: str, count: int) -> None:
    domain, split = name.split("/")
    (folder / "images").mkdir(parents=True)
    images: list[dict] = []
    annotations: list[dict] = []
    for image_id in range(1, count + 1):
        # Each image has a seed of its own, so that it does not change with the number of images.
        rng = np.random.default_rng([_SEED, DOMAINS.index(domain), SPLITS.index(split), image_id])
        image, objects = draw_image(domain, rng)
        file_name = f"{image_id:05d}.jpg"
        cv2.imwrite(
            str(folder / "images" / file_name),
            cv2.cvtColor(image, cv2.COLOR_RGB2BGR),
            [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY],
        )
        images.append({"id": image_id, "file_name": file_name, "height": IMAGE_SIZE, "width": IMAGE_SIZE})
        for class_id, (xmin, ymin, xmax, ymax), area in objects:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": class_id + 1,
                    "bbox": [xmin, ymin, round(xmax - xmin, 2), round(ymax - ymin, 2)],
                    "area": area,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": id, "name": name} for id, name in enumerate(CLASS_NAMES, start=1)]
    labels = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(labels), encoding="utf-8")


def draw_image(
    domain: str, rng: np.random.Generator
) -> tuple[np.ndarray, list[tuple[int, tuple[float, float, float, float], float]]]:
    """Return an image, uint8 [IMAGE_SIZE, IMAGE_SIZE, 3], and its objects.

    An object is (class id, (xmin, ymin, xmax, ymax) in pixels, area in square pixels).
    """
    outlines = _place_objects(rng)
    image = _source_ground(rng) if domain == "source" else _target_ground(rng)
    for _, outline in outlines:
        mask = _mask(outline)[:, :, np.newaxis]
        fill = _source_fill(rng) if domain == "source" else _target_fill(image, rng)
        image = image * (1 - mask) + fill * mask
    if domain == "source":
        image = image + rng.normal(0, 4, image.shape)
    else:
        if rng.random() < _STRIPED_PART:
            image = _add_stripes(image, rng)
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 1.0))
        image = image + rng.normal(0, rng.uniform(6, 11), image.shape)
    objects = []
    for class_id, outline in outlines:
        xmin, ymin = (round(float(value), 2) for value in outline.min(axis=0))
        xmax, ymax = (round(float(value), 2) for value in outline.max(axis=0))
        area = round(float(cv2.contourArea(outline.astype(np.float32))), 2)
        objects.append((class_id, (xmin, ymin, xmax, ymax), area))
    return np.clip(np.round(image), 0, 255).astype(np.uint8), objects


def _place_objects(rng: np.random.Generator) -> list[tuple[int, np.ndarray]]:
    """Return (class id, outline float64 [points, 2] as x, y in pixels) of objects that hardly overlap."""
    wanted = 0 if rng.random() < _EMPTY_PART else rng.integers(1, _MAX_OBJECTS + 1)
    placed: list[tuple[int, np.ndarray]] = []
    for _ in range(wanted):
        class_id = int(rng.integers(len(CLASS_NAMES)))
        for _ in range(20):  # then the image is full; one object fewer does no harm
            outline = _outline(class_id, rng)
            corner, size = outline.min(axis=0), np.ptp(outline, axis=0)
            outline += rng.uniform(1, IMAGE_SIZE - 1 - size) - corner
            if all(_covered(outline, other) <= _MAX_COVERED for _, other in placed):
                placed.append((class_id, outline))
                break
    return placed


def _outline(class_id: int, rng: np.random.Generator) -> np.ndarray:
    """Return the outline of a shape of the class, somehow turned and sized, around no place in particular."""
    turn = rng.uniform(0, 2 * math.pi)
    corners = {"circle": 64, "square": 4, "triangle": 3, "star": 10}[CLASS_NAMES[class_id]]
    angles = turn + np.arange(corners) * (2 * math.pi / corners)
    radii = np.ones(corners)
    if CLASS_NAMES[class_id] == "star":
        radii[1::2] = 0.42
    outline = np.stack([np.cos(angles), np.sin(angles)], axis=-1) * radii[:, np.newaxis]
    # Even in the logarithm, so that small objects are not rare.
    side = math.exp(rng.uniform(math.log(_SIDES[0]), math.log(_SIDES[1])))
    return outline * (side / np.ptp(outline, axis=0).max())


def _covered(one: np.ndarray, other: np.ndarray) -> float:
    """Return how much of the smaller of two outlines' boxes the other covers."""
    low = np.maximum(one.min(axis=0), other.min(axis=0))
    high = np.minimum(one.max(axis=0), other.max(axis=0))
    smaller = min(np.prod(np.ptp(one, axis=0)), np.prod(np.ptp(other, axis=0)))
    return float(np.prod(np.maximum(high - low, 0)) / smaller)


def _mask(outline: np.ndarray) -> np.ndarray:
    """Return float64 [IMAGE_SIZE, IMAGE_SIZE]: the part of each pixel that is inside."""
    mask = np.zeros((IMAGE_SIZE * _FINER, IMAGE_SIZE * _FINER), np.uint8)
    # OpenCV's pixel (0, 0) has its centre at (0, 0); in the outline's coordinates that is (0.5, 0.5).
    cv2.fillPoly(mask, [np.round(outline * _FINER - 0.5).astype(np.int32)], 255)
    return cv2.resize(mask, (IMAGE_SIZE, IMAGE_SIZE), interpolation=cv2.INTER_AREA) / 255.0


def _source_ground(rng: np.random.Generator) -> np.ndarray:
    """Light, and from one pale colour to another."""
    corners = rng.uniform(180, 245, (2, 2, 3))
    return cv2.resize(corners, (IMAGE_SIZE, IMAGE_SIZE), interpolation=cv2.INTER_LINEAR)


def _source_fill(rng: np.random.Generator) -> np.ndarray:
    """One full colour, darker than the ground in at least two of red, green and blue."""
    colour = rng.uniform(10, 120, 3)
    colour[rng.integers(3)] = rng.uniform(10, 220)
    return colour


def _target_ground(rng: np.random.Generator) -> np.ndarray:
    """Murky, with grain of several sizes and a wave across."""
    grain = sum(_grain(cells, rng) * weight for cells, weight in ((6, 9.0), (20, 7.0), (64, 6.0)))
    wave = 6 * np.sin(_ramp(rng) * (2 * math.pi / rng.uniform(6, 16)))
    return rng.uniform(110, 190, 3) + (grain + wave)[:, :, np.newaxis]


def _target_fill(ground: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The ground seen through a hatched film, lighter or darker than it."""
    hatch = 9 * np.sin(_ramp(rng) * (2 * math.pi / rng.uniform(4, 9)))
    light = rng.uniform(95, 140, 3) if rng.random() < 0.5 else rng.uniform(-20, 15, 3)
    return ground * 0.5 + light + hatch[:, :, np.newaxis]


def _add_stripes(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Thin bars of one grey across the whole image, in front of everything."""
    distance = rng.uniform(18, 34)
    position = (_ramp(rng) + rng.uniform(0, distance)) % distance
    bars = (position < rng.uniform(1.5, 3.5))[:, :, np.newaxis]
    return np.where(bars, rng.uniform(20, 130), image)


def _grain(cells: int, rng: np.random.Generator) -> np.ndarray:
    noise = rng.normal(0, 1, (cells, cells))
    return cv2.resize(noise, (IMAGE_SIZE, IMAGE_SIZE), interpolation=cv2.INTER_CUBIC)


def _ramp(rng: np.random.Generator) -> np.ndarray:
    """Return [IMAGE_SIZE, IMAGE_SIZE]: how far each pixel is, in some direction."""
    angle = rng.uniform(0, math.pi)
    y, x = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE]
    return x * math.cos(angle) + y * math.sin(angle)

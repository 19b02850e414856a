"""A data set of random images as files, for benchmarks: it costs what photographs cost to read and decode."""

from pathlib import Path

import cv2
import numpy as np

from data.dataset import Category, DetectionDataset, EncodedImage, Example

# Files are read again and again, as the page cache would have it; so many are enough to look different.
_DISTINCT_FILES = 32
_JPEG_QUALITY = 92
_CELL = 16  # pixels between the colours that a smooth ground is drawn through
_GRAIN = 12.0  # standard deviation of the noise on it; with it a pixel takes 4.4 bits, in COCO 4.2


def random_image_dataset(
    folder: Path, *, images: int, height: int, width: int, classes: int, boxes: int, seed: int = 0
) -> DetectionDataset:
    """Return a data set of JPEG files drawn into `folder`, the same one each time.

    Args:
        folder: exists, and is empty.
        images: how many examples there are; they share some files.
        height: pixels, of every image.
        width: pixels.
        classes: C; they are called `class 1` and so on.
        boxes: on each image.
        seed: of everything.
    """
    rng = np.random.default_rng(seed)
    files = []
    for number in range(min(images, _DISTINCT_FILES)):
        path = folder / f"{number:03d}.jpg"
        cv2.imwrite(str(path), _draw(rng, height, width), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
        files.append(EncodedImage(path))
    examples = []
    for index in range(images):
        size = rng.uniform(1 / 8, 1 / 2, [boxes, 2]) * [height, width]
        corner = rng.uniform(0, 1, [boxes, 2]) * ([height, width] - size)
        examples.append(
            Example(
                image_id=index + 1,
                height=height,
                width=width,
                boxes_yxyx=np.concatenate([corner, corner + size], axis=1).astype(np.float32),
                classes=rng.integers(0, classes, boxes).astype(np.int32),
                is_crowd=np.zeros(boxes, bool),
                areas=size.prod(axis=1).astype(np.float32),
                source=files[index % len(files)],
            )
        )
    categories = tuple(Category(number, f"class {number}") for number in range(1, classes + 1))
    return DetectionDataset("random images", categories, tuple(examples))


def _draw(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return uint8 [height, width, 3]: smooth colours with grain."""
    coarse = rng.uniform(0, 255, [-(-height // _CELL) + 1, -(-width // _CELL) + 1, 3])
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth + rng.normal(0, _GRAIN, smooth.shape), 0, 255).astype(np.uint8)

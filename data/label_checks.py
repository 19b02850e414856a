"""The checks every reader makes of its labels: class lists, image headers, boxes."""

import difflib
import io
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import BmpImagePlugin, GifImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin

from data.dataset import Category, EncodedImage, Example, LabelError, LabelReport, name_a_few

NOT_FINITE = "box with a coordinate that is not a finite number: dropped"
EMPTY_BOX = "box of zero or negative size: dropped"
TINY_BOX = "box of a hundredth of a pixel or less: dropped"
OUTSIDE = "box outside the image: dropped"
PARTLY_OUTSIDE = "box partly outside the image: clipped"
OTHER_AREA = "object whose area is not a number above zero: its box's area is used"
OTHER_SIZE = "image of another size than its labels say: the image's own size is used"
OTHER_SIZE_SWAPPED = (
    "image whose height and width are swapped in its labels (turned by EXIF, which is ignored here?): "
    "the image's own size is used"
)

# What `tf.io.decode_image` reads.  Each is opened by its own class: `Image.open` refuses 179 million pixels
# and warns of half as many, lest Pillow decode them; here it reads their header alone.
_IMAGE_FILES: tuple[type[ImageFile.ImageFile], ...] = (
    JpegImagePlugin.JpegImageFile,
    PngImagePlugin.PngImageFile,
    BmpImagePlugin.BmpImageFile,
    GifImagePlugin.GifImageFile,
)

# From here on TensorFlow decodes none: pixels, of a JPEG numbers in its pixels (`core/lib/jpeg/jpeg_mem.cc`,
# `core/kernels/image/decode_image_op.cc`).
_TOO_LARGE = {"JPEG": 2**29, "PNG": 2**29, "BMP": 2**28 - 1}

# Pixels.  Normalised coordinates and decimals are off by rounding: an overhang of so much is nothing to
# report, and a box of no more has no size once it is float32, scaled and cropped.
_ROUNDING = 0.01


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "; nearest: …" for an error about the unknown `name`, or "" if nothing in `known` is near."""
    matches = difflib.get_close_matches(name, list(known), n=3)
    return "; nearest: " + ", ".join(repr(match) for match in matches) if matches else ""


def select_categories(
    known: Mapping[int, str], class_names: Sequence[str] | None, label_file: str
) -> tuple[Category, ...]:
    """Return the categories in the order of the class ids: as `class_names` has them, else by category id.

    Args:
        known: the names by category id, as `label_file` has them.
        class_names: the classes wanted, in order, or None for all.
        label_file: its name, for the message.

    Raises:
        LabelError: a name is there twice, or is wanted and empty or not there.
    """
    names = list(known.values())
    for listed, where in ((names, label_file), (list(class_names or ()), "class_names")):
        twice = sorted({name for name in listed if listed.count(name) > 1})
        if twice:
            raise LabelError(f"{where}: class {twice[0]!r} is listed twice; class names must be unique")
    if class_names is None:
        return tuple(Category(id, known[id]) for id in sorted(known))
    for number, name in enumerate(class_names, start=1):
        if not name.strip():
            raise LabelError(f"class_names: name {number} is empty; leave it out, or name a class")
    ids = {name: id for id, name in known.items()}
    for name in class_names:
        if name not in ids:
            raise LabelError(
                f"{label_file}: has no class {name!r} of class_names{nearest(name, names)}; "
                f"it has {', '.join(map(repr, names))}"
            )
    return tuple(Category(ids[name], name) for name in class_names)


def image_size(file: BinaryIO) -> tuple[int, int]:
    """Return (height, width) from an image's header, undecoded.

    Raises:
        ValueError: it is no such image, or TensorFlow does not decode it to its colours.
    """
    image = _open(file)
    kind = str(image.format)
    # `tf.io.decode_image` takes a palette's indices for gray, and refuses a pixel that is one bit.
    if kind == "BMP" and image.mode in ("P", "1"):
        raise ValueError(
            "it is a BMP with a palette, which TensorFlow cannot read; convert it to PNG or JPEG"
        )
    pixels = image.height * image.width
    limit = _TOO_LARGE.get(kind, np.inf) / (len(image.getbands()) if kind == "JPEG" else 1)
    if pixels >= limit:
        raise ValueError(
            f"it is a {kind} of {pixels / 1e6:,.0f} million pixels, and TensorFlow reads less than "
            f"{limit / 1e6:,.0f} million; scale it down"
        )
    return image.height, image.width


def _open(file: BinaryIO) -> ImageFile.ImageFile:
    """Return an image of which the header is read; Pillow reads no further until pixels are asked for.

    Raises ValueError if it is of no format that TensorFlow reads.
    """
    for image_file in _IMAGE_FILES:
        file.seek(0)
        try:
            return image_file(file)
        # How Pillow says that it is of another format, or damaged.
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            continue
    raise ValueError("its header is not that of a JPEG, PNG, BMP or GIF image")


def image_sizes(paths: Sequence[Path], label_file: Path) -> list[tuple[int, int]]:
    """Return (height, width) of each image file.

    Raises:
        LabelError: images are missing or unreadable; all are counted, the first few named.
    """

    def size_or_error(path: Path) -> tuple[int, int] | str:
        try:
            with open(path, "rb") as file:
                return image_size(file)
        except FileNotFoundError:
            return "missing"
        except (OSError, ValueError) as error:
            return str(error)

    # Threads, because on a cold or a network disk nearly all of this is waiting.
    with ThreadPoolExecutor(16) as pool:
        sizes = list(pool.map(size_or_error, paths))
    missing = [str(path) for path, size in zip(paths, sizes, strict=True) if size == "missing"]
    unreadable = [
        f"{path}: {size}"
        for path, size in zip(paths, sizes, strict=True)
        if isinstance(size, str) and size != "missing"
    ]
    problems = []
    if missing:
        problems.append(
            f"{len(missing)} of {len(paths)} images do not exist ({name_a_few(missing, len(missing))})"
        )
    if unreadable:
        problems.append(
            f"{len(unreadable)} of {len(paths)} images are unreadable "
            f"({name_a_few(unreadable, len(unreadable))})"
        )
    if problems:
        raise LabelError(f"{label_file}: {'; '.join(problems)}")
    return [size for size in sizes if isinstance(size, tuple)]


def encoded_size(encoded: bytes, place: str) -> tuple[int, int]:
    """Return (height, width) of an encoded image; LabelError naming `place` if it is none."""
    try:
        return image_size(io.BytesIO(encoded))
    except ValueError as error:
        raise LabelError(f"{place}: the image is unreadable: {error}") from error


def make_example(
    *,
    image_id: int,
    size_hw: tuple[int, int],
    labelled_hw: tuple[int, int] | None,
    boxes_yxyx: Sequence[Sequence[float]] | np.ndarray,
    classes: Sequence[int],
    is_crowd: Sequence[bool],
    areas: Sequence[float | None],
    places: Sequence[str],
    source: EncodedImage,
    report: LabelReport,
) -> Example:
    """Return the example with its boxes clipped to the image, and those dropped that have nothing in it.

    Args:
        image_id: the COCO image id.
        size_hw: height and width in the image's header.
        labelled_hw: height and width as the labels have them, if they do.
        boxes_yxyx: [n, 4], pixels.
        classes: [n], contiguous.
        is_crowd: [n].
        areas: [n], square pixels; None stands for the area of the box, and so does what is no area, reported.
        places: [n], file and entry of each box, for `report`.
        source: where the image is.
        report: counts what is dropped and clipped.
    """
    height, width = size_hw
    if labelled_hw is not None and labelled_hw != size_hw:
        swapped = labelled_hw == (width, height)
        report.note(
            OTHER_SIZE_SWAPPED if swapped else OTHER_SIZE,
            f"{source}: {width}x{height}, labelled {labelled_hw[1]}x{labelled_hw[0]}",
        )
    boxes = np.asarray(boxes_yxyx, np.float64).reshape(-1, 4)
    clipped = np.clip(boxes, 0, [height, width, height, width]).astype(np.float32)
    sizes = clipped[:, 2:] - clipped[:, :2]
    overhang = np.max(np.abs(boxes - clipped), axis=1, initial=0)
    kept = []
    kept_areas = []
    for row, place in enumerate(places):
        if not np.all(np.isfinite(boxes[row])):
            report.note(NOT_FINITE, place)
        elif np.any(boxes[row, 2:] <= boxes[row, :2]):
            report.note(EMPTY_BOX, place)
        elif np.any(boxes[row, 2:] - boxes[row, :2] <= _ROUNDING):
            report.note(TINY_BOX, place)
        elif np.any(sizes[row] <= _ROUNDING):
            report.note(OUTSIDE, place)
        else:
            area = areas[row]
            box_area = float(np.prod(sizes[row]))
            if area is not None and not 0 < area < np.inf:
                report.note(OTHER_AREA, place)
                area = None
            if overhang[row] > _ROUNDING:
                report.note(PARTLY_OUTSIDE, place)
                area = None if area is None else min(area, box_area)
            kept.append(row)
            kept_areas.append(box_area if area is None else area)
    return Example(
        image_id=image_id,
        height=height,
        width=width,
        boxes_yxyx=clipped[kept],
        classes=np.asarray(classes, np.int32)[kept],
        is_crowd=np.asarray(is_crowd, bool)[kept],
        areas=np.asarray(kept_areas, np.float32),
        source=source,
    )

"""Reads data sets in Pascal VOC's folders: `Annotations`, `JPEGImages`, `ImageSets/Main`."""

import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from data.dataset import DetectionDataset, EncodedImage, LabelError, LabelReport
from data.label_checks import image_sizes, make_example, nearest, select_categories

_IMAGE_FOLDERS = ("JPEGImages", "Images", "images")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")


def read_voc(
    root: str | Path, split: str | None = None, class_names: Sequence[str] | None = None
) -> DetectionDataset:
    """Read the images of one split, or every image that has an annotation file, with their boxes.

    Image ids and category ids, which the format lacks, count from 1: images in the order of the split file
    (of the file names if there is no split), categories in the order of the classes.  VOC's corners count
    pixels from 1 and include the last, so a box from 1 to 10 becomes 0 to 10; equal corners are dropped as a
    box of zero size, because in practice they are stray clicks.  Objects marked difficult are objects like
    any other.

    Args:
        root: the folder that holds `Annotations`.
        split: the name of a file in `ImageSets/Main`, without `.txt`; None reads all of `Annotations`.
        class_names: the classes in the order of the class ids.  None takes those of *all* annotation files,
            so that every split has the same, in alphabetical order.

    Raises:
        FileNotFoundError: a folder or the split file does not exist.
        LabelError: the labels are wrong in a way that nothing can be dropped to mend: an annotation file that
            is missing or no VOC XML, an entry that is there twice, an unknown class, a missing or unreadable
            image, no usable box at all.
    """
    root = Path(root)
    annotations = root / "Annotations"
    if not annotations.is_dir():
        raise FileNotFoundError(f"{root} has no folder Annotations; expected the folder that holds it")
    images = next((root / name for name in _IMAGE_FOLDERS if (root / name).is_dir()), None)
    if images is None:
        raise FileNotFoundError(f"{root} has none of the image folders {', '.join(_IMAGE_FOLDERS)}")

    all_files = sorted(annotations.glob("*.xml"))
    files = all_files if split is None else _split_files(root, split)
    trees = {file: _parse(file) for file in (files if class_names else sorted({*all_files, *files}))}
    if class_names is None:
        class_names = sorted(
            {_text(item, "name", file) for file in trees for item in trees[file].findall("object")}
        )
    categories = select_categories(dict(enumerate(class_names, start=1)), class_names, str(annotations))
    class_of = {category.name: index for index, category in enumerate(categories)}

    report = LabelReport()
    list_file = root / "ImageSets" / "Main" / f"{split}.txt" if split else annotations
    paths = [_image_path(images, file, trees[file]) for file in files]
    examples = []
    for image_id, (file, path, size_hw) in enumerate(
        zip(files, paths, image_sizes(paths, list_file), strict=True), start=1
    ):
        objects = trees[file].findall("object")
        classes, places = [], []
        for number, item in enumerate(objects, start=1):
            name = _text(item, "name", file)
            places.append(f"{file}: object {number}, {name}")
            if name not in class_of:
                raise LabelError(
                    f"{places[-1]}: unknown class{nearest(name, class_of)}; "
                    f"class_names has {', '.join(map(repr, class_of))}"
                )
            classes.append(class_of[name])
        examples.append(
            make_example(
                image_id=image_id,
                size_hw=size_hw,
                labelled_hw=_labelled_hw(trees[file], file),
                boxes_yxyx=[_box_yxyx(item, place) for item, place in zip(objects, places, strict=True)],
                classes=classes,
                is_crowd=[False] * len(objects),
                areas=[None] * len(objects),
                places=places,
                source=EncodedImage(path),
                report=report,
            )
        )
    return DetectionDataset(str(list_file), categories, tuple(examples), report)


def _split_files(root: Path, split: str) -> list[Path]:
    sets = root / "ImageSets" / "Main"
    split_file = sets / f"{split}.txt"
    if not split_file.is_file():
        splits = ", ".join(sorted(path.stem for path in sets.glob("*.txt"))) or "none"
        raise FileNotFoundError(f"{split_file} does not exist; splits there: {splits}")
    lines = split_file.read_text(encoding="utf-8").splitlines()
    # A class's own split files (`cat_train.txt`) have a second column, which says whether the image shows it.
    names = [re.sub(r"\s+(-1|0|1)$", "", line.strip()) for line in lines if line.strip()]
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise LabelError(f"{split_file}: {name} is listed twice; entries must be unique")
        seen.add(name)
    files = [root / "Annotations" / f"{name}.xml" for name in names]
    for file in files:
        if not file.is_file():
            raise LabelError(f"{split_file}: entry {file.stem}: {file} does not exist")
    return files


def _parse(file: Path) -> ElementTree.Element:
    try:
        tree = ElementTree.parse(file).getroot()
    except ElementTree.ParseError as error:
        raise LabelError(f"{file}: is not an XML file: {error}") from error
    if tree.tag != "annotation":
        raise LabelError(f"{file}: expected VOC's <annotation>, got <{tree.tag}>")
    return tree


def _text(element: ElementTree.Element, tag: str, file: Path) -> str:
    text = (element.findtext(tag) or "").strip()
    if not text:
        raise LabelError(f"{file}: an <{element.tag}> has no <{tag}>")
    return text


def _labelled_hw(tree: ElementTree.Element, file: Path) -> tuple[int, int] | None:
    if tree.find("size") is None:
        return None
    texts = tree.findtext("size/height"), tree.findtext("size/width")
    try:
        return int(texts[0] or ""), int(texts[1] or "")
    except ValueError as error:
        raise LabelError(f"{file}: <size>: expected whole <height> and <width>, got {texts}") from error


def _box_yxyx(item: ElementTree.Element, place: str) -> tuple[float, float, float, float]:
    texts = [item.findtext(f"bndbox/{tag}") for tag in ("ymin", "xmin", "ymax", "xmax")]
    try:
        ymin, xmin, ymax, xmax = (float(text or "") for text in texts)
    except ValueError as error:
        raise LabelError(
            f"{place}: expected numbers ymin, xmin, ymax, xmax in <bndbox>, got {texts}"
        ) from error
    if ymin == ymax or xmin == xmax:
        return ymin, xmin, ymax, xmax
    return ymin - 1, xmin - 1, ymax, xmax


def _image_path(images: Path, file: Path, tree: ElementTree.Element) -> Path:
    """Return the image of an annotation file: by name, else by its <filename>, which is often stale."""
    named = images / (tree.findtext("filename") or "").strip()
    candidates = [images / (file.stem + suffix) for suffix in _SUFFIXES]
    candidates += [images / (file.stem + suffix.upper()) for suffix in _SUFFIXES]
    return next((path for path in [*candidates, named] if path.is_file()), candidates[0])

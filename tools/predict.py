"""Detect on images: pictures with labelled boxes, and predictions.json.

python tools/predict.py runs/shapes-001/saved_model photo.jpg more_photos/ --output predictions
python tools/predict.py runs/shapes-001 photo.jpg --output predictions --score-threshold 0.3
python tools/predict.py model.ckpt photo.jpg --output predictions --pipeline-config pipeline.config
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import command_line
import foreign_checkpoint
import launch

if TYPE_CHECKING:
    import numpy as np

# What `tf.io.decode_image` reads.
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code, 1 if an image could not be read."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "model",
        type=Path,
        metavar="MODEL",
        help="a SavedModel, a checkpoint, a run, or a checkpoint of another project",
    )
    parser.add_argument("inputs", type=Path, nargs="+", metavar="INPUT", help="images, or folders of images")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the results go")
    parser.add_argument(
        "--score-threshold", type=float, default=0.5, metavar="P", help="leave out what scores less (0.5)"
    )
    command_line.add_config_options(parser, "the model's own; of another project's weights, what they tell")
    command_line.add_checkpoint_option(parser)
    arguments = parser.parse_args(argv)
    return launch.run(lambda: _predict(arguments))


def _predict(arguments: argparse.Namespace) -> int:
    from detector.coco_metrics import to_coco_results
    from detector.drawing import class_color, draw_detections
    from detector.loading import load_detector

    threshold = arguments.score_threshold
    if not 0.0 <= threshold <= 1.0:
        raise ValueError(f"expected a --score-threshold between 0 and 1, got {threshold}")
    files = find_images(arguments.inputs)
    if arguments.output.resolve() in {file.resolve().parent for file in files}:
        raise ValueError(
            f"the pictures would come to lie among the images in {arguments.output}; name another --output"
        )
    command_line.check_choice(arguments.checkpoint, arguments.model)
    model = foreign_checkpoint.as_own(arguments.model, arguments)
    if model == arguments.model:
        foreign_checkpoint.refuse_config_options(model, arguments)
    detector = load_detector(model, arguments.checkpoint)
    ids, names = list(detector.label_map), list(detector.label_map.values())

    arguments.output.mkdir(parents=True, exist_ok=True)
    page: dict[str, Any] = {
        "model": str(arguments.model),
        "score_threshold": threshold,
        "categories": [{"id": identifier, "name": name} for identifier, name in detector.label_map.items()],
        "images": [],
        "detections": [],
        "skipped": [],
    }
    taken: set[str] = set()
    for file in files:
        try:
            encoded = file.read_bytes()
            image = _decode(encoded)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            page["skipped"].append({"file_name": str(file), "reason": reason})
            print(f"skipped {file}: {reason}", file=sys.stderr)
            continue
        (found,) = detector.detect([encoded])
        kept = found.scores >= threshold
        boxes_yxyx, classes = found.boxes_in_pixels(*image.shape[:2])[kept], found.classes[kept]
        scores = found.scores[kept]
        picture = _free_name(file.stem, taken)
        draw_detections(
            image,
            boxes_yxyx,
            [f"{names[index]} {score:.0%}" for index, score in zip(classes, scores, strict=True)],
            [class_color(index) for index in classes],
        ).save(arguments.output / picture, quality=92)
        image_id = len(page["images"]) + 1
        page["images"].append(
            {
                "id": image_id,
                "file_name": str(file),
                "width": image.shape[1],
                "height": image.shape[0],
                "picture": picture,
            }
        )
        page["detections"] += [
            {**result, "file_name": str(file), "category_name": detector.label_map[result["category_id"]]}
            for result in to_coco_results(image_id, boxes_yxyx, classes, scores, ids)
        ]
        counts = Counter(names[index] for index in classes)
        print(f"{file}: {', '.join(f'{count} {name}' for name, count in counts.items()) or 'nothing'}")

    (arguments.output / "predictions.json").write_text(json.dumps(page, indent=1), encoding="utf-8")
    print(
        f"{len(page['detections'])} detections on {len(page['images'])} images: "
        f"pictures and predictions.json are in {arguments.output}"
    )
    if page["skipped"]:
        print(f"error: {len(page['skipped'])} of {len(files)} images could not be read", file=sys.stderr)
        return 1
    return 0


def find_images(inputs: Sequence[Path]) -> list[Path]:
    """Return the image files that `inputs` name, each once: files as they are, a folder's by their suffix.

    Raises:
        FileNotFoundError: an input does not exist, or a folder has no images.
    """
    files: dict[Path, Path] = {}
    for path in inputs:
        if not path.exists():
            raise FileNotFoundError(f"there is nothing at {path}; expected an image or a folder of images")
        found = [path]
        if path.is_dir():
            entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
            found = [entry for entry in entries if entry.suffix.lower() in _SUFFIXES]
            if not found:
                raise FileNotFoundError(f"the folder {path} has no images ({', '.join(_SUFFIXES)})")
            if len(found) < len(entries):
                print(
                    f"{path}: passed over {len(entries) - len(found)} of {len(entries)} entries, "
                    f"which do not end in {', '.join(_SUFFIXES)}",
                    file=sys.stderr,
                )
        for file in found:
            files.setdefault(file.resolve(), file)
    return list(files.values())


def _decode(encoded: bytes) -> "np.ndarray":
    """Return an image as the model sees it, uint8 [h, w, 3]; ValueError if it cannot be decoded."""
    import tensorflow as tf

    from detector import encoded_image

    if encoded_image.has_palette(tf.constant(encoded)):
        raise ValueError(encoded_image.PALETTE)
    try:
        return tf.io.decode_image(encoded, channels=3, expand_animations=False).numpy()
    except tf.errors.InvalidArgumentError:
        raise ValueError("it is no image that TensorFlow can decode, or it is damaged") from None


def _free_name(stem: str, taken: set[str]) -> str:
    """Return a picture's file name, and keep it: images in different folders may be called the same."""
    number, name = 1, f"{stem}.jpg"
    while name.lower() in taken:
        number += 1
        name = f"{stem}-{number}.jpg"
    taken.add(name.lower())
    return name


if __name__ == "__main__":
    sys.exit(main())

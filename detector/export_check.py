"""The check of an export: a fresh process without this package must detect what the live model detects."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from detector.export import ENCODED_SIGNATURE, IMAGES_SIGNATURE, label_map_ids
from detector.faster_rcnn import FasterRCNN, Inference
from detector.graph_rewriting import without_memory_optimizer
from detector.resizer import Resizer, to_canvas

TOLERANCE = 1e-4
"""Of scores, and of coordinates as parts of the image: float32 sums, not always in one order."""

AGREEING_PART = 0.95
"""Of the rows, that must be within the tolerance.  Where two boxes overlap by almost exactly what suppression
allows, or two scores are almost equal, the last digit decides which one is there: a row or two may differ."""

_RELOAD = Path(__file__).with_name("reload_alone.py")

Outputs = Mapping[str, np.ndarray]
LiveInference = Callable[[tf.Tensor, tf.Tensor], Inference]


class ExportCheckError(RuntimeError):
    """The SavedModel does not load without this package, or detects something else than the live model."""


@dataclass(frozen=True)
class Agreement:
    """The `part` of the rows within the tolerance, and the `largest` difference of a score or coordinate."""

    part: float
    largest: float

    @property
    def holds(self) -> bool:
        """Whether enough rows agree."""
        return self.part >= AGREEING_PART


@dataclass(frozen=True)
class ExportCheck:
    """The agreement by comparison, and how many detections there were."""

    agreements: dict[str, Agreement]
    detections: int

    @property
    def holds(self) -> bool:
        """Whether every comparison holds."""
        return all(agreement.holds for agreement in self.agreements.values())

    def lines(self) -> list[str]:
        """Return one line a comparison, for people."""
        return [
            f"{'ok     ' if agreement.holds else 'DIFFERS'} {name}: {agreement.part:.1%} of the rows agree, "
            f"largest difference {agreement.largest:.1e}"
            for name, agreement in self.agreements.items()
        ]


def check_export(
    saved_model: str | Path, model: FasterRCNN, resizer: Resizer, categories: Sequence[Mapping[str, Any]]
) -> ExportCheck:
    """Run a SavedModel in a process without this package and compare it with the model it was made of.

    Both see images of two sizes, a batch of two, and encoded images, of one size and of different ones.
    Every proposal's probabilities are compared too, so that the check says something even of a model that
    detects nothing on made-up images.

    Raises:
        ExportCheckError: the process failed; the message has the end of what it wrote.
    """
    first, second = _made_up_images(2, (120, 160))
    (other,) = _made_up_images(1, (211, 157))
    jpeg, png = tf.io.encode_jpeg(other).numpy(), tf.io.encode_png(first).numpy()
    cases = {  # name: signature, what it is fed, and the images that are in it
        "one image": (IMAGES_SIGNATURE, np.stack([other]), [other]),
        "a batch of two": (IMAGES_SIGNATURE, np.stack([first, second]), [first, second]),
        "a batch of two, encoded": (
            ENCODED_SIGNATURE,
            np.array([png, tf.io.encode_png(second).numpy()], object),
            [first, second],
        ),
        "JPEG and PNG of two sizes": (
            ENCODED_SIGNATURE,
            np.array([jpeg, png], object),
            [tf.io.decode_image(jpeg).numpy(), first],
        ),
    }
    outputs = _run_alone(saved_model, {f"{case[0]}:{name}": case[1] for name, case in cases.items()})
    reloaded = {
        name: _tables(
            {key.split(":")[2]: value for key, value in outputs.items() if key.split(":")[1] == name}
        )
        for name in cases
    }
    ids = np.array(label_map_ids(categories), np.float32)
    live = _live_graph(model)
    agreements = {
        f"{name}, against the live model": _agreement(
            reloaded[name], _live_tables(live, resizer, images, ids)
        )
        for name, (_, _, images) in cases.items()
    }
    agreements["the two signatures, against each other"] = _agreement(
        reloaded["a batch of two"], reloaded["a batch of two, encoded"]
    )
    return ExportCheck(agreements, sum(len(table) for tables in reloaded.values() for table in tables[::2]))


def _run_alone(saved_model: str | Path, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = Path(folder) / "inputs.npz", Path(folder) / "outputs.npz"
        # Its signature takes arrays by name, and one keyword for itself.
        np.savez(inputs, **feeds)  # type: ignore[arg-type]
        done = subprocess.run(
            [sys.executable, "-I", str(_RELOAD), str(Path(saved_model).resolve()), str(inputs), str(outputs)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            end = "\n  ".join(done.stderr.strip().splitlines()[-5:])
            raise ExportCheckError(f"{saved_model} does not run with TensorFlow alone:\n  {end}")
        with np.load(outputs) as found:
            return dict(found)


def _tables(outputs: Outputs) -> list[np.ndarray]:
    """Return two tables an image: detections [D, 6] (box, score, class), and probabilities [P, C+1]."""
    tables = []
    for row, count in enumerate(outputs["num_detections"].astype(int)):
        detections = [outputs[f"detection_{name}"][row, :count] for name in ("boxes", "scores", "classes")]
        probabilities = outputs["raw_detection_scores"][row]
        tables += [np.column_stack(detections), probabilities[probabilities.any(axis=1)]]
    return tables


def _live_graph(model: FasterRCNN) -> LiveInference:
    """Return the live model as a `tf.function` of canvases uint8 [B, H, W, 3] and their image sizes [B, 2].

    A graph like the SavedModel's: where TensorFlow fuses a convolution with what follows it, bfloat16 is
    rounded once instead of after each, and eager scores differ by far more than the tolerance.
    """
    return tf.function(
        model.infer,
        input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8), tf.TensorSpec([None, 2], tf.int32)],
        autograph=False,
    )


def _live_tables(
    infer: LiveInference, resizer: Resizer, images: Sequence[np.ndarray], ids: np.ndarray
) -> list[np.ndarray]:
    """Return what `_tables` does, of the live model, whose canvases are laid out here anew."""
    canvases, sizes_hw = zip(*(to_canvas(resizer)(tf.constant(image)) for image in images), strict=True)
    canvas = np.zeros([len(images), *np.max([canvas.shape for canvas in canvases], axis=0)], np.uint8)
    for row, part in enumerate(canvases):
        canvas[row, : part.shape[0], : part.shape[1]] = part
    size_hw = tf.stack(sizes_hw)

    with without_memory_optimizer():
        proposals, predictions, found = infer(tf.constant(canvas), size_hw)
    probabilities = tf.nn.softmax(predictions.class_logits).numpy().reshape(len(images), -1, len(ids) + 1)
    tables = []
    for row, (height, width) in enumerate(size_hw.numpy()):
        count = found.count[row]
        boxes = found.boxes_yxyx[row, :count] / np.array([height, width, height, width], np.float32)
        classes = ids[found.classes[row, :count].numpy()]
        tables += [
            np.column_stack([boxes, found.scores[row, :count], classes]),
            probabilities[row, : proposals.count[row]],
        ]
    return tables


def _agreement(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> Agreement:
    """Compare tables row by row, each with its nearest row in the other's table, in both directions.

    The order of rows does not count: scores that differ in the last bit may change places.
    """
    distances = [np.zeros(0)]
    for one, other in zip(first, second, strict=True):
        if not (len(one) and len(other)):
            distances.append(np.full(len(one) + len(other), np.inf))
            continue
        apart = np.abs(one[:, np.newaxis] - other[np.newaxis]).max(axis=2)
        distances += [apart.min(axis=0), apart.min(axis=1)]
    joined = np.concatenate(distances)
    if not len(joined):
        return Agreement(1.0, 0.0)
    return Agreement(float(np.mean(joined <= TOLERANCE)), float(joined.max()))


def _made_up_images(count: int, size_hw: tuple[int, int]) -> list[np.ndarray]:
    """Return uint8 [h, w, 3] images of coloured tiles with noise, always the same ones."""
    rng = np.random.default_rng(size_hw)
    height, width = size_hw
    images = []
    for _ in range(count):
        tiles = rng.integers(0, 200, [height // 30 + 1, width // 30 + 1, 3]).repeat(30, 0).repeat(30, 1)
        images.append((tiles[:height, :width] + rng.integers(0, 56, [height, width, 3])).astype(np.uint8))
    return images

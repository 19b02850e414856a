"""What the original detector computes, key by key, against what this one computes with the same weights.

A reference is an `.npz` file of arrays that the Object Detection API's graph computed from one image and one
checkpoint: `image`, `infer/…` at inference, `train/…` the losses of a ground truth and their gradients.

Every stage is compared on the reference's own input to it: proposals are made from its RPN outputs, and the
second stage runs on its proposals.  Scores that agree to the last digits change places between any two
programs, with them the boxes that suppress others, and what follows could not be told from an error.
`end_to_end` says what comes of it when nothing is taken from the reference.

Tolerances: 1e-4 relative (‖ours - theirs‖ / ‖theirs‖) on values and losses, 1e-2 on gradients and their
norms; of proposals and detections at most 1 % of the rows may differ.  A row differs if its box does by
more than 1e-3 of the canvas, or its class, or its score by more than 1e-3 of it.  Rows are compared after
matching them one to one, since equal scores have no order.
"""

import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from scipy.optimize import linear_sum_assignment

from detector.box_classifier import BoxPredictions, crop_features, draw_proposals
from detector.boxes import clip_to_window, decode
from detector.determinism import enable_determinism
from detector.faster_rcnn import FasterRCNN, FirstStage, height_and_width
from detector.resizer import Resizer
from detector.rpn import Proposals, RpnOutputs
from detector.sampling import GroundTruth
from detector.suppression import Suppressed
from detector.weights import tf2_zoo
from detector.weights.architecture import architecture_of
from detector.weights.object_detection_api import api_names

VALUE_TOLERANCE = 1e-4
# Rounding switches single rectifiers and max pools, and a gradient jumps there: see docs/fidelity.md.
GRADIENT_TOLERANCE = 1e-2
ROW_TOLERANCE = 1e-3
ROWS_THAT_MAY_DIFFER = 0.01

# How the original's graph was built for the losses: nothing is left to chance.
TRAINING_SETTINGS = {
    "rpn": {"minibatch_size": 200000, "positive_fraction": 0.25},
    "box_classifier": {"batch_size": 300, "positive_fraction": 0.25},
}

_LOSSES = {
    "Loss.RPNLoss.localization_loss": "rpn_box",
    "Loss.RPNLoss.objectness_loss": "rpn_objectness",
    "Loss.BoxClassifierLoss.localization_loss": "box",
    "Loss.BoxClassifierLoss.classification_loss": "class",
}
_SUBSAMPLED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    ".first20.sub8": lambda x: x[:20, ..., ::8],
    ".sub448": lambda x: x[:, ::4, ::4, ::8],
    ".sub37": lambda x: x[::37],
}


@dataclass(frozen=True)
class Comparison:
    """One key: the reference's shape, the error and its tolerance; both relative, or parts of the rows.

    `problem` says why a key could not be compared; it fails then.
    """

    key: str
    shape: tuple[int, ...]
    error: float = float("nan")
    tolerance: float = 0.0
    problem: str | None = None

    @property
    def agrees(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.problem is None and self.error <= self.tolerance


@dataclass(frozen=True)
class FirstPass:
    """A reference's image, and what the model's first stage makes of it.

    `image` float32 [1, H, W, 3], the canvas; `size_hw` int32 [1, 2]; `first` as at inference.
    """

    image: tf.Tensor
    size_hw: tf.Tensor
    first: FirstStage

    @property
    def canvas_hw(self) -> list[int]:
        """Height and width of the canvas."""
        return list(self.image.shape[1:3])

    @property
    def canvas_box(self) -> np.ndarray:
        """Height, width, height, width of the canvas."""
        return np.array(2 * self.canvas_hw, np.float32)


def first_pass(model: FasterRCNN, resizer: Resizer, reference: Mapping[str, np.ndarray]) -> FirstPass:
    """Run the first stage on a reference's image, once for all that is compared.

    Args:
        model: built with `TRAINING_SETTINGS`, with the reference's weights.
        resizer: the model's.
        reference: arrays by key.

    Raises:
        ValueError: the reference lacks an image, or holds more than one.
    """
    image = _input(reference, "image")
    if image.ndim != 4 or image.shape[0] != 1 or image.shape[-1] != 3:
        raise ValueError(f"the reference's image must be [1, height, width, 3], got {list(image.shape)}")
    canvas, size_hw = resizer(tf.constant(image[0]))
    return FirstPass(canvas[tf.newaxis], size_hw[tf.newaxis], model.first_stage(canvas[tf.newaxis]))


def compare(
    model: FasterRCNN, start: FirstPass, reference: Mapping[str, np.ndarray], names: Mapping[str, str]
) -> Iterator[Comparison]:
    """Yield a comparison for every key of `reference` but its inputs.

    On a CPU TensorFlow's deterministic operations are switched on, for the whole process.

    Args:
        model: see `first_pass`.
        start: its result.
        reference: arrays by key.
        names: {path: name of the variable in the keys}.

    Raises:
        ValueError: the reference lacks the ground truth of its losses.
    """
    enable_determinism()
    values = _inference(model, start, reference)
    if any(key.startswith("train/") for key in reference):
        values |= _training(model, start, reference, names)
    values = _in_the_order_of(reference, values)
    for key, theirs in reference.items():
        if key not in ("image", "train/groundtruth_boxes", "train/groundtruth_classes_0based"):
            yield _compare(key, np.asarray(theirs), values)


def end_to_end(model: FasterRCNN, start: FirstPass, reference: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the part of the reference's proposals and detections that the model finds by itself, by key.

    Arguments are those of `compare`.
    """
    values = _in_the_order_of(reference, _inference(model, start, {}))
    keys = ("infer/proposal_boxes", "infer/detections.detection_boxes", "infer/detections.detection_classes")
    return {
        key: 1.0 - _differing_rows(key, values[key], np.asarray(reference[key]))
        for key in keys
        if key in reference and reference[key].shape == values[key].shape
    }


def _inference(
    model: FasterRCNN, start: FirstPass, reference: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    first = start.first
    proposals = model.propose(_with_given_outputs(first, reference), start.size_hw)
    given = _given_proposals(reference, "infer", start) or proposals
    cropped = model.crops(first.features, given, start.canvas_hw)
    tower = model.box_classifier.tower(cropped)
    predictions = model.box_classifier.predictor(tower)
    found = model.detections(predictions, given, start.size_hw)
    normalized = proposals.boxes_yxyx / start.canvas_box
    values = {
        # The preprocessed pixels are subsampled without saying so in their key.
        "preprocessed": model.preprocess(start.image)[:, ::16, ::16],
        "image_shape": tf.shape(start.image),
        "true_image_shapes": tf.concat([start.size_hw, [[3]]], axis=1),
        "rpn_features_to_crop": first.features,
        "rpn_box_predictor_features": first.outputs.hidden,
        "anchors": first.anchors_yxyx,
        "rpn_box_encodings": first.outputs.box_encodings,
        "rpn_objectness_predictions_with_background": first.outputs.objectness,
        "proposal_boxes": proposals.boxes_yxyx,
        "proposal_boxes_normalized": normalized,
        "final_anchors": normalized,
        "num_proposals": proposals.count,
        "crops14": crop_features(first.features, given.boxes_yxyx, start.canvas_box[:2], 14),
        "box_classifier_features": tower,
        "class_predictions_with_background": predictions.class_logits,
        "refined_box_encodings": predictions.box_encodings,
        # The original normalises detections by the image, not by the canvas.
        "detections.detection_boxes": found.boxes_yxyx / tf.cast(tf.tile(start.size_hw, [1, 2]), tf.float32),
        "detections.detection_scores": found.scores,
        "detections.detection_classes": found.classes,
        "detections.detection_anchor_indices": _proposals_of(found, given, predictions, start.size_hw),
        "detections.num_detections": found.count,
    }
    return {f"infer/{key}": np.asarray(value) for key, value in values.items()}


def _training(
    model: FasterRCNN, start: FirstPass, reference: Mapping[str, np.ndarray], names: Mapping[str, str]
) -> dict[str, np.ndarray]:
    boxes = _input(reference, "train/groundtruth_boxes") * start.canvas_box
    classes = _input(reference, "train/groundtruth_classes_0based")
    batch = {
        "image": start.image,
        "image_size_hw": start.size_hw,
        "boxes_yxyx": tf.constant(boxes[np.newaxis], tf.float32),
        "classes": tf.constant(classes[np.newaxis], tf.int32),
        "is_crowd": tf.zeros([1, len(classes)], tf.bool),
    }
    seed = tf.constant([0, 0])
    given = _given_proposals(reference, "train", start)
    variables = {path: variable for path, variable in model.variables_by_path.items() if variable.trainable}
    with tf.GradientTape() as tape:
        losses = model.named_losses(batch, seed, training=False, proposals=given)
        total = tf.add_n(list(losses.values()))
    gradients = tape.gradient(
        total, list(variables.values()), unconnected_gradients=tf.UnconnectedGradients.ZERO
    )

    features = start.first.features
    first = model.first_stage_of_outputs(
        features, start.first.outputs, height_and_width(features), start.canvas_hw, training=True
    )
    drawn, _ = draw_proposals(
        model.propose(_with_given_outputs(first, reference), start.size_hw),
        GroundTruth.of(batch),
        seed,
        batch_size=model.box_classifier_settings.batch_size,
        positive_fraction=model.box_classifier_settings.positive_fraction,
    )
    values = {f"train/loss.{key}": losses[name] for key, name in _LOSSES.items()}
    values["train/proposal_boxes_normalized"] = drawn.boxes_yxyx / start.canvas_box
    values["train/num_proposals"] = drawn.count
    for path, gradient in zip(variables, gradients, strict=True):
        values[f"train/grad.{names[path]}"] = gradient
        values[f"train/gradnorm.{names[path]}"] = tf.norm(gradient)
    return {key: np.asarray(value) for key, value in values.items()}


def _input(reference: Mapping[str, np.ndarray], key: str) -> np.ndarray:
    if key not in reference:
        raise ValueError(f"the reference has no {key!r}; it holds {', '.join(list(reference)[:5])}, …")
    return np.asarray(reference[key])


def _with_given_outputs(first: FirstStage, reference: Mapping[str, np.ndarray]) -> FirstStage:
    """Return `first` with the reference's RPN outputs where it has those of all anchors."""
    keys = ("infer/rpn_box_encodings", "infer/rpn_objectness_predictions_with_background")
    ours = (first.outputs.box_encodings, first.outputs.objectness)
    if not all(
        key in reference and reference[key].shape == mine.shape for key, mine in zip(keys, ours, strict=True)
    ):
        return first
    box_encodings, objectness = (tf.constant(reference[key]) for key in keys)
    return replace(first, outputs=RpnOutputs(first.outputs.hidden, box_encodings, objectness))


def _given_proposals(reference: Mapping[str, np.ndarray], mode: str, start: FirstPass) -> Proposals | None:
    """Return the reference's proposals in `mode`; they have no scores."""
    key = f"{mode}/proposal_boxes_normalized"
    if key not in reference:
        return None
    boxes = tf.constant(np.asarray(reference[key]) * start.canvas_box, tf.float32)
    # Padding is a box without extent, which no proposal is.
    count = tf.reduce_sum(tf.cast(tf.reduce_any(boxes != 0.0, axis=-1), tf.int32), axis=1)
    return Proposals(boxes, tf.zeros(tf.shape(boxes)[:2]), count)


def _proposals_of(
    found: Suppressed, proposals: Proposals, predictions: BoxPredictions, size_hw: tf.Tensor
) -> np.ndarray:
    """Return the row of the proposal that each detection [1, D] comes from; 0 on padding.

    It is that whose box for the detection's class is nearest, among those whose score for the class is the
    same.
    """
    scores = tf.nn.softmax(predictions.class_logits)[:, 1:].numpy()  # [P, C]
    decoded = decode(predictions.box_encodings, proposals.boxes_yxyx[0][:, tf.newaxis, :])
    decoded = np.asarray(clip_to_window(decoded, size_hw))  # [P, C or 1, 4]
    rows = np.zeros([1, found.scores.shape[1]], np.int32)
    for row in range(int(found.count[0])):
        of_class = int(found.classes[0, row])
        boxes = decoded[:, of_class if decoded.shape[1] > 1 else 0]
        distance = np.abs(boxes - found.boxes_yxyx[0, row]).max(axis=-1)
        same = scores[:, of_class] == found.scores[0, row].numpy()
        rows[0, row] = np.argmin(np.where(same, distance, np.inf))
    return rows


def _in_the_order_of(
    reference: Mapping[str, np.ndarray], ours: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Put our proposals and detections into the order of the rows of the reference that they match best."""
    ours = dict(ours)
    groups = [
        {"infer/proposal_boxes_normalized", "infer/proposal_boxes", "infer/final_anchors"},
        {"train/proposal_boxes_normalized"},
        {key for key in ours if key.startswith("infer/detections.detection_")},
    ]
    for keys in groups:
        distance: np.ndarray | float = 0.0
        for key in (key for key in keys if key in reference and key in ours):
            theirs, mine = np.asarray(reference[key])[0], ours[key][0]
            difference = np.abs(theirs[:, np.newaxis] - mine[np.newaxis]).astype(np.float64)
            if key == "infer/proposal_boxes" or key.endswith("indices"):
                continue  # the same in pixels; a number that depends on the order of others
            if key.endswith("classes"):
                difference = (difference > 0).astype(np.float64)
            distance = distance + (difference.max(axis=-1) if difference.ndim == 3 else difference)
        if isinstance(distance, np.ndarray):
            _, columns = linear_sum_assignment(distance)
            if len(columns) == distance.shape[0]:
                for key in keys & ours.keys():
                    ours[key] = ours[key][:, columns]
    return ours


def _is_row(key: str) -> bool:
    return key.endswith(("proposal_boxes", "proposal_boxes_normalized", "final_anchors")) or key.startswith(
        "infer/detections.detection_"
    )


def _compare(key: str, theirs: np.ndarray, ours: Mapping[str, np.ndarray]) -> Comparison:
    suffix = next((suffix for suffix in _SUBSAMPLED if key.endswith(suffix)), "")
    base = key.removesuffix(suffix) if suffix else key
    if base not in ours:
        return Comparison(key, theirs.shape, problem="unknown key")
    mine = _SUBSAMPLED[suffix](ours[base]) if suffix else ours[base]
    if mine.shape != theirs.shape:
        return Comparison(key, theirs.shape, problem=f"another shape: {list(mine.shape)}")
    if _is_row(base):
        return Comparison(key, theirs.shape, _differing_rows(base, mine, theirs), ROWS_THAT_MAY_DIFFER)
    if base.endswith(("num_proposals", "num_detections")):
        return Comparison(key, theirs.shape, relative_error(mine, theirs), ROWS_THAT_MAY_DIFFER)
    tolerance = GRADIENT_TOLERANCE if base.startswith("train/grad") else VALUE_TOLERANCE
    return Comparison(key, theirs.shape, relative_error(mine, theirs), tolerance)


def _differing_rows(key: str, ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the part of the rows, axis 1, that differ."""
    difference = np.abs(ours.astype(np.float64) - theirs)
    if key.endswith(("classes", "indices")):
        limit: np.ndarray | float = 0.0
    elif key.endswith("scores"):
        limit = ROW_TOLERANCE * np.abs(theirs)
    elif key.endswith("infer/proposal_boxes"):
        limit = ROW_TOLERANCE * max(theirs.max(), 1.0)
    else:
        limit = ROW_TOLERANCE
    differs = ~(difference <= limit)  # a NaN differs
    return float(differs.reshape(*differs.shape[:2], -1).any(axis=-1).mean())


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return ‖ours - theirs‖ / ‖theirs‖, in float64; where theirs is all zero, ‖ours‖."""
    difference = np.linalg.norm(np.asarray(ours, np.float64) - theirs)
    scale = np.linalg.norm(np.asarray(theirs, np.float64))
    return float(difference / scale) if scale else float(difference)


def read_reference(path: str | Path) -> dict[str, np.ndarray]:
    """Read a reference; raises FileNotFoundError, or ValueError if it is no `.npz` file or cut short."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no reference {path}")
    try:
        with np.load(path) as arrays:
            return {key: arrays[key] for key in arrays.files}
    except (ValueError, OSError, zipfile.BadZipFile, zlib.error, AttributeError) as error:
        raise ValueError(f"{path} is no .npz file or is damaged ({error})") from None


def training_settings(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `model` section of a configuration with `TRAINING_SETTINGS`."""
    return {**model, **{name: {**model.get(name, {}), **more} for name, more in TRAINING_SETTINGS.items()}}


def variable_names(model: FasterRCNN) -> dict[str, str]:
    """Return {path: the name under which a reference's keys know the variable}: that in the checkpoint.

    A TF1 graph's own names; the keys of a TF2 checkpoint, less their common ending.
    """
    return tf2_zoo.key_names(model) if architecture_of(model).topology == "keras" else api_names(model)

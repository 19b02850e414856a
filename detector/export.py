"""Export: the detector as a SavedModel that needs nothing but TensorFlow.

    saved_model/saved_model.pb  variables/     two signatures, and every variable under its path
    saved_model/assets/label_map.pbtxt         names by class id, as the Object Detection API writes them
    saved_model/assets/freeze_manifest.json    what was frozen, the proof, where the weights came from

The signatures are named after the inputs of the Object Detection API's exporters, and take and give what
those do (`exporter_lib_v2.py`; `meta_architectures/faster_rcnn_meta_arch.py`, `_postprocess_box_classifier`),
for any number of images instead of one:

    serving_default               input_tensor  uint8 [B, h, w, 3]  RGB; any size, another one with each call
    encoded_image_string_tensor   input_tensor  string [B]          JPEG, PNG, GIF or BMP; sizes may differ.
                                                                    A BMP with a palette is an error, as
                                                                    TensorFlow takes its indices for gray

    detection_boxes       float32 [B, D, 4]    ymin, xmin, ymax, xmax, parts of the image's height and width
    detection_scores      float32 [B, D]       best first
    detection_classes     float32 [B, D]       ids of the label map
    num_detections        float32 [B]
    raw_detection_boxes   float32 [B, P, 4]    each proposal's box for its likeliest class, not suppressed
    raw_detection_scores  float32 [B, P, C+1]  its probabilities: background, then the classes in the order of
                                               the manifest's `categories`

D detections and P proposals; behind the last is 0 (in `detection_classes` the first class's id, as there).
`detection_multiclass_scores` and `detection_anchor_indices` are left out: TensorFlow's batched suppression
does not tell which proposal a detection was made of, and a guess would be wrong now and then.
"""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from detector import boxes, encoded_image
from detector.box_classifier import BoxPredictions
from detector.checkpoint import CheckpointInfo
from detector.digest import digests
from detector.faster_rcnn import FasterRCNN
from detector.freeze_proof import prove
from detector.label_map import write_label_map
from detector.plain_path import require_plain
from detector.resizer import Resizer, to_canvas
from detector.rpn import Proposals
from detector.run_log import environment
from detector.whole_folder import written_whole

IMAGES_SIGNATURE = "serving_default"
ENCODED_SIGNATURE = "encoded_image_string_tensor"
LABEL_MAP = Path("assets") / "label_map.pbtxt"
MANIFEST = Path("assets") / "freeze_manifest.json"

_MANIFEST_FORMAT = 1
_LARGEST_ID = 2**24  # detection_classes is float32, which holds whole numbers exactly up to here

Serve = Callable[[tf.Tensor], dict[str, tf.Tensor]]


def export(
    model: FasterRCNN,
    resizer: Resizer,
    directory: str | Path,
    *,
    categories: Sequence[Mapping[str, Any]],
    manifest: Mapping[str, Any],
) -> Path:
    """Write `model` as a SavedModel to `directory`, which appears only when it is complete.

    Args:
        model: exported with the weights it has.
        resizer: puts images on the model's canvas, inside the graph.
        directory: an older SavedModel there is replaced.
        categories: [{"id", "name"}] in the order of the class scores; see `label_map_ids`.
        manifest: JSON values for `assets/freeze_manifest.json`; see `freeze_manifest`.

    Raises:
        ValueError: the categories are not the model's classes, or `directory` holds something else, or
            TensorFlow could not load it from there (see `detector.plain_path`).
        OSError: it cannot be written (a full disk); what was in `directory` is as it was before.
    """
    directory = require_plain(directory)
    names = [category["name"] for category in categories]
    if names != list(model.class_names):
        raise ValueError(
            f"expected the categories of the model's classes {list(model.class_names)}, got {names}"
        )
    if directory.exists() and not is_saved_model(directory):
        raise ValueError(
            f"{directory} exists and is no SavedModel, so it is not replaced; name another folder"
        )

    ids = label_map_ids(categories)
    module = tf.Module()
    # The variables, and not the model: a SavedModel of Keras layers asks for their classes when it is loaded.
    module.model_variables = model.variables_by_path
    with (
        tempfile.TemporaryDirectory() as assets,
        written_whole(directory, "the SavedModel") as folder,
    ):
        label_map, page = Path(assets) / LABEL_MAP.name, Path(assets) / MANIFEST.name
        write_label_map(label_map, dict(zip(ids, names, strict=True)))
        page.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        module.label_map = tf.saved_model.Asset(str(label_map))
        module.freeze_manifest = tf.saved_model.Asset(str(page))
        tf.saved_model.save(module, str(folder), signatures=serving_functions(model, resizer, ids))
    return directory


def is_saved_model(path: str | Path) -> bool:
    """Whether `path` is the folder of a SavedModel."""
    return (Path(path) / "saved_model.pb").is_file()


def label_map_ids(categories: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the label map's id of every class: the data set's own category id.

    A label map keeps 0 for the background, and COCO files in the wild number from 0: where an id cannot
    stand in a label map, the classes are numbered from 1 in their order instead.
    """
    ids = [int(category["id"]) for category in categories]
    if all(1 <= identifier <= _LARGEST_ID for identifier in ids):
        return ids
    return list(range(1, len(ids) + 1))


def export_settings(model: FasterRCNN) -> dict[str, Any]:
    """Return what may differ between the exports of one checkpoint: `precision` and `max_proposals`."""
    return {
        "precision": model.feature_extractor.compute_dtype,
        "max_proposals": model.rpn_settings.max_proposals,
    }


def freeze_manifest(model: FasterRCNN, info: CheckpointInfo) -> dict[str, Any]:
    """Return what `freeze_manifest.json` says of a model restored from the checkpoint that `info` is about.

    `proof` compares the frozen variables as they were before training with those that are exported, and
    `digests` has the SHA-256 of every exported variable by path.  `model` is the configuration as trained,
    `export` what holds of the exported model instead: see `export_settings`.

    Raises:
        FreezeProofError: a frozen variable moved.
    """
    variables = model.variables_by_path
    proof = prove(info.training.get("frozen_digests", {}), variables, info.step, info.provenance)
    proof.verify()
    return {
        "format": _MANIFEST_FORMAT,
        "proofs": info.training.get("proofs", []),
        "step": info.step,
        "categories": info.categories,
        "model": info.model,
        "export": export_settings(model),
        "plan": info.plan,
        "provenance": info.provenance,
        "proof": proof.to_dict(),
        "digests": digests(variables),
        "environment": environment(),
    }


def serving_functions(model: FasterRCNN, resizer: Resizer, ids: Sequence[int]) -> dict[str, Serve]:
    """Return the two signatures by name; see the top of this file.

    Args:
        model: read when they are called.
        resizer: puts images on the model's canvas, with the rounding of the input pipeline.
        ids: the label map's id of every class.
    """
    resize = to_canvas(resizer)
    canvas_spec = tf.TensorSpec([None, *resizer.canvas_hw, 3], tf.uint8)
    size_spec = tf.TensorSpec([2], tf.int32)

    # One graph for both signatures.
    @tf.function(input_signature=[canvas_spec, tf.TensorSpec([None, 2], tf.int32)], autograph=False)
    def detect(canvas: tf.Tensor, size_hw: tf.Tensor) -> dict[str, tf.Tensor]:
        proposals, predictions, found = model.infer(canvas, size_hw)
        raw_boxes_yxyx, raw_scores = _raw_detections(predictions, proposals, size_hw)
        return {
            "detection_boxes": _normalize(found.boxes_yxyx, size_hw),
            "detection_scores": found.scores,
            "detection_classes": tf.gather(tf.constant(ids, tf.float32), found.classes),
            "num_detections": tf.cast(found.count, tf.float32),
            "raw_detection_boxes": _normalize(raw_boxes_yxyx, size_hw),
            "raw_detection_scores": raw_scores,
        }

    @tf.function(
        input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, name="input_tensor")], autograph=False
    )
    def detect_images(input_tensor: tf.Tensor) -> dict[str, tf.Tensor]:
        image_spec = tf.TensorSpec(canvas_spec.shape[1:], tf.uint8)
        return detect(*tf.map_fn(resize, input_tensor, fn_output_signature=(image_spec, size_spec)))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="input_tensor")], autograph=False)
    def detect_encoded(input_tensor: tf.Tensor) -> dict[str, tf.Tensor]:
        def decode(encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            canvas, size_hw = resize(encoded_image.decode(encoded))
            return tf.reshape(canvas, [-1]), tf.shape(canvas)[:2], size_hw

        # Canvases of different sizes travel as rows of pixels until the largest is known.
        row_spec = tf.RaggedTensorSpec([None], tf.uint8, ragged_rank=0)
        pixels, shapes_hw, size_hw = tf.map_fn(
            decode, input_tensor, fn_output_signature=(row_spec, size_spec, size_spec)
        )
        largest_hw = tf.reduce_max(shapes_hw, axis=0)

        def pad(canvas: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
            row, shape_hw = canvas
            image = tf.reshape(row, tf.concat([shape_hw, [3]], axis=0))
            return tf.image.pad_to_bounding_box(image, 0, 0, largest_hw[0], largest_hw[1])

        image_spec = tf.TensorSpec([None, None, 3], tf.uint8)
        canvases = tf.map_fn(pad, (pixels, shapes_hw), fn_output_signature=image_spec)
        return detect(tf.ensure_shape(canvases, canvas_spec.shape), size_hw)

    return {IMAGES_SIGNATURE: detect_images, ENCODED_SIGNATURE: detect_encoded}


def _raw_detections(
    predictions: BoxPredictions, proposals: Proposals, size_hw: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return every proposal's box for its likeliest class, clipped [B, P, 4], and probabilities [B, P, C+1].

    Both are 0 behind an image's last proposal.
    """
    batch, per_image = tf.shape(proposals.boxes_yxyx)[0], proposals.boxes_yxyx.shape[1]
    is_proposal = proposals.is_proposal[..., tf.newaxis]
    scores = tf.nn.softmax(predictions.class_logits)
    encodings = predictions.box_encodings  # [B * P, C or 1, 4]
    if encodings.shape[1] > 1:
        encodings = tf.gather(encodings, tf.argmax(scores[:, 1:], axis=1), batch_dims=1)
    decoded = boxes.decode(tf.reshape(encodings, [batch, per_image, 4]), proposals.boxes_yxyx)
    clipped = boxes.clip_to_window(decoded, size_hw[:, tf.newaxis, :])
    scores = tf.reshape(scores, [batch, per_image, scores.shape[-1]])
    return tf.where(is_proposal, clipped, 0.0), tf.where(is_proposal, scores, 0.0)


def _normalize(boxes_yxyx: tf.Tensor, size_hw: tf.Tensor) -> tf.Tensor:
    """Return boxes [B, K, 4] of the canvas as parts of the image on it."""
    return boxes_yxyx / tf.cast(tf.tile(size_hw, [1, 2]), tf.float32)[:, tf.newaxis, :]

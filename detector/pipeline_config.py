"""The Object Detection API's `pipeline.config` for Faster R-CNN, as a configuration of this project.

Fields and defaults are those of the API's `protos/*.proto`, meanings those of the code that reads them.
Every field of a file is honoured, or noted as having no effect, or refused.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from detector import protobuf_text
from detector.pipeline_augmentation import read_augmentation
from detector.pipeline_fields import Account, Fields, Note
from detector.pipeline_model import read_model
from detector.pipeline_training import EVERY_BOX, INPUT_TUNING, NO_CLUSTER, read_freeze, read_training

_OTHER_MODEL = "this project has Faster R-CNN and no other architecture"
_BOXES_ONLY = "only boxes and classes are read here"
_PICTURES = "only about the pictures that an evaluation draws"
_WHEN = "train.evaluate_every says when to evaluate, and always on every image"

_TUNING_FIELDS = (
    *("shuffle_buffer_size", "filenames_shuffle_buffer_size", "num_readers", "num_parallel_batches"),
    *("num_prefetch_batches", "queue_capacity", "min_after_dequeue", "read_block_length"),
    *("prefetch_size", "num_parallel_map_calls", "drop_remainder"),
)
_UNREAD_FIELDS = (
    *("num_keypoints", "keypoint_type_weight", "use_keypoint_label_map", "load_keypoint_depth_features"),
    *("load_multiclass_scores", "load_context_features", "load_context_image_ids"),
    *("load_instance_masks", "mask_type", "load_dense_pose", "load_track_id", "frame_index"),
)
_PICTURE_FIELDS = (
    *("num_visualizations", "visualization_export_dir", "keep_image_id_for_visualization_export"),
    *("min_score_threshold", "max_num_boxes_to_visualize", "skip_scores", "skip_labels", "keypoint_edge"),
    *("visualize_groundtruth_boxes", "groundtruth_box_visualization_color"),
    *("retain_original_images", "retain_original_image_additional_channels"),
)

_OF_TRAINING = ("train_config", "train_input_reader")

# What published files have in place of paths.
PLACEHOLDER = "PATH_TO_BE_CONFIGURED"


class PipelineConfigError(ValueError):
    """A pipeline.config that cannot be honoured; the message lists every reason, `notes` holds them."""

    def __init__(self, message: str, notes: Sequence[Note] = ()):
        super().__init__(message)
        self.notes = tuple(notes)


@dataclass(frozen=True)
class PipelineConfig:
    """What a file amounts to.

    `values` is a nested dict for `detector.config.validate`, without the sections that the file does not
    have; `notes` is what is not honoured as it stands.
    """

    values: dict[str, Any]
    notes: tuple[Note, ...]


def read_pipeline_config(path: str | Path, training: bool = True) -> PipelineConfig:
    """Read a pipeline.config, a `model { … }` alone, or a bare `faster_rcnn { … }`.

    With `training` false, settings of `train_config` and `train_input_reader` that cannot be honoured are
    notes and no error, because nothing else depends on them, and their other notes are left out.

    Raises FileNotFoundError; PipelineConfigError for text that cannot be parsed, and one for all settings
    that cannot be honoured and would change results.
    """
    try:
        text = protobuf_text.read_text(Path(path))
    except protobuf_text.ProtobufTextError as error:
        raise PipelineConfigError(str(error)) from None
    read = parse_pipeline_config(text, str(path))
    refused = [note for note in read.notes if note.changes_results]
    if not training:
        refused = [note for note in refused if not note.field.startswith(_OF_TRAINING)]
        kept = (n for n in read.notes if n.changes_results or not n.field.startswith(_OF_TRAINING))
        read = replace(read, notes=tuple(kept))
    if refused:
        raise PipelineConfigError(
            f"{path}: cannot be honoured, and would change results ({len(refused)}); change or delete:\n"
            + format_notes(refused),
            refused,
        )
    return read


def parse_pipeline_config(text: str, source: str = "pipeline.config") -> PipelineConfig:
    """Return what `text` amounts to; `values` is incomplete where a note says that it changes results.

    `source` names the text in errors.  Raises PipelineConfigError for text that cannot be parsed.
    """
    try:
        message = protobuf_text.parse(text, source)
    except protobuf_text.ProtobufTextError as error:
        raise PipelineConfigError(str(error)) from None
    account = Account()
    values = _pipeline(account.open(message))
    account.close()
    return PipelineConfig(values, tuple(account.notes))


def format_notes(notes: Sequence[Note]) -> str:
    """Return the notes for people to read: two lines each, what the file says and what happens."""
    return "\n".join(f"  {note.field}: {note.value}\n      {note.consequence}" for note in notes)


def placeholders(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of a configuration's JSON values whose text has PLACEHOLDER in it."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from placeholders(value, f"{prefix}{name}.")
        elif any(isinstance(text, str) and PLACEHOLDER in text for text in _listed(value)):
            yield prefix + name


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [value]


def _pipeline(pipeline: Fields) -> dict[str, Any]:
    values: dict[str, Any] = {}
    model = pipeline.message("model") if pipeline.has("model") else pipeline
    is_other = model.refuse("ssd", "center_net", "experimental_model", consequence=_OTHER_MODEL)
    if model.has("faster_rcnn"):
        values["model"] = read_model(model.message("faster_rcnn"))
    elif not is_other:
        model.note("faster_rcnn", "absent", "expected a faster_rcnn { … }", changes_results=True)
    uses_averages = False
    if pipeline.has("eval_config"):
        evaluation = pipeline.message("eval_config")
        uses_averages = evaluation.boolean("use_moving_averages", False)
        values["evaluate"] = _evaluate(evaluation)
    data: dict[str, Any] = {}
    if pipeline.has("train_input_reader"):
        data["train"] = _train_source(pipeline)
    if pipeline.has("eval_input_reader"):
        data["evaluate"] = _evaluate_source(pipeline)
    if pipeline.has("train_config"):
        train = pipeline.message("train_config")
        options = train.messages("data_augmentation_options")
        data["augment"] = [transform for option in options for transform in read_augmentation(option)]
        values["train"] = read_training(train, uses_averages)
        values["freeze"] = read_freeze(train)
        if not train.boolean("add_regularization_loss", True):
            for part in ("rpn", "box_classifier"):
                values.get("model", {}).get(part, {})["l2"] = 0.0
    if data:
        values["data"] = data
    rewriter = pipeline.message("graph_rewriter")
    rewriter.refuse("quantization", consequence="this project does not quantize")
    return values


def _evaluate(fields: Fields) -> dict[str, Any]:
    fields.only("force_no_resize", False, "images are resized for evaluation as for training")
    fields.only("skip_predictions_for_unlabeled_class", False, "all detections are scored, as COCO does")
    for metric in fields.texts("metrics_set"):
        if metric != "coco_detection_metrics":
            fields.note("metrics_set", metric, "the scores are COCO's 12 numbers", changes_results=False)
    fields.ignore(
        {
            **dict.fromkeys(("num_examples", "max_evals", "eval_interval_secs", "ignore_groundtruth"), _WHEN),
            **dict.fromkeys(_PICTURE_FIELDS, _PICTURES),
            **dict.fromkeys(("eval_instance_masks", "parameterized_metric"), _BOXES_ONLY),
            **dict.fromkeys(
                ("include_metrics_per_category", "all_metrics_per_category", "super_categories"),
                "AP is always given per class",
            ),
            **dict.fromkeys(("recall_lower_bound", "recall_upper_bound"), "the scores are COCO's 12 numbers"),
            "save_graph": "no graph is written",
            "export_path": "a run always writes detections.json",
            "eval_master": NO_CLUSTER,
            "use_dummy_loss_in_eval": "evaluation computes no loss",
            "image_classes_field_map_empty_to_ones": "labels of whole images are not read",
        }
    )
    return {"batch_size": fields.integer("batch_size", 1)}


def _train_source(pipeline: Fields) -> dict[str, Any]:
    reader = pipeline.message("train_input_reader")
    reader.only("shuffle", True, "examples are always shuffled for training")
    reader.only("num_epochs", 0, "the data is read until train.steps is reached")
    return _source(reader)


def _evaluate_source(pipeline: Fields) -> dict[str, Any]:
    reader = pipeline.message("eval_input_reader")
    every = "every image is scored once, in any order"
    reader.ignore({"shuffle": every, "num_epochs": every})
    return _source(reader)


def _source(reader: Fields) -> dict[str, Any]:
    """Return the section of a reader, whatever it is read for."""
    reader.only("sample_1_of_n_examples", 1, "every example is used")
    reader.only("num_additional_channels", 0, "images have three channels here")
    reader.only("expand_labels_hierarchy", False, "classes have no hierarchy here")
    kind = reader.word("input_type", "TF_EXAMPLE", ("INPUT_DEFAULT", "TF_EXAMPLE", "TF_SEQUENCE_EXAMPLE"))
    if kind == "TF_SEQUENCE_EXAMPLE":
        reader.note("input_type", kind, "records are tf.train.Example here", changes_results=True)
    reader.refuse("sample_from_datasets_weights", consequence="all files are read as one data set")
    reader.refuse("external_input_reader", consequence="there is tf_record_input_reader only")
    reader.ignore(
        {
            **dict.fromkeys(_TUNING_FIELDS, INPUT_TUNING),
            **dict.fromkeys(_UNREAD_FIELDS, _BOXES_ONLY),
            "max_number_of_boxes": EVERY_BOX,
            "use_display_name": "a record's class texts are looked up among names and display names",
            "include_source_id": "image ids are always kept",
            "name": "a name for people",
        }
    )
    paths = reader.message("tf_record_input_reader").texts("input_path")
    if not paths:
        reader.note("tf_record_input_reader.input_path", "absent", "expected a path", changes_results=True)
    label_map = reader.text("label_map_path")
    return {"format": "tfrecord", "path": paths, **({"label_map": label_map} if label_map else {})}

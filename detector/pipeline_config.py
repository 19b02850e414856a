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

_OTHER_MODEL = "this project has Faster R-CNN and no other architecture"
_NO_CLUSTER = "one process reads and trains here; batch_size is the whole batch"
_INPUT_TUNING = "the input pipeline sets its own sizes and threads"
_BOXES_ONLY = "only boxes and classes are read here"
_NO_TPU = "takes effect on TPUs only"
_PICTURES = "only about the pictures that an evaluation draws"
_WHEN = "train.evaluate_every says when to evaluate, and always on every image"
_DETECTION = (
    "RPN and predictor start fresh, as in the API; --set train.restore.type=full restores them too, the "
    "predictor if the number of classes is the file's"
)
_EVERY_BOX = "every box of an image is used; the API drops those after so many, 100 where it is not set"

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

# An exponential staircase is written out step by step; one longer than this is no schedule to read.
_MAX_STAIRS = 1000


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
        values["train"] = _train(train, uses_averages)
        values["freeze"] = _freeze(train)
        if not train.boolean("add_regularization_loss", True):
            for part in ("rpn", "box_classifier"):
                values.get("model", {}).get(part, {})["l2"] = 0.0
    if data:
        values["data"] = data
    rewriter = pipeline.message("graph_rewriter")
    rewriter.refuse("quantization", consequence="this project does not quantize")
    return values


def _train(train: Fields, uses_averages: bool) -> dict[str, Any]:
    train.only("merge_multiple_label_boxes", False, "a box has one class here")
    train.only("use_multiclass_scores", False, "a box has one class here")
    multiplier = train.number("bias_grad_multiplier", 0.0)
    if multiplier not in (0.0, 1.0):  # 0 means unset
        train.note(
            "bias_grad_multiplier",
            multiplier,
            "gradients of biases are not scaled here; only the API's legacy/train.py did",
            changes_results=True,
        )
    train.ignore(
        {
            **dict.fromkeys(("sync_replicas", "startup_delay_steps", "replicas_to_aggregate"), _NO_CLUSTER),
            **dict.fromkeys(
                ("batch_queue_capacity", "num_batch_queue_threads", "prefetch_queue_capacity"), _INPUT_TUNING
            ),
            "keep_checkpoint_every_n_hours": "train.keep_checkpoints says how many are kept",
            "fine_tune_checkpoint_version": "the format of a checkpoint is recognised from the file",
            "run_fine_tune_checkpoint_dummy_computation": "the model is always built before it is restored",
            "max_number_of_boxes": _EVERY_BOX,
            "unpad_groundtruth_tensors": "padding never takes part in a loss",
            "retain_original_images": "only about the pictures in TensorBoard",
            "summarize_gradients": "only about what TensorBoard shows",
            "use_bfloat16": _NO_TPU,
        }
    )
    section: dict[str, Any] = {"batch_size": train.integer("batch_size", 32)}
    steps = train.integer("num_steps", 0)
    if steps:
        section["steps"] = steps
    else:
        train.note("num_steps", 0, "the API trains until it is stopped; set train.steps", False)
    section |= _optimizer(train.message("optimizer"), steps, uses_averages)
    clip_norm = train.number("gradient_clipping_by_norm", 0.0)
    section["clip_norm"] = clip_norm if clip_norm > 0 else None
    if clip_norm > 0:
        train.note(
            "gradient_clipping_by_norm",
            clip_norm,
            "the joint norm of all gradients, as in model_main.py and model_main_tf2.py; "
            "the API's legacy/train.py clipped each gradient by itself",
            changes_results=False,
        )
    restore = _restore(train)
    return section | ({"restore": restore} if restore else {})


def _restore(train: Fields) -> dict[str, Any]:
    path = train.text("fine_tune_checkpoint")
    kind = train.text("fine_tune_checkpoint_type")
    from_detection = train.boolean("from_detection_checkpoint", False)
    has_kind = bool(kind)
    if not kind:  # config_util.update_fine_tune_checkpoint_type
        kind = "detection" if from_detection else "classification"
    if train.boolean("load_all_detection_checkpoint_vars", False) and kind == "detection":
        kind = "full"
    if not path:
        return {}
    if kind not in ("classification", "detection", "full"):
        expected = "expected classification, detection or full"
        train.note("fine_tune_checkpoint_type", kind, expected, changes_results=True)
    if kind == "detection":
        field, value = (
            ("fine_tune_checkpoint_type", kind) if has_kind else ("from_detection_checkpoint", from_detection)
        )
        train.note(field, value, _DETECTION, changes_results=False, key="train.restore.type")
    return {"path": path, "type": kind}


def _optimizer(fields: Fields, steps: int, uses_averages: bool) -> dict[str, Any]:
    """Return the sections `optimizer` and `learning_rate`."""
    if uses_averages and fields.boolean("use_moving_average", True):
        fields.note("use_moving_average", True, "no averages of the weights are kept here", True)
    # The API makes them by default, and reads them in evaluation and export only where that is asked for.
    unread = "no averages are kept; without eval_config.use_moving_averages nothing reads them"
    fields.ignore({"use_moving_average": unread, "moving_average_decay": unread})
    no_rms = "there is SGD with momentum and AdamW, and no RMSProp"
    is_other = fields.refuse("rms_prop_optimizer", consequence=no_rms)
    chosen = fields.one_of("momentum_optimizer", "adam_optimizer")
    if chosen is None:
        if not is_other:
            fields.note("momentum_optimizer", "absent", "expected an optimizer", changes_results=True)
        return {}
    optimizer = fields.message(chosen)
    learning_rate = _learning_rate(optimizer.message("learning_rate"), steps)
    if chosen == "momentum_optimizer":
        section = {"kind": "sgd", "momentum": optimizer.number("momentum_optimizer_value", 0.9)}
    else:  # without decay AdamW is Adam; the other values are those of tf.train.AdamOptimizer
        epsilon = optimizer.number("epsilon", 1e-8)
        section = {"kind": "adamw", "beta_1": 0.9, "beta_2": 0.999, "epsilon": epsilon, "weight_decay": 0.0}
    return {"optimizer": section, "learning_rate": learning_rate}


def _learning_rate(fields: Fields, steps: int) -> dict[str, Any]:
    chosen = fields.one_of(*_SCHEDULES)
    if chosen is None:
        fields.note("constant_learning_rate", "absent", "expected a learning rate", changes_results=True)
        return {}
    return _SCHEDULES[chosen](fields.message(chosen), steps)


def _constant(fields: Fields, steps: int) -> dict[str, Any]:
    return {"schedule": "constant", "base": fields.number("learning_rate", 0.002)}


def _cosine(fields: Fields, steps: int) -> dict[str, Any]:
    fields.only("hold_base_rate_steps", 0, "the cosine begins right after the warmup here")
    return {
        "schedule": "cosine",
        "base": fields.number("learning_rate_base", 0.002),
        "warmup_steps": fields.integer("warmup_steps", 10000),
        "warmup_start": fields.number("warmup_learning_rate", 0.0002),
        "total_steps": fields.integer("total_steps", 4000000),
    }


def _manual_steps(fields: Fields, steps: int) -> dict[str, Any]:
    initial = fields.number("initial_learning_rate", 0.002)
    entries = fields.messages("schedule")
    schedule = [(entry.integer("step", 0), entry.number("learning_rate", 0.002)) for entry in entries]
    if not schedule:
        fields.note("schedule", "absent", "expected at least one step", changes_results=True)
    if fields.boolean("warmup", False) and schedule:
        # The rate goes in a line from the initial one to the first of the schedule, and is there at its step.
        (warmup_steps, base), *rest = schedule
        return _steps(base, rest) | {"warmup_steps": warmup_steps, "warmup_start": initial}
    return _steps(initial, schedule)


def _exponential(fields: Fields, steps: int) -> dict[str, Any]:
    """Write the API's staircase out: base · factor^k from step burnin + k · decay_steps on."""
    base = fields.number("initial_learning_rate", 0.002)
    decay_steps = fields.integer("decay_steps", 4000000)
    factor = fields.number("decay_factor", 0.95)
    is_staircase = fields.boolean("staircase", True)
    burnin_rate = fields.number("burnin_learning_rate", 0.0) or base
    burnin_steps = fields.integer("burnin_steps", 0)
    least = fields.number("min_learning_rate", 0.0)
    if not is_staircase:
        fields.note("staircase", False, "learning rates decay in steps here", changes_results=True)
        return {}
    if not steps or decay_steps < 1 or (steps - burnin_steps) // decay_steps > _MAX_STAIRS:
        expected = f"expected train_config.num_steps, and at most {_MAX_STAIRS} steps of decay before it"
        fields.note("decay_steps", decay_steps, expected, changes_results=True)
        return {}
    stairs = [
        (step, max(base * factor**k, least)) for k, step in enumerate(range(burnin_steps, steps, decay_steps))
    ]
    return _steps(max(burnin_rate, least), stairs)


_SCHEDULES = {
    "constant_learning_rate": _constant,
    "exponential_decay_learning_rate": _exponential,
    "manual_step_learning_rate": _manual_steps,
    "cosine_decay_learning_rate": _cosine,
}


def _steps(base: float, schedule: Sequence[tuple[int, float]]) -> dict[str, Any]:
    """Return a schedule of (step, rate from it on) after `base`."""
    if schedule and schedule[0][0] == 0:  # so that `base` is a rate that the run has
        (_, base), *schedule = schedule
    if not schedule:
        return {"schedule": "constant", "base": base}
    return {
        "schedule": "step",
        "base": base,
        "boundaries": [step for step, _ in schedule],
        "values": [rate for _, rate in schedule],
    }


def _freeze(train: Fields) -> dict[str, Any]:
    """Return the section; the patterns are searched for in the API's variable names, as in `model_lib.py`."""
    misnamed = train.texts("freeze_vars")
    if misnamed:
        train.note("freeze_vars", misnamed, "read as freeze_variables, which is the field's name", False)
    frozen = train.texts("freeze_variables") + misnamed
    trained = train.texts("update_trainable_variables")
    for name, patterns, key in (
        ("freeze_variables", frozen, "freeze.freeze"),
        ("update_trainable_variables", trained, "freeze.train_only"),
    ):
        if patterns:
            honoured = "honoured; the API's own TF2 trainer (model_main_tf2.py) ignores it"
            train.note(name, patterns, honoured, changes_results=False, key=key)
    return {
        "freeze": [f"api:{pattern}" for pattern in frozen],
        "train_only": [f"api:{pattern}" for pattern in trained],
    }


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
            "eval_master": _NO_CLUSTER,
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
            **dict.fromkeys(_TUNING_FIELDS, _INPUT_TUNING),
            **dict.fromkeys(_UNREAD_FIELDS, _BOXES_ONLY),
            "max_number_of_boxes": _EVERY_BOX,
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

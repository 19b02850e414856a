"""The `train_config` of a `pipeline.config`: what is restored and frozen, optimizer and learning rate."""

from collections.abc import Sequence
from typing import Any

from detector.pipeline_fields import Fields

# What is said of evaluation and of input readers, too.
NO_CLUSTER = "one process reads and trains here; batch_size is the whole batch"
INPUT_TUNING = "the input pipeline sets its own sizes and threads"
EVERY_BOX = "every box of an image is used; the API drops those after so many, 100 where it is not set"

_NO_TPU = "takes effect on TPUs only"
_DETECTION = (
    "RPN and predictor start fresh, as in the API; --set train.restore.type=full restores them too, the "
    "predictor if the number of classes is the file's"
)
# An exponential staircase is written out step by step; one longer than this is no schedule to read.
_MAX_STAIRS = 1000


def read_training(train: Fields, uses_averages: bool) -> dict[str, Any]:
    """Return the section `train` but for the augmentation.

    `uses_averages`: whether evaluation and export read moving averages of the weights.
    """
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
            **dict.fromkeys(("sync_replicas", "startup_delay_steps", "replicas_to_aggregate"), NO_CLUSTER),
            **dict.fromkeys(
                ("batch_queue_capacity", "num_batch_queue_threads", "prefetch_queue_capacity"), INPUT_TUNING
            ),
            "keep_checkpoint_every_n_hours": "train.keep_checkpoints says how many are kept",
            "fine_tune_checkpoint_version": "the format of a checkpoint is recognised from the file",
            "run_fine_tune_checkpoint_dummy_computation": "the model is always built before it is restored",
            "max_number_of_boxes": EVERY_BOX,
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


def read_freeze(train: Fields) -> dict[str, Any]:
    """Return the section `freeze`.

    The patterns are searched for in the API's variable names, as in `model_lib.py`.
    """
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

"""Training: one plain loop around one step.

An example's way ends here: batch -> named losses -> gradients of what the plan trains -> clip -> apply.
Every random choice is keyed by (seed, step), so a run that was killed and resumed ends with the same bits.
"""

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import tensorflow as tf

from detector import checkpoint
from detector.checkpoint import CheckpointError, CheckpointInfo
from detector.coco_metrics import CocoScores
from detector.config import Config
from detector.digest import digests
from detector.faster_rcnn import FasterRCNN
from detector.feature_cache import CacheStopped, FeatureCache
from detector.freeze import FreezePlan
from detector.freeze_proof import FreezeProof, prove
from detector.freeze_schedule import FreezeSchedule, lr_factors_of
from detector.optimizer import GroupedOptimizer
from detector.progress import Progress
from detector.recomputation import recompute
from detector.run_log import RunLog
from detector.schedule import learning_rate_schedule
from detector.selectors import select_each

Batch = Mapping[str, tf.Tensor]
Step = Callable[[Batch, tf.Tensor, tf.Tensor], dict[str, tf.Tensor]]
NamedLosses = Callable[[Batch, tf.Tensor], dict[str, tf.Tensor]]


class NonFiniteLossError(RuntimeError):
    """A loss became infinite or not a number; the message names the step, every loss and the images."""


class Interrupted(RuntimeError):  # noqa: N818 - it is no error: the run is saved and can go on
    """A signal came, SIGTERM or Ctrl-C's SIGINT; the step was finished and saved first."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number


@dataclass(frozen=True)
class Progression:
    """Where a run stands: what a checkpoint must hold besides variables, so that the run can go on.

    `stage` is the freeze stage the run is in, None before the first; `frozen_digests` are those of what is
    frozen in it, from its start; `proofs` those of the stages before, `FreezeProof.to_dict` each.
    """

    step: int = 0
    best_ap: float | None = None
    best_step: int | None = None
    evaluations_since_best: int = 0
    stage: int | None = None
    frozen_digests: dict[str, str] = field(default_factory=dict)
    proofs: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, info: CheckpointInfo, path: Path) -> "Progression":
        """Return what the page of the checkpoint at `path` says; raises `CheckpointError` if it cannot."""
        try:
            return cls(**info.training)
        except TypeError:
            raise CheckpointError(
                f"{path / 'checkpoint.json'}: its `training` is not that of this version: expected the keys "
                f"{', '.join(key.name for key in fields(cls))}, got {', '.join(info.training) or 'none'}; "
                f"start a new run with train.restore.path={path}"
            ) from None


@dataclass(frozen=True)
class FitResult:
    """How a run ended: its last step, the scores of its evaluations by step, and the proof of its freeze.

    `proof` is that of the last freeze stage.
    """

    step: int
    scores: dict[int, CocoScores]
    proof: FreezeProof
    stopped_early: bool


def make_step(
    model: FasterRCNN,
    trained: Mapping[str, tf.Variable],
    optimizer: GroupedOptimizer,
    *,
    clip_norm: float | None,
    l2: Mapping[str, float] | None = None,
    named_losses: NamedLosses | None = None,
) -> Step:
    """Return the training step, a `tf.function` of (batch, seed, learning rate).

    The step takes a batch of the design's section 4, `seed` int32 [2] (run seed and step) and the learning
    rate, a float32 scalar.  It moves the trained variables and the BatchNorm statistics that the plan
    leaves free, and returns the named losses, their sum `loss` and the gradients' joint norm, scalars.

    Args:
        model: with its freeze plan applied.
        trained: {path: variable} of what gets gradients, and nothing else does.
        optimizer: with slots for `trained` at least.
        clip_norm: the largest joint norm of the gradients; None for no limit.
        l2: {path prefix: weight} of the L2 loss on trained kernels under the prefix.
        named_losses: from (batch, seed) to the losses; None takes `model.named_losses`.
    """
    named_losses = named_losses or model.named_losses
    regularized = [
        (weight, variable)
        for prefix, weight in (l2 or {}).items()
        if weight
        for path, variable in trained.items()
        if path.startswith(prefix + "/") and path.endswith("/kernel")
    ]
    variables = list(trained.values())

    @tf.function(reduce_retracing=True, autograph=False)
    def step(batch: Batch, seed: tf.Tensor, learning_rate: tf.Tensor) -> dict[str, tf.Tensor]:
        # Only what trains is watched: nothing before the first trained variable is differentiated.
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            losses = named_losses(batch, seed)
            if regularized:
                # slim's and TensorFlow's L2 loss: half the sum of squares.
                losses["l2"] = tf.add_n(
                    [weight * tf.nn.l2_loss(variable) for weight, variable in regularized]
                )
            loss = tf.add_n(list(losses.values()))
        gradients = tape.gradient(loss, variables)
        _require_gradients(trained, gradients)
        norm = tf.linalg.global_norm(gradients)
        # As `tf.clip_by_global_norm`, whose factor the optimizer can apply to more than one gradient at once.
        scale = 1.0 if clip_norm is None else clip_norm * tf.minimum(1.0 / norm, 1.0 / clip_norm)
        optimizer.apply(dict(zip(trained, gradients, strict=True)), learning_rate, scale)
        return {**losses, "loss": loss, "gradient_norm": norm}

    return step


def check_settings(config: Config, schedule: FreezeSchedule, is_evaluated: bool) -> None:
    """Raise what `fit` would raise about the settings of a run, before anything is computed or written.

    Args:
        config: of the run.
        schedule: of its freezes.
        is_evaluated: whether there is something to evaluate on.

    Raises:
        ValueError: a learning rate cannot be, a selector matches nothing, or there is `patience` and nothing
            that it could wait for; the message names the setting.
    """
    if config.train.patience is not None and not (is_evaluated and config.train.evaluate_every):
        raise ValueError(
            f"train.patience {config.train.patience} counts evaluations during training, and there are none: "
            "set train.evaluate_every and data.evaluate, or leave patience out"
        )
    learning_rate_schedule(config.train.learning_rate, config.train.steps)
    lr_factors_of(config.train.lr_factors, schedule)
    select_each(config.train.recompute, schedule.stages[0].plan.rows, "train.recompute")


def fit(
    model: FasterRCNN,
    plan: FreezePlan | FreezeSchedule,
    batches: Iterable[Batch] | Callable[[int], Iterable[Batch]],
    config: Config,
    *,
    cache: FeatureCache | None = None,
    run: RunLog | None = None,
    evaluate: Callable[[FreezePlan], CocoScores] | None = None,
    categories: list[dict[str, Any]] | None = None,
    provenance: dict[str, Any] | None = None,
    resume_from: CheckpointInfo | None = None,
    show_progress: bool = False,
) -> FitResult:
    """Train what the plan trains.

    With `train.deterministic` TensorFlow's deterministic operations are switched on, for the whole process.

    Args:
        model: with its starting weights.
        plan: of this model, or a schedule of several; applied here.
        batches: element k is the batch of step k, counted from `resume_from.step` (or 0); any `tf.data` set
            of the design's section 4 will do.  Or a function from a step to such batches from there on.
        config: its `train` section, and the L2 weights of its model.
        cache: trains from kept features in every freeze stage that leaves a prefix of the model as it is;
            `batches` must be a function then.
        run: where metrics and checkpoints go; None keeps nothing.
        evaluate: scores the model as it stands, given the plan of the freeze stage; called every
            `train.evaluate_every` steps and at the end.
        categories: [{"id", "name"}] of the data set, for the checkpoints; numbered from 1 where left out.
        provenance: per component where its weights came from, for the checkpoints.
        resume_from: the page of the run's last checkpoint, to go on from there; `run` must hold it.
        show_progress: draw a progress bar; plain lines otherwise.

    Raises:
        NonFiniteLossError: a loss is not finite; the last checkpoint is untouched.
        FreezeProofError: a frozen variable moved.
        Interrupted: the run was asked to stop, and is saved.
        TypeError: there is a cache, and `batches` is not a function.
        ValueError: `batches` ended before the last step, a selector of `lr_factors` or `recompute` matches
            nothing, or there is `patience` and nothing that it could wait for.
    """
    settings = config.train
    if cache is not None and not callable(batches):
        raise TypeError(
            "a run with a feature cache may need its batches from any step on: "
            f"expected a function from a step to batches, got {type(batches).__name__}"
        )
    if settings.deterministic:
        tf.config.experimental.enable_op_determinism()
    schedule = plan if isinstance(plan, FreezeSchedule) else FreezeSchedule.of(plan)
    check_settings(config, schedule, is_evaluated=evaluate is not None)
    categories = categories or [{"id": i + 1, "name": name} for i, name in enumerate(model.class_names)]
    provenance = provenance or {}
    variables = model.variables_by_path
    trained_in = schedule.trained
    optimizer = GroupedOptimizer(
        settings.optimizer,
        {path: variables[path] for path in trained_in},
        moves_with=trained_in,
        lr_factors=lr_factors_of(settings.lr_factors, schedule),
    )
    recompute(model.components, schedule.stages[0].plan.rows, settings.recompute)
    at = Progression()
    if resume_from is not None:
        assert run is not None and run.last is not None
        checkpoint.restore(run.last, variables, optimizer.state)
        at = Progression.of(resume_from, run.last)
        run.forget_after(at.step)
    rate = learning_rate_schedule(settings.learning_rate, settings.steps)
    scores: dict[int, CocoScores] = {}

    def frozen_in(stage: int) -> dict[str, tf.Variable]:
        return {path: variables[path] for path in schedule.stages[stage].plan.frozen}

    uncached: Iterator[Batch] | None = None

    def begin(stage: int) -> tuple[Step, Iterator[Batch]]:
        """Return the step of a freeze stage, to be traced, and its batches from the present step on."""
        nonlocal uncached
        plan = schedule.stages[stage].plan
        plan.apply(model.components)
        kept = cache.open(model, plan, progress.note, is_stopped) if cache is not None else None
        if kept is not None:
            uncached, source = None, iter(kept.batches(settings.batch_size, at.step))
        else:
            source = uncached or iter(batches(at.step) if callable(batches) else batches)
            uncached = source
        step = make_step(
            model,
            {path: variables[path] for path in plan.trained},
            optimizer,
            clip_norm=settings.clip_norm,
            l2={"rpn": config.model.rpn.l2, "box_classifier/predictor": config.model.box_classifier.l2},
            named_losses=kept.named_losses if kept is not None else None,
        )
        return step, source

    def prove_stage() -> FreezeProof:
        """Prove the present freeze stage; what is proved is written before a failure is raised."""
        assert at.stage is not None
        proof = prove(at.frozen_digests, frozen_in(at.stage), at.step, provenance)
        if run is not None:
            stages = [*at.proofs, proof.to_dict()]
            held = all(stage["holds"] for stage in stages)
            run.write_json("freeze_proof.json", {"holds": held, "stages": stages})
        proof.verify()
        return proof

    def save() -> None:
        if run is None:
            return
        assert at.stage is not None
        info = CheckpointInfo(
            step=at.step,
            categories=categories,
            model=config.model.model_dump(mode="json"),
            plan=schedule.stages[at.stage].plan.to_dict(),
            provenance=provenance,
            training=asdict(at),
        )
        path = checkpoint.save(run.checkpoint_path(at.step), info, variables, optimizer.state)
        if at.best_step == at.step:
            run.point("best", path)
        run.point("last", path)
        run.keep_newest(settings.keep_checkpoints)

    def is_stopped() -> bool:
        return bool(stop_requests)

    def interrupted() -> Interrupted:
        return Interrupted(f"stopped at step {at.step} of {settings.steps}", stop_requests[0])

    def is_out_of_patience() -> bool:
        return settings.patience is not None and at.evaluations_since_best >= settings.patience

    stopped_early = is_out_of_patience()  # a run that ended so, and is resumed, stays where it ended
    step: Step | None = None
    with (
        Progress(at.step, settings.steps, settings.batch_size, settings.log_every, show_progress) as progress,
        _stop_requests(progress.note) as stop_requests,
    ):
        while at.step < settings.steps and not stopped_early:
            stage = schedule.index_at(at.step)
            if stage != at.stage:
                if at.stage is not None:
                    proof = prove_stage()
                    at = replace(at, proofs=[*at.proofs, proof.to_dict()])
                    progress.note(proof.summary())
                    progress.note(f"step {at.step}: freeze stage {stage + 1} of {len(schedule.stages)}")
                at = replace(at, stage=stage, frozen_digests=digests(frozen_in(stage)))
                step = None
            if step is None:
                try:
                    step, source = begin(stage)
                except CacheStopped:
                    save()
                    raise interrupted() from None
                if run is not None:
                    run.note(at.step, "freeze_plan", schedule.describe(stage))

            began = time.perf_counter()
            batch = _next_batch(source, at.step)
            waited = time.perf_counter() - began
            learning_rate = rate(at.step) * schedule.stages[stage].rate_factor(at.step)
            losses = step(
                batch,
                tf.constant([settings.seed, at.step], tf.int32),
                tf.constant(learning_rate, tf.float32),
            )
            values = {name: float(value) for name, value in losses.items()}
            _require_finite(values, at.step, batch)
            at = replace(at, step=at.step + 1)
            progress.advance(at.step, values, waited)
            if run is not None and (at.step % settings.log_every == 0 or at.step == settings.steps):
                run.metrics(
                    at.step,
                    {**values, "learning_rate": learning_rate, "freeze_stage": stage, **progress.rates()},
                )

            is_last = at.step == settings.steps
            if evaluate is not None and (
                is_last or (settings.evaluate_every and at.step % settings.evaluate_every == 0)
            ):
                scores[at.step] = evaluate(schedule.stages[stage].plan)
                at = _note_score(at, scores[at.step])
                progress.note(f"step {at.step}: AP {_shown(scores[at.step].AP)}, best {_shown(at.best_ap)}")
                if run is not None:
                    run.metrics(at.step, {f"evaluation/{k}": v for k, v in scores[at.step].numbers().items()})
                stopped_early = is_out_of_patience()
            is_due = at.step % settings.checkpoint_every == 0 or at.best_step == at.step
            if is_last or stopped_early or is_stopped() or is_due:
                save()
            if is_stopped() and not is_last:
                raise interrupted()

    return FitResult(at.step, scores, prove_stage(), stopped_early)


def _note_score(at: Progression, scores: CocoScores) -> Progression:
    ap = scores.AP or 0.0
    if at.best_ap is None or ap > at.best_ap:
        return replace(at, best_ap=ap, best_step=at.step, evaluations_since_best=0)
    return replace(at, evaluations_since_best=at.evaluations_since_best + 1)


def _next_batch(source: Iterator[Batch], step: int) -> Batch:
    try:
        return next(source)
    except StopIteration:
        raise ValueError(
            f"the batches ended before step {step}; repeat the data set, or ask for fewer train.steps"
        ) from None


def _require_gradients(trained: Mapping[str, tf.Variable], gradients: list[tf.Tensor | None]) -> None:
    missing = [path for path, gradient in zip(trained, gradients, strict=True) if gradient is None]
    if missing:
        raise ValueError(
            f"no gradient reaches {len(missing)} variables that the plan trains, first {missing[0]}: "
            "no loss depends on them"
        )


def _require_finite(values: Mapping[str, float], step: int, batch: Batch) -> None:
    if all(math.isfinite(value) for value in values.values()):
        return
    named = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    images = batch["image_id"].numpy().tolist() if "image_id" in batch else "unknown"
    raise NonFiniteLossError(
        f"step {step}: a loss is not finite ({named}); images {images}. "
        "The last checkpoint is untouched; a lower learning rate, a longer warmup or a smaller clip_norm "
        "may help"
    )


def _shown(ap: float | None) -> str:
    return "–" if ap is None else f"{ap:.3f}"


@contextmanager
def _stop_requests(note: Callable[[str], None]) -> Iterator[Sequence[int]]:
    """Within it, SIGTERM and Ctrl-C do not end the process but are listed in what it yields."""
    requested: list[int] = []

    def request(number: int, frame: Any) -> None:
        if not requested:
            note("stopping: what is under way is finished and saved first")
        requested.append(number)

    try:
        previous = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not in the main thread, where signals do not arrive
        previous = {}
    try:
        yield requested
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

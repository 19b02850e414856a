"""Training: one plain loop around one step.

An example's way ends here: batch -> named losses -> gradients of what the plan trains -> clip -> apply.
Every random choice is keyed by (seed, step), so that on a CPU a run that was killed and resumed ends with the
same bits.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import tensorflow as tf

from detector import checkpoint
from detector.checkpoint import CheckpointInfo
from detector.coco_metrics import CocoScores
from detector.config import Config
from detector.determinism import enable_determinism
from detector.digest import digests
from detector.faster_rcnn import FasterRCNN
from detector.feature_cache import CachedFeatures, FeatureCache
from detector.freeze import FreezePlan
from detector.freeze_proof import FreezeProof, prove
from detector.freeze_schedule import FreezeSchedule, lr_factors_of
from detector.optimizer import GroupedOptimizer
from detector.progress import Progress
from detector.progression import Progression
from detector.recomputation import recompute
from detector.run_log import RunLog
from detector.schedule import learning_rate_schedule
from detector.selectors import select_each
from detector.stop_requests import Stopped, stop_requests
from detector.training_step import Batch, Step, make_step

Evaluate = Callable[[FreezePlan, Callable[[], bool]], CocoScores]
"""Scores the model as it stands, given the plan of the freeze stage; raises `Stopped` soon after the function
that it is given, which it asks now and then, returns true."""


class NonFiniteLossError(RuntimeError):
    """A loss became infinite or not a number; the message names the step, every loss and the images."""


class Interrupted(RuntimeError):  # noqa: N818 - it is no error: the run is saved and can go on
    """SIGTERM, SIGINT or SIGHUP came; the step was finished and saved, an evaluation given up."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number


@dataclass(frozen=True)
class FitResult:
    """How a run ended: its last step, the scores of its evaluations by step, and the proof of its freeze.

    `proof` is that of the last freeze stage.
    """

    step: int
    scores: dict[int, CocoScores]
    proof: FreezeProof
    stopped_early: bool


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
    evaluate: Evaluate | None = None,
    categories: list[dict[str, Any]] | None = None,
    provenance: dict[str, Any] | None = None,
    resume_from: CheckpointInfo | None = None,
    show_progress: bool = False,
) -> FitResult:
    """Train what the plan trains.

    With `train.deterministic` TensorFlow's deterministic operations are switched on, for the whole process;
    on a GPU, which lacks some, a line says that they are off.

    Args:
        model: with its starting weights.
        plan: of this model, or a schedule of several; applied here.
        batches: element k is the batch of step k, counted from `resume_from.step` (or 0); any `tf.data` set
            of the design's section 4 will do.  Or a function from a step to such batches from there on.
        config: its `train` section, and the L2 weights of its model.
        cache: trains from kept features in every freeze stage that leaves a prefix of the model as it is;
            `batches` must be a function then.
        run: where metrics and checkpoints go; None keeps nothing.
        evaluate: called before the first step with `train.evaluate_at_start`, every `train.evaluate_every`
            steps and at the end; see `Evaluate` and `detector.evaluate.Evaluator`.
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
    not_deterministic = enable_determinism() if settings.deterministic else None
    schedule = plan if isinstance(plan, FreezeSchedule) else FreezeSchedule.of(plan)
    check_settings(config, schedule, is_evaluated=evaluate is not None)
    variables = model.variables_by_path
    optimizer = GroupedOptimizer(
        settings.optimizer,
        {path: variables[path] for path in schedule.trained},
        moves_with=schedule.trained,
        lr_factors=lr_factors_of(settings.lr_factors, schedule),
    )
    recompute(model.components, schedule.stages[0].plan.rows, settings.recompute)
    at = Progression()
    if resume_from is not None:
        assert run is not None and run.last is not None
        checkpoint.restore(run.last, variables, optimizer.state)
        at = Progression.of(resume_from, run.last)
        run.forget_after(at.step, is_evaluated=at.evaluated_step == at.step)
    with (
        Progress(at.step, settings.steps, settings.batch_size, settings.log_every, show_progress) as progress,
        stop_requests(progress.note) as requested,
    ):
        if not_deterministic is not None:
            progress.note(not_deterministic)
        training = _Training(
            model=model,
            schedule=schedule,
            source=batches,
            config=config,
            cache=cache,
            run=run,
            evaluate=evaluate,
            categories=categories or _numbered(model.class_names),
            provenance=provenance or {},
            optimizer=optimizer,
            progress=progress,
            stop_requests=requested,
            at=at,
        )
        try:
            training.go_on()
        finally:
            training.let_go()
    return FitResult(
        training.at.step,
        training.scores,
        training.prove_stage(),
        stopped_early=training.at.step < settings.steps,
    )


@dataclass
class _Training:
    """A run under way.  The fields up to `provenance` are `fit`'s arguments; `at` is where it stands."""

    model: FasterRCNN
    schedule: FreezeSchedule
    source: Iterable[Batch] | Callable[[int], Iterable[Batch]]
    config: Config
    cache: FeatureCache | None
    run: RunLog | None
    evaluate: Evaluate | None
    categories: list[dict[str, Any]]
    provenance: dict[str, Any]
    optimizer: GroupedOptimizer
    progress: Progress
    stop_requests: Sequence[int]
    at: Progression
    scores: dict[int, CocoScores] = field(default_factory=dict)

    def __post_init__(self) -> None:
        settings = self.config.train
        self._variables = self.model.variables_by_path
        self._rate = learning_rate_schedule(settings.learning_rate, settings.steps)
        self._saved: Progression | None = None  # where the run stood when it was last saved
        self._step: Step | None = None
        self._batches: Iterator[Batch] = iter(())
        self._uncached: Iterator[Batch] | None = None  # goes on over stages; kept features have their own
        self._kept: CachedFeatures | None = None

    def go_on(self) -> None:
        """Take steps up to the last one, or until patience ends, and evaluate between them.

        A resumed run first makes the evaluation that it was cut off in.  One that patience ended stays where
        it ended.
        """
        settings = self.config.train
        if self.at.stage is None:
            self._enter(0)
        while not self._is_over():
            if self.stop_requests:
                raise self._interrupted()
            if self._owes_evaluation():
                is_trained = self.at.step > 0
                if is_trained:
                    self._save()  # first: an evaluation may take long, and the run be killed in it
                self._score()
                if is_trained:
                    self._save()
                continue
            stage = self.schedule.index_at(self.at.step)
            if stage != self.at.stage:
                self._enter(stage)
            if self._step is None:
                self._begin()
            self._take_step()
            if self.at.step == settings.steps or _is_due(settings.checkpoint_every, self.at.step):
                self._save()
        if self.at.step < settings.steps:
            self.progress.note(
                f"stopped early at step {self.at.step}: {self.at.evaluations_since_best} evaluations without "
                "a better AP"
            )

    def let_go(self) -> None:
        """Let go of the freeze stage's kept features, so that others may take their room."""
        if self._kept is not None:
            self._batches = iter(())  # which reads them ahead
            self._kept.close()
            self._kept = None

    def prove_stage(self) -> FreezeProof:
        """Prove the present freeze stage; what is proved is written before a failure is raised."""
        assert self.at.stage is not None
        frozen = self._frozen_in(self.at.stage)
        proof = prove(self.at.frozen_digests, frozen, self.at.step, self.provenance)
        if self.run is not None:
            stages = [*self.at.proofs, proof.to_dict()]
            held = all(stage["holds"] for stage in stages)
            self.run.write_json("freeze_proof.json", {"holds": held, "stages": stages})
        proof.verify()
        return proof

    def _owes_evaluation(self) -> bool:
        """Whether an evaluation is due at the step that is reached, and not made yet."""
        settings, step = self.config.train, self.at.step
        if self.evaluate is None or self.at.evaluated_step == step:
            return False
        if step == 0:
            return settings.evaluate_at_start
        return step == settings.steps or _is_due(settings.evaluate_every, step)

    def _is_over(self) -> bool:
        is_at_end = self.at.step == self.config.train.steps or self._is_out_of_patience()
        return is_at_end and not self._owes_evaluation()

    def _is_out_of_patience(self) -> bool:
        """Whether `train.patience` has ended, or would have ended, the run.

        Only in its last freeze stage: where an earlier one gets no further, the next one is what helps.
        """
        patience, last_stage = self.config.train.patience, len(self.schedule.stages) - 1
        return (
            patience is not None
            and self.at.stage == last_stage
            and self.at.evaluations_since_best >= patience
        )

    def _plan(self) -> FreezePlan:
        assert self.at.stage is not None
        return self.schedule.stages[self.at.stage].plan

    def _frozen_in(self, stage: int) -> dict[str, tf.Variable]:
        return {path: self._variables[path] for path in self.schedule.stages[stage].plan.frozen}

    def _enter(self, stage: int) -> None:
        """Prove the freeze stage that ends here, and note what is frozen in the next one."""
        if self.at.stage is not None:
            proof = self.prove_stage()
            self.at = replace(self.at, proofs=[*self.at.proofs, proof.to_dict()])
            self.progress.note(proof.summary())
            self.progress.note(
                f"step {self.at.step}: freeze stage {stage + 1} of {len(self.schedule.stages)}"
            )
        self.at = replace(
            self.at, stage=stage, frozen_digests=digests(self._frozen_in(stage)), evaluations_since_best=0
        )
        self._step = None

    def _begin(self) -> None:
        """Make the step of the freeze stage, to be traced, and its batches from the present step on."""
        settings, plan = self.config.train, self._plan()
        plan.apply(self.model.components)
        self.let_go()
        if self.cache is not None:
            try:
                self._kept = self.cache.open(self.model, plan, self.progress.note, self._is_stopped)
            except Stopped:
                raise self._interrupted() from None
        if self._kept is not None:
            self._uncached, self._batches = None, iter(self._kept.batches(settings.batch_size, self.at.step))
        else:
            self._uncached = self._uncached or self._iterate_source()
            self._batches = self._uncached
        self.progress.show("tracing the graph")
        self._step = make_step(
            self.model,
            {path: self._variables[path] for path in plan.trained},
            self.optimizer,
            clip_norm=settings.clip_norm,
            l2={
                "rpn": self.config.model.rpn.l2,
                "box_classifier/predictor": self.config.model.box_classifier.l2,
            },
            named_losses=self._kept.named_losses if self._kept is not None else None,
        )
        if self.run is not None:
            assert self.at.stage is not None
            self.run.note(self.at.step, "freeze_plan", self.schedule.describe(self.at.stage))

    def _iterate_source(self) -> Iterator[Batch]:
        return iter(self.source(self.at.step) if callable(self.source) else self.source)

    def _take_step(self) -> None:
        assert self._step is not None and self.at.stage is not None
        settings = self.config.train
        began = time.perf_counter()
        batch = _next_batch(self._batches, self.at.step)
        waited = time.perf_counter() - began
        stage = self.schedule.stages[self.at.stage]
        learning_rate = self._rate(self.at.step) * stage.rate_factor(self.at.step)
        losses = self._step(
            batch,
            tf.constant([settings.seed, self.at.step], tf.int32),
            tf.constant(learning_rate, tf.float32),
        )
        values = {name: float(value) for name, value in losses.items()}
        _require_finite(values, self.at.step, batch)
        self.at = replace(self.at, step=self.at.step + 1)
        self.progress.advance(self.at.step, values, waited)
        if self.run is not None and (
            self.at.step == settings.steps or _is_due(settings.log_every, self.at.step)
        ):
            shown = {"learning_rate": learning_rate, "freeze_stage": self.at.stage, **self.progress.rates()}
            self.run.metrics(self.at.step, {**values, **shown})

    def _score(self) -> None:
        assert self.evaluate is not None
        self.progress.show("evaluating")
        try:
            scores = self.evaluate(self._plan(), self._is_stopped)
        except Stopped:
            raise self._interrupted() from None
        self.scores[self.at.step] = scores
        self.at = self.at.scored(scores.AP)
        if self.at.step == 0:
            self.progress.note(f"AP before training: {_shown(scores.AP)}")
        else:
            self.progress.note(f"step {self.at.step}: AP {_shown(scores.AP)}, best {_shown(self.at.best_ap)}")
        if self.run is not None:
            self.run.metrics(
                self.at.step, {f"evaluation/{name}": value for name, value in scores.numbers().items()}
            )

    def _save(self) -> None:
        """Save where the run stands, unless that is saved already."""
        if self.run is None or self._saved == self.at:
            return
        info = CheckpointInfo(
            step=self.at.step,
            categories=self.categories,
            model=self.config.model.model_dump(mode="json"),
            plan=self._plan().to_dict(),
            provenance=self.provenance,
            training=asdict(self.at),
        )
        path = self.run.checkpoint_path(self.at.step)
        has_values = self._saved is not None and self._saved.step == self.at.step
        if not has_values:
            checkpoint.save(path, info, self._variables, self.optimizer.state)
        if self.at.best_step == self.at.step:
            self.run.point("best", path)
        if has_values:
            # Last: a run that is killed before this makes the evaluation again.
            checkpoint.replace_page(path, info)
        self.run.point("last", path)
        self.run.keep_newest(self.config.train.keep_checkpoints)
        self._saved = self.at

    def _is_stopped(self) -> bool:
        return bool(self.stop_requests)

    def _interrupted(self) -> Interrupted:
        """Return what ends a run that was asked to stop, once it is saved."""
        self._save()
        place = f"stopped at step {self.at.step} of {self.config.train.steps}"
        owed = ", before its evaluation" if self._owes_evaluation() else ""
        return Interrupted(place + owed, self.stop_requests[0])


def _is_due(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0


def _numbered(class_names: Sequence[str]) -> list[dict[str, Any]]:
    return [{"id": number, "name": name} for number, name in enumerate(class_names, start=1)]


def _next_batch(source: Iterator[Batch], step: int) -> Batch:
    try:
        return next(source)
    except StopIteration:
        raise ValueError(
            f"the batches ended before step {step}; repeat the data set, or ask for fewer train.steps"
        ) from None


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

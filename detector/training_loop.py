"""The training loop: steps, and between them what is due, in its order."""

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
from detector.digest import digests
from detector.faster_rcnn import FasterRCNN
from detector.feature_cache import CachedFeatures, FeatureCache
from detector.freeze import FreezePlan
from detector.freeze_proof import FreezeProof, prove
from detector.freeze_schedule import FreezeSchedule
from detector.optimizer import GroupedOptimizer
from detector.progress import Progress
from detector.progression import Progression
from detector.run_log import RunLog
from detector.schedule import learning_rate_schedule
from detector.stop_requests import Stopped
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


@dataclass
class TrainingLoop:
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

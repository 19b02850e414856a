"""Training: one plain loop around one step.

An example's way ends here: batch -> named losses -> gradients of what the plan trains -> clip -> apply.
Every random choice is keyed by (seed, step), so that on a CPU a run that was killed and resumed ends with the
same bits.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from detector import checkpoint
from detector.checkpoint import CheckpointInfo
from detector.coco_metrics import CocoScores
from detector.config import Config
from detector.determinism import enable_determinism
from detector.faster_rcnn import FasterRCNN
from detector.feature_cache import FeatureCache
from detector.freeze import FreezePlan
from detector.freeze_proof import FreezeProof
from detector.freeze_schedule import FreezeSchedule, lr_factors_of
from detector.optimizer import GroupedOptimizer
from detector.progress import Progress
from detector.progression import Progression
from detector.recomputation import recompute
from detector.run_log import RunLog
from detector.schedule import learning_rate_schedule
from detector.selectors import select_each
from detector.stop_requests import stop_requests
from detector.training_loop import Evaluate, TrainingLoop
from detector.training_step import Batch


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
        training = TrainingLoop(
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


def _numbered(class_names: Sequence[str]) -> list[dict[str, Any]]:
    return [{"id": number, "name": name} for number, name in enumerate(class_names, start=1)]

"""Fine-tune a detector with parts of it frozen, and prove that they stayed frozen.

python tools/train.py --freeze box_classifier
python tools/train.py --config configs/bccd.yaml --freeze 'feature_extractor[:Mixed_4c]'
python tools/train.py --resume runs/shapes-001
"""

import argparse
import contextlib
import itertools
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import command_line
import launch
import published_config
from example_caches import evaluation_cache, training_cache
from resumption import lock_resumable, naming_earlier_ones, require_same_data, run_and_checkpoint

if TYPE_CHECKING:
    from rich.console import Console

    from data.dataset import DetectionDataset
    from detector.checkpoint import CheckpointInfo
    from detector.config import Config
    from detector.faster_rcnn import FasterRCNN
    from detector.freeze_schedule import FreezeSchedule
    from detector.run_log import RunLog


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command_line.add_config_options(parser)
    command_line.add_freeze_options(parser)
    parser.add_argument(
        "--run", type=Path, metavar="DIR", help="the run's folder (default: runs/NAME-001, …)"
    )
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="DIR",
        help="go on with a run that was cut off; given one of its checkpoints, RUN/checkpoints/step-…, go "
        "back there and drop what came after it",
    )
    parser.add_argument(
        "--cache-limit",
        type=float,
        metavar="GB",
        help="with train.cache=features, the budget of all kept features (train.cache_limit_gb)",
    )
    parser.add_argument("--no-progress", action="store_true", help="print lines instead of a bar, for logs")
    arguments = parser.parse_args(argv)
    with contextlib.ExitStack() as locks:
        return launch.run(lambda: _train(parser, arguments, locks))


def _train(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, locks: contextlib.ExitStack
) -> int:
    from rich.console import Console

    from data.pipeline import evaluation_batches, plain_errors, training_batches
    from detector.builder import build_resizer
    from detector.config import load
    from detector.evaluate import Evaluator
    from detector.resizer import to_canvas
    from detector.run_log import RunLog
    from detector.score_table import score_table
    from detector.train import fit
    from detector.training_loop import Interrupted

    console = Console(highlight=False)
    limit = [] if arguments.cache_limit is None else [f"train.cache_limit_gb={arguments.cache_limit}"]
    if arguments.resume:
        _refuse_ignored_options(parser, arguments)
        folder, earlier = run_and_checkpoint(arguments.resume)
        config = load(lock_resumable(folder, earlier, locks), limit)
    else:
        arguments.set += limit
        config = command_line.load_config(arguments)
        command_line.require_restorable_here(config)
    if limit and config.train.cache == "none":
        raise ValueError(
            "--cache-limit goes with --set train.cache=features, which keeps features; none are kept"
        )
    data = _read_data(config, console)
    augment = command_line.build_augmentation(config)
    if arguments.resume:
        start = _go_on(RunLog(folder), earlier, config, data, console)
    else:
        start = _begin(arguments, config, data, locks, console)
    run, model, schedule = start.run, start.model, start.schedule
    command_line.print_schedule(console, config, model, schedule)
    console.print(f"run folder: {run.folder}", markup=False, soft_wrap=True)

    resize = to_canvas(build_resizer(config.model))
    is_cached = config.train.cache == "features"
    evaluator = None
    if data.evaluate is not None:
        batches = evaluation_batches(data.evaluate, batch_size=config.evaluate.batch_size, resize=resize)
        evaluator = Evaluator(
            model,
            batches,
            data.evaluate.coco_ground_truth(),
            cache=evaluation_cache(config, data.evaluate, batches) if is_cached else None,
            cache_batch_size=config.evaluate.batch_size,
            note=lambda text: console.print(text, markup=False, soft_wrap=True),
        )
    with plain_errors(), naming_earlier_ones(run, run.last):
        try:
            result = fit(
                model,
                schedule,
                lambda step: training_batches(
                    data.train,
                    batch_size=config.train.batch_size,
                    resize=resize,
                    augment=augment,
                    seed=config.train.seed,
                    start_step=step,
                    views=config.train.views,
                ),
                config,
                cache=training_cache(config, data.train, augment) if is_cached else None,
                run=run,
                evaluate=evaluator,
                categories=[{"id": c.id, "name": c.name} for c in data.train.categories],
                provenance=start.provenance,
                resume_from=start.resume_from,
                show_progress=not arguments.no_progress and console.is_terminal,
            )
        except Interrupted as stop:
            print(f"{stop}; to go on: python tools/train.py --resume {run.folder}", file=sys.stderr)
            return 128 + stop.signal_number

    if evaluator is not None and data.evaluate is not None:
        # A run that was cut off after its last step has a checkpoint and no scores yet.
        after = result.scores.get(result.step) or evaluator(schedule.stages[-1].plan)
        run.write_json("detections.json", evaluator.detections)
        run.write_json("evaluation.json", after.to_dict())
        console.print(score_table(after, title=f"{data.evaluate.name}, step {result.step}"))
        if (before := result.scores.get(0)) is not None:
            console.print(f"AP {_shown(before.AP)} before, {_shown(after.AP)} after")
    console.print(result.proof.summary(), markup=False, soft_wrap=True)
    console.print(f"next: python tools/export.py {run.folder}", markup=False, soft_wrap=True)
    return 0


@dataclass(frozen=True)
class _Data:
    """What a run trains on, and what it is evaluated on."""

    train: "DetectionDataset"
    evaluate: "DetectionDataset | None"

    def labels(self) -> dict[str, str]:
        """Return the digest of each one's labels, for a run that is to go on with the same."""
        parts = {"train": self.train, "evaluate": self.evaluate}
        return {name: part.labels_digest() for name, part in parts.items() if part is not None}


@dataclass(frozen=True)
class _Start:
    """What a run starts or goes on with."""

    run: "RunLog"
    model: "FasterRCNN"
    schedule: "FreezeSchedule"
    provenance: dict[str, Any]
    resume_from: "CheckpointInfo | None" = None


def _read_data(config: "Config", console: "Console") -> _Data:
    published_config.check_paths(config, "data", "train.restore")
    data, classes = config.data, config.model.num_classes
    train = command_line.read_source(
        command_line.require_source(data.train, "data.train"), data.class_names, classes
    )
    evaluate = None
    if data.evaluate:
        evaluate = command_line.read_source(data.evaluate, train.class_names, classes)
    for dataset in filter(None, (train, evaluate)):
        command_line.print_dataset(console, dataset)
    published_config.print_spare_classes(console, config)
    return _Data(train, evaluate)


def _begin(
    arguments: argparse.Namespace,
    config: "Config",
    data: _Data,
    locks: contextlib.ExitStack,
    console: "Console",
) -> _Start:
    """Prepare a new run, and only when nothing can be wrong with it any more, make its folder."""
    from diagnose import resolve_auto

    from detector.experiment import prepare
    from detector.plain_path import require_plain
    from detector.run_lock import run_lock
    from detector.run_log import RunLog, environment
    from detector.train import check_settings

    if arguments.run is not None:
        require_plain(arguments.run)
    # The run keeps the configuration as given, `--freeze auto` included; the plan says what came of it.
    resolved = resolve_auto(config, data.train, console)
    experiment = prepare(resolved, data.train.class_names, images=len(data.train))
    command_line.print_import(console, experiment.imported)
    check_settings(config, experiment.schedule, is_evaluated=data.evaluate is not None)
    folder = _new_folder(arguments.run, arguments.config or arguments.pipeline_config)
    locks.enter_context(run_lock(folder))
    _forget_a_start(folder)
    run = RunLog(folder)
    run.forget_half_written()
    run.write_text("config.yaml", config.to_yaml())
    run.write_json("data.json", {"labels_sha256": data.labels()})
    run.write_json("plan.json", experiment.schedule.to_dict())
    run.write_json("environment.json", environment())
    return _Start(run, experiment.model, experiment.schedule, experiment.provenance)


def _go_on(run: "RunLog", earlier: Path | None, config: "Config", data: _Data, console: "Console") -> _Start:
    """Take up a run at its last checkpoint, or at an `earlier` one, for which later ones are dropped."""
    from detector import checkpoint
    from detector.builder import build_model
    from detector.freeze_schedule import FreezeSchedule
    from detector.run_page import read_page

    at = earlier or run.last
    assert at is not None
    with naming_earlier_ones(run, at):
        resume_from = checkpoint.read_info(at)
    require_same_data(run.folder, resume_from, data.train, data.labels())
    schedule = read_page(
        run.folder / "plan.json",
        FreezeSchedule.from_dict,
        f"put a copy back, or start a new run with --set train.restore.path={run.folder}",
    )
    model = build_model(config.model, resume_from.class_names, seed=config.train.seed)
    if earlier is not None:
        with naming_earlier_ones(run, earlier):
            checkpoint.read_values(earlier, resume_from)  # before later ones are dropped for it
        dropped = run.go_back(earlier, resume_from.training.get("best_step"))
        names = ", ".join(path.name for path in dropped) or "nothing"
        console.print(f"going back to {earlier}; dropped: {names}", markup=False, soft_wrap=True)
    console.print(f"resuming {run.folder} at step {resume_from.step}", markup=False, soft_wrap=True)
    return _Start(run, model, schedule, resume_from.provenance, resume_from)


def _refuse_ignored_options(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuse what a resumed run has its own of."""
    taken = ("resume", "cache_limit", "no_progress")
    ignored = [
        f"--{name.replace('_', '-')}"
        for name, value in vars(arguments).items()
        if name not in taken and value != parser.get_default(name)
    ]
    if ignored:
        raise ValueError(
            f"a run is resumed with the configuration that it has: leave out {', '.join(ignored)}, "
            "or start a new run"
        )


def _forget_a_start(folder: Path) -> None:
    """Delete what a run left that was cut off before its first checkpoint: it begins again."""
    if (folder / "config.yaml").is_file():
        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        (folder / "metrics.jsonl").unlink(missing_ok=True)


def _new_folder(wanted: Path | None, config: Path | None) -> Path:
    if wanted is not None:
        if any((wanted / "checkpoints").glob("step-*")):
            raise ValueError(
                f"{wanted} holds a run already; resume it with --resume {wanted}, or name another --run"
            )
        return wanted
    name = (config or command_line.DEFAULT_CONFIG).stem
    folders = (Path("runs") / f"{name}-{number:03d}" for number in itertools.count(1))
    return next(folder for folder in folders if not folder.exists())


def _shown(ap: float | None) -> str:
    return "–" if ap is None else f"{ap:.3f}"


if __name__ == "__main__":
    sys.exit(main())

"""Fine-tune a detector with parts of it frozen, and prove that they stayed frozen.

python tools/train.py --freeze box_classifier
python tools/train.py --config configs/bccd.yaml --freeze 'feature_extractor[:Mixed_4c]'
python tools/train.py --resume runs/shapes-001
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import command_line

if TYPE_CHECKING:
    import tensorflow as tf

    from data.augment import Augmentation
    from data.dataset import DetectionDataset
    from detector.checkpoint import CheckpointInfo
    from detector.config import Config
    from detector.feature_cache import ExampleViews, FeatureCache
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
        return command_line.run(lambda: _train(parser, arguments, locks))


def _train(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, locks: contextlib.ExitStack
) -> int:
    from diagnose import resolve_auto
    from rich.console import Console

    from data.pipeline import evaluation_batches, plain_errors, training_batches
    from detector import checkpoint
    from detector.builder import build_model, build_resizer
    from detector.config import load
    from detector.evaluate import Evaluator
    from detector.experiment import prepare
    from detector.freeze_schedule import FreezeSchedule
    from detector.resizer import to_canvas
    from detector.run_lock import run_lock
    from detector.run_log import RunLog, environment
    from detector.run_page import read_page
    from detector.score_table import score_table
    from detector.train import Interrupted, check_settings, fit

    console = Console(highlight=False)
    limit = [] if arguments.cache_limit is None else [f"train.cache_limit_gb={arguments.cache_limit}"]
    if arguments.resume:
        _refuse_ignored_options(parser, arguments)
        folder, earlier = _run_and_checkpoint(arguments.resume)
        config = load(_resumable(folder, earlier, locks), limit)
    else:
        arguments.set += limit
        config = command_line.load_config(arguments)
    if limit and config.train.cache == "none":
        raise ValueError(
            "--cache-limit goes with --set train.cache=features, which keeps features; none are kept"
        )
    train_set = command_line.read_source(
        command_line.require_source(config.data.train, "data.train"),
        config.data.class_names,
        config.model.num_classes,
    )
    evaluation_set = (
        command_line.read_source(config.data.evaluate, train_set.class_names, config.model.num_classes)
        if config.data.evaluate
        else None
    )
    for dataset in filter(None, (train_set, evaluation_set)):
        command_line.print_dataset(console, dataset)

    augment = command_line.build_augmentation(config)
    resume_from = None
    labels = {
        name: dataset.labels_digest()
        for name, dataset in (("train", train_set), ("evaluate", evaluation_set))
        if dataset is not None
    }
    if arguments.resume:
        run = RunLog(folder)
        start = earlier or run.last
        assert start is not None
        with _naming_earlier_ones(run, start):
            resume_from = checkpoint.read_info(start)
        _require_same_data(run.folder, resume_from, train_set, labels)
        schedule = read_page(
            run.folder / "plan.json",
            FreezeSchedule.from_dict,
            f"put a copy back, or start a new run with --set train.restore.path={run.folder}",
        )
        model = build_model(config.model, resume_from.class_names, seed=config.train.seed)
        provenance = resume_from.provenance
        if earlier is not None:
            with _naming_earlier_ones(run, earlier):
                checkpoint.read_values(earlier, resume_from)  # before later ones are dropped for it
            dropped = run.go_back(earlier, resume_from.training.get("best_step"))
            names = ", ".join(path.name for path in dropped) or "nothing"
            console.print(f"going back to {earlier}; dropped: {names}", markup=False, soft_wrap=True)
        console.print(f"resuming {run.folder} at step {resume_from.step}", markup=False, soft_wrap=True)
    else:
        # The run keeps the configuration as given, `--freeze auto` included; the plan says what came of it.
        resolved = resolve_auto(config, train_set, console)
        experiment = prepare(resolved, train_set.class_names, images=len(train_set))
        model, schedule, provenance = experiment.model, experiment.schedule, experiment.provenance
        check_settings(config, schedule, is_evaluated=evaluation_set is not None)
        folder = _new_folder(arguments.run, arguments.config or arguments.pipeline_config)
        locks.enter_context(run_lock(folder))
        _forget_a_start(folder)
        run = RunLog(folder)
        run.forget_half_written()
        run.write_text("config.yaml", config.to_yaml())
        run.write_json("data.json", {"labels_sha256": labels})
        run.write_json("plan.json", schedule.to_dict())
        run.write_json("environment.json", environment())

    resizer = build_resizer(config.model)
    command_line.print_schedule(console, config, model, schedule)
    console.print(f"run folder: {run.folder}", markup=False, soft_wrap=True)

    is_cached = config.train.cache == "features"
    evaluator = None
    if evaluation_set is not None:
        batches = evaluation_batches(
            evaluation_set, batch_size=config.evaluate.batch_size, resize=to_canvas(resizer)
        )
        evaluator = Evaluator(
            model,
            batches,
            evaluation_set.coco_ground_truth(),
            cache=evaluation_cache(config, evaluation_set, batches) if is_cached else None,
            cache_batch_size=config.evaluate.batch_size,
            note=lambda text: console.print(text, markup=False, soft_wrap=True),
        )
    with plain_errors(), _naming_earlier_ones(run, run.last):
        before = None
        if evaluator is not None and config.train.evaluate_at_start and resume_from is None:
            before = evaluator(schedule.stages[0].plan)
            run.metrics(0, {f"evaluation/{name}": value for name, value in before.numbers().items()})
            console.print(f"AP before training: {_shown(before.AP)}")
        try:
            result = fit(
                model,
                schedule,
                lambda step: training_batches(
                    train_set,
                    batch_size=config.train.batch_size,
                    resize=to_canvas(resizer),
                    augment=augment,
                    seed=config.train.seed,
                    start_step=step,
                    views=config.train.views,
                ),
                config,
                cache=feature_cache(config, train_set, augment) if is_cached else None,
                run=run,
                evaluate=evaluator,
                categories=[{"id": c.id, "name": c.name} for c in train_set.categories],
                provenance=provenance,
                resume_from=resume_from,
                show_progress=not arguments.no_progress and console.is_terminal,
            )
        except Interrupted as stop:
            print(f"{stop}; to go on: python tools/train.py --resume {run.folder}", file=sys.stderr)
            return 128 + stop.signal_number

    if evaluator is not None:
        # A run that was cut off after its last step has a checkpoint and no scores yet.
        after = result.scores.get(result.step) or evaluator(schedule.stages[-1].plan)
        run.write_json("detections.json", evaluator.detections)
        run.write_json("evaluation.json", after.to_dict())
        console.print(
            score_table(after, title=f"{evaluation_set.name if evaluation_set else ''}, step {result.step}")
        )
        if before is not None:
            console.print(f"AP {_shown(before.AP)} before, {_shown(after.AP)} after")
    console.print(result.proof.summary(), markup=False, soft_wrap=True)
    console.print(f"next: python tools/export.py {run.folder}", markup=False, soft_wrap=True)
    return 0


def feature_cache(
    config: "Config", train_set: "DetectionDataset", augment: "Augmentation | None"
) -> "FeatureCache":
    """Return the cache that the configuration asks for, of the views of the training examples."""
    import albumentations

    from data.pipeline import training_entry, view_batches
    from detector.builder import build_resizer
    from detector.feature_cache import ExampleViews
    from detector.resizer import to_canvas

    settings, resizer = config.train, build_resizer(config.model)
    views = settings.views or 1

    def batches() -> "tf.data.Dataset":
        return view_batches(
            train_set,
            views=views,
            batch_size=settings.batch_size if _has_one_canvas(config) else 1,
            resize=to_canvas(resizer),
            augment=augment,
        )

    def entry_at(position: int) -> int:
        return training_entry(position, len(train_set), settings.seed, views)

    key = _key(
        config,
        train_set,
        augment=[config.data.augment, config.data.min_visibility, albumentations.__version__],
        views=views,
    )
    views_of = ExampleViews(batches, len(train_set) * views, key, entry_at)
    return _cache(config, views_of, config.train.cache_storage)


def evaluation_cache(
    config: "Config", evaluation_set: "DetectionDataset", batches: "tf.data.Dataset"
) -> "FeatureCache | None":
    """Return the cache of the examples to evaluate on, in the folder and the budget of training's.

    None where a batch pads canvases to its largest: what is computed then depends on the batch.
    """
    from detector.feature_cache import ExampleViews

    if not _has_one_canvas(config) and config.evaluate.batch_size > 1:
        return None
    key = _key(config, evaluation_set)
    # In full: scores are those of the model as it is exported.
    return _cache(config, ExampleViews(lambda: batches, len(evaluation_set), key), "float32")


def _has_one_canvas(config: "Config") -> bool:
    from detector.builder import build_resizer

    return None not in build_resizer(config.model).canvas_hw


def _key(config: "Config", dataset: "DetectionDataset", **more: object) -> str:
    made_of = {"examples": dataset.digest(), "resizer": config.model.resizer.model_dump(mode="json"), **more}
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def _cache(config: "Config", views: "ExampleViews", storage: Literal["float32", "float16"]) -> "FeatureCache":
    from detector.feature_cache import FeatureCache

    return FeatureCache(
        config.train.cache_folder,
        views,
        limit_bytes=int(config.train.cache_limit_gb * 1e9),
        storage=storage,
        model_config=config.model.model_dump(mode="json"),
    )


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


def _require_same_data(
    folder: Path, resume_from: "CheckpointInfo", train_set: "DetectionDataset", labels: dict[str, str]
) -> None:
    """Refuse to go on with other labels than the run began with: what it learned would change its meaning."""
    from detector.run_page import read_page

    categories = [{"id": category.id, "name": category.name} for category in train_set.categories]
    if categories != resume_from.categories:
        raise ValueError(
            f"{folder} began with the classes {_named(resume_from.categories)}, and {train_set.name} now has "
            f"{_named(categories)}: bring the labels back, or start a new run"
        )
    page = folder / "data.json"
    if not page.is_file():  # of a version that did not write one
        return
    before = read_page(
        page,
        lambda values: dict(values["labels_sha256"]),
        "put a copy back, or delete it if the labels are those that the run began with",
    )
    for name in sorted({*before, *labels}):
        if before.get(name) != labels.get(name):
            raise ValueError(
                f"the images or boxes of data.{name} are not those that {folder} began with: "
                "bring them back, or start a new run"
            )


def _named(categories: "Sequence[dict[str, Any]]") -> str:
    return ", ".join(f"{category['name']!r} ({category['id']})" for category in categories)


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


def _run_and_checkpoint(path: Path) -> tuple[Path, Path | None]:
    """Return the run's folder that `path` is, or that it is a checkpoint of, and in this case that one."""
    from detector.checkpoint import is_checkpoint

    if path.parent.name == "checkpoints" and is_checkpoint(path):
        own = path.resolve().name  # `last` and `best` are to point at others
        if not own.startswith("step-"):
            raise ValueError(
                f"{path} is a copy of a checkpoint; name the one beside it: {path.parent}/step-…"
            )
        return path.parent.parent, path.parent / own
    return path, None


@contextlib.contextmanager
def _naming_earlier_ones(run: "RunLog", start: Path | None) -> Iterator[None]:
    """Have an error of the checkpoint `start` say from which earlier ones the run can go on."""
    from detector.checkpoint import CheckpointError

    try:
        yield
    except CheckpointError as error:
        folders = list(run.by_step().values())
        before = folders[: folders.index(start)][::-1] if start in folders else []
        remedy = "; to go back: python tools/train.py --resume " if before else ""
        raise ValueError(f"{error}{remedy}{', or '.join(map(str, before))}") from None


def _resumable(folder: Path, earlier: Path | None, locks: contextlib.ExitStack) -> Path:
    """Lock the folder of a run that can go on, and return its configuration's file."""
    from detector.run_lock import run_lock
    from detector.run_log import RunLog

    if not (folder / "config.yaml").is_file():
        raise ValueError(f"{folder} is no run's folder: it has no config.yaml")
    if not (folder / "config.yaml").stat().st_size:
        raise ValueError(
            f"{folder}/config.yaml is damaged: it is empty; put a copy back, or start a new run with "
            f"--set train.restore.path={folder}"
        )
    locks.enter_context(run_lock(folder))
    run = RunLog(folder)
    run.forget_half_written()
    if earlier is None and run.last is None:
        raise ValueError(
            f"{folder} was cut off before its first checkpoint; "
            f"start it again with --config {folder}/config.yaml --run {folder}"
        )
    return folder / "config.yaml"


def _shown(ap: float | None) -> str:
    return "–" if ap is None else f"{ap:.3f}"


if __name__ == "__main__":
    sys.exit(main())

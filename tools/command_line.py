"""What commands share: the options for configurations, what they name, and what is printed of it."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import published_config

if TYPE_CHECKING:
    from rich.console import Console

    from data.augment import Augmentation
    from data.dataset import DetectionDataset
    from detector.config import Config
    from detector.data_config import Source
    from detector.faster_rcnn import FasterRCNN
    from detector.freeze import FreezePlan
    from detector.freeze_config import FreezeStageConfig
    from detector.freeze_schedule import FreezeSchedule
    from detector.weights.importing import ImportReport

PROJECT = Path(__file__).resolve().parents[1]
DEFAULT_CONFIG = PROJECT / "configs" / "shapes.yaml"


def add_config_options(parser: argparse.ArgumentParser, default: str = "configs/shapes.yaml") -> None:
    """Add `--config`, `--pipeline-config` and `--set`; `default` says what holds without the first two."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--config", type=Path, metavar="FILE", help=f"YAML (default: {default})")
    source.add_argument(
        "--pipeline-config", type=Path, metavar="FILE", help="an Object Detection API pipeline.config"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key, e.g. train.steps=500; may be repeated",
    )


def add_freeze_options(parser: argparse.ArgumentParser) -> None:
    """Add `--freeze`, `--train-only` and `--allow-fresh`."""
    parser.add_argument(
        "--freeze",
        action="append",
        metavar="SELECTOR",
        help="freeze what matches: box_classifier, 'feature_extractor[:Mixed_4c]', 're:.*BatchNorm.*', none, "
        "all_but:SELECTOR, or auto for what tools/diagnose.py suggests; several by commas or by repeating "
        "the option",
    )
    parser.add_argument(
        "--train-only", action="append", metavar="SELECTOR", help="freeze everything that does not match"
    )
    parser.add_argument(
        "--allow-fresh", action="store_true", help="allow freezing weights that no checkpoint gave a value"
    )
    parser.add_argument(
        "--layers",
        choices=["heads", "4+", "3+", "all"],
        help="train the RPN and the box classifier, and of the feature extractor nothing, its stages from "
        "the fourth or third block on, or all",
    )
    schedule = parser.add_mutually_exclusive_group()
    schedule.add_argument(
        "--unfreeze-at",
        action="append",
        metavar="STEP:SELECTOR",
        help="from that step on train what matches too; may be repeated, in the order of the steps",
    )
    schedule.add_argument(
        "--gradual", action="store_true", help="unfreeze from the top down in five equal spans"
    )
    schedule.add_argument(
        "--linear-probe", action="store_true", help="a third for the predictor alone, then all at lr / 10"
    )


def add_checkpoint_option(parser: argparse.ArgumentParser) -> None:
    """Add `--checkpoint`; `check_choice` goes with it."""
    parser.add_argument(
        "--checkpoint",
        choices=["best", "last"],
        help="of a run (default: best, or last if none was scored); any other is named by its folder, "
        "RUN/checkpoints/step-…, in place of the run",
    )


def check_choice(choice: str | None, *models: Path) -> None:
    """Refuse `--checkpoint` where none of the models is a run: it would be ignored.

    What is not there at all is left to where it is read.
    """
    from detector.loading import run_of
    from detector.run_log import is_run
    from detector.weights.source import exists

    def may_be_run(model: Path) -> bool:
        return is_run(model) or not exists(model)

    if choice is None or any(map(may_be_run, models)):
        return
    if not models:
        raise ValueError("--checkpoint chooses a checkpoint of a run: name the run")
    run = run_of(models[0])
    remedy = "a run's folder" if run is None else f"the run {run}"
    raise ValueError(
        f"--checkpoint {choice} chooses a checkpoint of a run, and {models[0]} is none: leave it out, or "
        f"name {remedy}"
    )


def load_config(
    arguments: argparse.Namespace, training: bool = True, base: Mapping[str, Any] | None = None
) -> "Config":
    """Read the configuration that the options name, and lay the other options over it.

    Args:
        arguments: of `add_config_options`, and of `add_freeze_options` where the command has them.
        training: false lets a pipeline.config pass whose training settings cannot be honoured.
        base: the values to start from where the options name no file; None for those of the quick start.
    """
    from detector import config

    loaded = None
    if getattr(arguments, "pipeline_config", None):
        from detector.pipeline_config import read_pipeline_config

        loaded = read_pipeline_config(arguments.pipeline_config, training)
        settings = config.override(loaded.values, arguments.set, origin=str(arguments.pipeline_config))
    elif arguments.config is None and base is not None:
        settings = config.override(base, arguments.set, "configuration")
    else:
        settings = config.load(arguments.config or DEFAULT_CONFIG, arguments.set)
    settings = _with_freeze_options(settings, arguments)
    if loaded is not None:
        published_config.print_notes(loaded, settings, arguments)
    return settings


def _with_freeze_options(settings: "Config", arguments: argparse.Namespace) -> "Config":
    """Lay the options of `add_freeze_options` over a configuration."""
    from detector.selectors import split_selectors

    freeze = settings.freeze
    changes: dict[str, object] = {}
    if getattr(arguments, "freeze", None):
        changes["freeze"] = tuple(split_selectors(arguments.freeze))
    if getattr(arguments, "train_only", None):
        changes["train_only"] = tuple(split_selectors(arguments.train_only))
    if getattr(arguments, "allow_fresh", False):
        changes["allow_fresh"] = True
    if getattr(arguments, "layers", None):
        changes["layers"] = arguments.layers
    schedule: object = settings.freeze_schedule
    if getattr(arguments, "gradual", False):
        schedule = "gradual"
    elif getattr(arguments, "linear_probe", False):
        schedule = "linear_probe"
    elif getattr(arguments, "unfreeze_at", None):
        schedule = tuple(_unfreeze_stage(text) for text in arguments.unfreeze_at)
    return settings.model_copy(
        update={"freeze": freeze.model_copy(update=changes), "freeze_schedule": schedule}
    )


def require_restorable_here(config: "Config") -> None:
    """Refuse weights to start from that are in the project's folder and not in the one the command runs in.

    Their path is relative to that one, as all that a configuration names: data would be looked for, or drawn,
    in the wrong place, too.
    """
    path = config.train.restore.path
    if path is not None and not path.exists() and (PROJECT / path).exists():
        raise ValueError(
            f"train.restore.path {path} is not in {Path.cwd()} but in {PROJECT}: paths in configurations are "
            f"relative to the folder that the command runs in; run it in {PROJECT}"
        )


def _unfreeze_stage(text: str) -> "FreezeStageConfig":
    from detector.freeze_config import FreezeStageConfig
    from detector.selectors import split_selectors

    step, separator, selectors = text.partition(":")
    if not separator or not step.isdigit() or int(step) < 1 or not selectors:
        raise ValueError(f"--unfreeze-at takes STEP:SELECTOR, like 500:box_classifier; got {text!r}")
    return FreezeStageConfig(from_step=int(step), unfreeze=tuple(split_selectors(selectors)))


def split_class_names(text: str) -> tuple[str, ...]:
    """Return the names of `--class-names A,B,…`; ValueError for one that is empty or there twice."""
    names = tuple(name.strip() for name in text.split(","))
    for number, name in enumerate(names, start=1):
        if not name:
            raise ValueError(
                f"--class-names {text!r}: expected names and commas, like cat,dog; name {number} is empty"
            )
        if name in names[: number - 1]:
            raise ValueError(f"--class-names {text!r}: {name!r} is there twice; give each class one name")
    return names


def read_source(
    source: "Source", class_names: Sequence[str] | None = None, num_classes: int | None = None
) -> "DetectionDataset":
    """Read the examples that a section of `data:` names.

    A label map may leave gaps: COCO's has 80 names and ids up to 90, and published detectors have 90 classes.
    `num_classes` fills them up with classes that nothing is labelled with.
    """
    from data.coco import read_coco
    from data.shapes import read_shapes
    from data.tfrecord import read_tfrecord
    from data.voc import read_voc
    from detector.label_map import read_label_map, read_label_names

    if source.format == "coco":
        return read_coco(source.annotations, source.images, class_names)
    if source.format == "voc":
        return read_voc(source.root, source.split, class_names)
    if source.format == "tfrecord":
        labels = read_label_map(source.label_map) if source.label_map else None
        if labels is not None and num_classes is not None:
            labels = {i: labels.get(i, f"(no class {i})") for i in range(1, num_classes + 1)} | labels
        names = read_label_names(source.label_map) if source.label_map else None
        return read_tfrecord(source.path, labels, class_names, names)
    return read_shapes(source.root, source.domain, source.split, class_names=class_names)


def build_augmentation(config: "Config") -> "Augmentation | None":
    """Return the augmentation of the training examples, or None if there is none."""
    from data.augment import Augmentation

    if not config.data.augment:
        return None
    return Augmentation(config.data.augment, min_visibility=config.data.min_visibility)


def require_source(source: "Source | None", key: str) -> "Source":
    """Return `source`, or say which key of the configuration is missing."""
    if source is None:
        raise ValueError(
            f"the configuration names no data: set {key}, like --set '{key}={{format: coco, annotations: "
            "FILE, images: FOLDER}' (or voc, tfrecord, shapes), or name a configuration that has it"
        )
    return source


def print_dataset(console: "Console", dataset: "DetectionDataset") -> None:
    """Print how many images a data set has, and what its labels had wrong."""
    lines = [f"{dataset.name}: {len(dataset)} images", *dataset.report.lines()]
    console.print("\n  ".join(lines), markup=False, soft_wrap=True)


def print_import(console: "Console", imported: "ImportReport | None") -> None:
    """Print what the weights were recognised as, and what they leave fresh and why."""
    from detector.weights.account import summary

    for line in summary(imported) if imported is not None else ():
        console.print(line, markup=False, soft_wrap=True)


def print_plan(console: "Console", config: "Config", model: "FasterRCNN", plan: "FreezePlan") -> None:
    """Print what trains, what is frozen, and what that is predicted to save of a training step."""
    from detector.builder import build_resizer
    from detector.cost import predicted_saving, stage_costs
    from detector.plan_table import plan_table

    saving = predicted_saving(stage_costs(model, build_resizer(config.model).nominal_hw), plan)
    console.print(plan_table(plan, saving=f"{saving:.0%} of the arithmetic of a full training step"))


def print_schedule(
    console: "Console", config: "Config", model: "FasterRCNN", schedule: "FreezeSchedule"
) -> None:
    """Print the plan that training starts with, what changes when, and what the machine says of bfloat16."""
    from detector.bfloat16 import of_this_machine
    from detector.freeze_schedule import idle_lr_factors
    from detector.schedule import other_end

    print_plan(console, config, model, schedule.stages[0].plan)
    for index in range(1, len(schedule.stages)):
        console.print(schedule.describe(index), markup=False, soft_wrap=True)
    for selector in idle_lr_factors(config.train.lr_factors, schedule):
        console.print(
            f"train.lr_factors: {selector} does nothing: all that it matches is frozen throughout",
            markup=False,
            soft_wrap=True,
        )
    if told := other_end(config.train.learning_rate, config.train.steps):
        console.print(f"learning rate: {told}", markup=False, soft_wrap=True)
    if advice := of_this_machine().advice(config.model.precision):
        console.print(advice, markup=False, soft_wrap=True)

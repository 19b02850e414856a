"""Show which parts of a restored detector fit a data set and which want to move, without training.

python tools/diagnose.py
python tools/diagnose.py runs/shapes-001
python tools/diagnose.py model.ckpt --config configs/inception_v2_coco.yaml --batches 50
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import command_line
import launch
import published_config

if TYPE_CHECKING:
    import tensorflow as tf
    from rich.console import Console

    from data.dataset import DetectionDataset
    from detector.config import Config

# Enough for stable numbers: what is measured are means over hundreds of crops and thousands of positions.
BATCHES = 20


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "model",
        type=Path,
        nargs="?",
        metavar="MODEL",
        help="a run, a checkpoint, or weights of another project (default: what train.restore.path names)",
    )
    command_line.add_config_options(
        parser, "the run's; another MODEL needs one, or its data by --set; without MODEL configs/shapes.yaml"
    )
    command_line.add_checkpoint_option(parser)
    parser.add_argument(
        "--batches",
        type=int,
        default=BATCHES,
        metavar="N",
        help=f"training batches to measure on, one epoch at most (default: {BATCHES})",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="where diagnose.json and diagnose.png go (default: diagnosis-NAME in the run, or below build/)",
    )
    arguments = parser.parse_args(argv)
    return launch.run(lambda: _diagnose(arguments))


def _diagnose(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from data.pipeline import plain_errors
    from detector.builder import build_model
    from detector.determinism import enable_determinism
    from detector.diagnose import diagnose
    from detector.diagnosis_report import diagnosis_table, save_picture, suggestion_lines
    from detector.export import is_saved_model
    from detector.freeze_suggestion import suggest
    from detector.loading import place_beside, run_of
    from detector.run_log import find_checkpoint, is_run
    from detector.weights.importing import import_weights, model_of
    from detector.weights.source import exists

    if arguments.batches < 1:
        raise ValueError(f"--batches: expected 1 or more, got {arguments.batches}")
    path = arguments.model
    command_line.check_choice(arguments.checkpoint, *([] if path is None else [path]))
    if path is not None and is_saved_model(path):
        raise ValueError(f"{path} is a SavedModel, which has no gradients; name its run or its checkpoint")
    if path is not None and not exists(path):
        raise FileNotFoundError(
            f"there is nothing at {path}; expected a run's folder, a checkpoint, or the weights of another "
            "project"
        )
    if path is not None and is_run(path):
        path = find_checkpoint(path, arguments.checkpoint)
    run = run_of(path) if path is not None else None
    if run is not None and not (arguments.config or arguments.pipeline_config):
        arguments.config = run / "config.yaml"
    base = None
    if path is not None and not (arguments.config or arguments.pipeline_config):
        section, _ = model_of(path)
        base = {"model": {**section, "num_classes": None}}  # the data says how many
    config = command_line.load_config(arguments, training=False, base=base)
    published_config.check_paths(config, "data.train", *(["train.restore"] if path is None else []))
    restore = config.train.restore
    kind = restore.type if path is None else None
    if path is None:
        command_line.require_restorable_here(config)
        path = restore.path
    if path is None:
        raise ValueError("there is nothing to diagnose: name a MODEL or set train.restore.path")

    dataset = command_line.read_source(
        command_line.require_source(config.data.train, "data.train"),
        config.data.class_names,
        config.model.num_classes,
    )
    console = Console(highlight=False)
    command_line.print_dataset(console, dataset)
    published_config.print_spare_classes(console, config)
    model = build_model(config.model, dataset.class_names, seed=config.train.seed)
    imported = import_weights(model, path, kind=kind)
    command_line.print_import(console, imported)
    if note := enable_determinism():
        console.print(note, markup=False, soft_wrap=True)
    with plain_errors():
        diagnosis = diagnose(
            model,
            training_sample(config, dataset, arguments.batches),
            restored=imported.restored,
            seed=config.train.seed,
        )
    suggestion = suggest(diagnosis)
    output = arguments.output or (
        place_beside(path, "diagnosis") if run is not None else Path("build") / f"diagnosis-{path.name}"
    )
    output.mkdir(parents=True, exist_ok=True)
    page = {
        "model": str(path),
        "data": dataset.name,
        **diagnosis.to_dict(),
        "suggestion": {"freeze": suggestion.freeze, "reasons": suggestion.reasons},
    }
    (output / "diagnose.json").write_text(json.dumps(page, indent=1), encoding="utf-8")
    save_picture(diagnosis, suggestion, output / "diagnose.png")
    console.print(diagnosis_table(diagnosis, suggestion))
    console.print()
    for line in suggestion_lines(suggestion):
        console.print(line, markup=False, soft_wrap=True)
    console.print(f"wrote diagnose.json and diagnose.png to {output}", markup=False, soft_wrap=True)
    return 0


def training_sample(
    config: "Config", dataset: "DetectionDataset", batches: int = BATCHES
) -> "tf.data.Dataset":
    """Return the first training batches, augmented as in training, at most one epoch of them."""
    from data.pipeline import training_batches
    from detector.builder import build_resizer
    from detector.resizer import to_canvas

    size = config.train.batch_size
    return training_batches(
        dataset,
        batch_size=size,
        resize=to_canvas(build_resizer(config.model)),
        augment=command_line.build_augmentation(config),
        seed=config.train.seed,
    ).take(min(batches, -(-len(dataset) // size)))


def resolve_auto(config: "Config", dataset: "DetectionDataset", console: "Console") -> "Config":
    """Replace `--freeze auto` by selectors and print why; another configuration comes back as it is."""
    from detector.auto_freeze import choose_freeze, is_auto

    if not is_auto(config):
        return config
    from data.pipeline import plain_errors
    from detector.diagnosis_report import suggestion_lines

    with plain_errors():
        config, suggestion = choose_freeze(config, dataset.class_names, training_sample(config, dataset))
    for line in suggestion_lines(suggestion):
        console.print(line, markup=False, soft_wrap=True)
    return config


if __name__ == "__main__":
    sys.exit(main())

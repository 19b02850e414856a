"""Write a detector as a SavedModel, and check that it runs without this package.

python tools/export.py runs/shapes-001
python tools/export.py runs/shapes-001/checkpoints/step-000400 --output my_detector
python tools/export.py runs/shapes-001 --precision bfloat16 --max-proposals 100

What makes the SavedModel faster than the checkpoint, and another detector, has its AP compared with the
checkpoint's on the run's evaluation data.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import command_line
import foreign_checkpoint
import launch

if TYPE_CHECKING:
    from data.dataset import DetectionDataset


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code, 1 if the SavedModel fails its check."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="a run's folder, a checkpoint, or one of another project"
    )
    command_line.add_config_options(parser, "the run's; of another project's weights, what they tell")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="the SavedModel's folder (default: saved_model in the run's, its name followed by what differs "
        "from the checkpoint; beside a checkpoint without run)",
    )
    parser.add_argument(
        "--precision",
        choices=["float32", "bfloat16"],
        help="what convolutions and dense layers compute in (default: as trained)",
    )
    parser.add_argument(
        "--max-proposals",
        type=int,
        metavar="N",
        help="proposals an image (default: as trained); 100 take about half the time of 300",
    )
    command_line.add_checkpoint_option(parser)
    arguments = parser.parse_args(argv)
    return launch.run(lambda: _export(arguments))


def _export(arguments: argparse.Namespace) -> int:
    from detector.bfloat16 import of_this_machine
    from detector.export import export, export_settings, freeze_manifest, is_saved_model, label_map_ids
    from detector.export_check import ExportCheckError, check_export
    from detector.loading import load_checkpoint
    from detector.model_config import ModelConfig
    from detector.run_log import find_checkpoint

    if arguments.max_proposals is not None and arguments.max_proposals < 1:
        raise ValueError(f"--max-proposals takes a number from 1 on, got {arguments.max_proposals}")
    command_line.check_choice(arguments.checkpoint, arguments.model)
    source = foreign_checkpoint.as_own(arguments.model, arguments)
    if is_saved_model(source):
        raise ValueError(f"{source} is a SavedModel already; name its run or its checkpoint")
    checkpoint = find_checkpoint(source, arguments.checkpoint)
    model, resizer, info = load_checkpoint(checkpoint, arguments.precision, arguments.max_proposals)
    as_trained = ModelConfig.model_validate(info.model)
    trained = {"precision": as_trained.precision, "max_proposals": as_trained.rpn.max_proposals}
    changes = {name: value for name, value in export_settings(model).items() if value != trained[name]}
    if source == arguments.model:
        _check_options(arguments, bool(changes))
    evaluation = _evaluation_data(arguments, checkpoint) if changes else None
    output = arguments.output or _default_output(source, changes)
    print(f"checkpoint: {checkpoint}, step {info.step}")
    for name, value in changes.items():
        print(f"{name}: {value} instead of {trained[name]}")
    if export_settings(model)["precision"] == "bfloat16" and not of_this_machine().in_hardware:
        print(of_this_machine().advice("bfloat16"), file=sys.stderr)
    manifest = freeze_manifest(model, info)
    export(model, resizer, output, categories=info.categories, manifest=manifest)
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    proof = manifest["proof"]
    print(f"wrote {output}, {size / 2**20:.1f} MB; frozen and unmoved: {proof['frozen_variables']} variables")
    if label_map_ids(info.categories) != [category["id"] for category in info.categories]:
        print("its classes are numbered from 1: a label map cannot hold the data set's own category ids")

    print("checking it in a process without this package …", flush=True)
    try:
        check = check_export(output, model, resizer, info.categories)
    except ExportCheckError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(*(f"  {line}" for line in check.lines()), sep="\n")
    if not check.holds:
        print(
            f"error: {output} does not detect what the checkpoint does; it is left there to look at, "
            "do not use it",
            file=sys.stderr,
        )
        return 1
    if evaluation is not None:
        dataset, batch_size = evaluation
        print(f"scoring it and the checkpoint on {dataset.name} …", flush=True)
        print(f"  {_score_change(checkpoint, output, dataset, batch_size)}")
    elif changes:
        print("not scored: name the data to compare its AP with the checkpoint's on, --set data.evaluate=…")
    print(f"next: python tools/predict.py {output} IMAGE_OR_FOLDER --output predictions")
    return 0


def _check_options(arguments: argparse.Namespace, is_changed: bool) -> None:
    """Raise ValueError for options about a configuration that a model of this package has itself."""
    if not is_changed:
        foreign_checkpoint.refuse_config_options(arguments.model, arguments)
    for text in arguments.set:
        if not text.startswith(("data.", "evaluate.")):
            raise ValueError(
                f"--set {text}: of the model, only --precision and --max-proposals can be set; --set and "
                "--config name the data to score it on"
            )


def _evaluation_data(
    arguments: argparse.Namespace, checkpoint: Path
) -> "tuple[DetectionDataset, int] | None":
    """Return what `data.evaluate` of the options or of the checkpoint's run names, and the batch size."""
    from detector.loading import run_of

    if not (arguments.config or arguments.pipeline_config):
        run = run_of(checkpoint)
        if run is not None and (run / "config.yaml").is_file():
            arguments.config = run / "config.yaml"
        elif not any(text.startswith("data.evaluate") for text in arguments.set):
            return None
    config = command_line.load_config(arguments, training=False, base={})
    if config.data.evaluate is None:
        return None
    dataset = command_line.read_source(
        config.data.evaluate, config.data.class_names, config.model.num_classes
    )
    return dataset, config.evaluate.batch_size


def _score_change(checkpoint: Path, exported: Path, dataset: "DetectionDataset", batch_size: int) -> str:
    from evaluate import evaluate_files

    from detector.score_change import score_change

    detections = [evaluate_files(path, dataset, batch_size)[1] for path in (checkpoint, exported)]
    return score_change(dataset.coco_ground_truth(), *detections).line()


def _default_output(model: Path, changes: dict[str, Any]) -> Path:
    from detector.loading import place_beside
    from detector.run_log import is_run

    proposals = f"-{changes['max_proposals']}-proposals" if "max_proposals" in changes else ""
    name = f"saved_model{'-' + changes['precision'] if 'precision' in changes else ''}{proposals}"
    return model / name if is_run(model) else place_beside(model, name)


if __name__ == "__main__":
    sys.exit(main())

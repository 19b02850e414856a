"""Write a detector as a SavedModel, and check that it runs without this package.

python tools/export.py runs/shapes-001
python tools/export.py runs/shapes-001/checkpoints/step-000400 --output my_detector
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import command_line
import foreign_checkpoint


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code, 1 if the SavedModel fails its check."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="a run's folder, a checkpoint, or one of another project"
    )
    command_line.add_config_options(parser)
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="the SavedModel's folder (default: saved_model in the run's; beside a checkpoint without run)",
    )
    parser.add_argument(
        "--checkpoint", choices=["best", "last"], help="of a run (default: best, or last if none was scored)"
    )
    arguments = parser.parse_args(argv)
    return command_line.run(lambda: _export(arguments))


def _export(arguments: argparse.Namespace) -> int:
    from detector.export import export, freeze_manifest, label_map_ids
    from detector.export_check import ExportCheckError, check_export
    from detector.loading import find_checkpoint, load_checkpoint

    source = foreign_checkpoint.as_own(arguments.model, arguments)
    if source == arguments.model and (arguments.config or arguments.pipeline_config or arguments.set):
        raise ValueError(
            f"{source} has its own configuration: leave --config, --pipeline-config and --set out"
        )
    checkpoint = find_checkpoint(source, arguments.checkpoint)
    output = arguments.output or _default_output(source)
    model, resizer, info = load_checkpoint(checkpoint)
    print(f"checkpoint: {checkpoint}, step {info.step}")
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
    print(f"next: python tools/predict.py {output} IMAGE_OR_FOLDER --output predictions")
    return 0


def _default_output(model: Path) -> Path:
    from detector.loading import is_run, place_beside

    return model / "saved_model" if is_run(model) else place_beside(model, "saved_model")


if __name__ == "__main__":
    sys.exit(main())

"""Turn weights of another project into a checkpoint of this one, and account for every variable.

python tools/import_weights.py faster_rcnn_inception_v2_coco_2018_01_28/model.ckpt --label-map coco.pbtxt
python tools/import_weights.py resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5 --class-names cat,dog

SOURCE is a TensorFlow checkpoint's prefix (an Object Detection API detector of TF1 or TF2, a slim classifier,
a Model Garden backbone), a .h5 file of a ResNet of tf_keras.applications, or a checkpoint of this package.
The model is that of the file, unless a configuration says otherwise.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import command_line

if TYPE_CHECKING:
    from detector.config import ModelConfig
    from detector.weights.importing import ImportReport


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="the weights")
    command_line.add_config_options(parser)
    parser.add_argument(
        "--type",
        choices=("classification", "detection", "full"),
        help="what to restore, as the Object Detection API's fine_tune_checkpoint_type: from a classifier "
        "(classification); from a detector its feature extractor and tower (detection) or everything (full); "
        "default: classification or full, as SOURCE is",
    )
    classes = parser.add_mutually_exclusive_group()
    classes.add_argument("--class-names", metavar="A,B,…", help="the model's classes (default: SOURCE's)")
    classes.add_argument("--label-map", type=Path, metavar="FILE", help="the model's classes, a .pbtxt file")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="the checkpoint to write (default: build/imported/NAME)"
    )
    parser.add_argument("--verbose", action="store_true", help="a line for every variable, too")
    arguments = parser.parse_args(argv)
    return command_line.run(lambda: _import(arguments))


def _import(arguments: argparse.Namespace) -> int:
    from detector import checkpoint
    from detector.builder import build_model
    from detector.weights.importing import import_weights

    settings, categories = _model(arguments)
    settings = settings.model_copy(update={"num_classes": None})  # the names say it
    model = build_model(settings, list(categories.values()))
    report = import_weights(model, arguments.source, arguments.type)
    _print(report, arguments.verbose)
    output = arguments.output or Path("build/imported") / _name(arguments.source)
    if output.exists() and not checkpoint.is_checkpoint(output):
        raise ValueError(f"{output} exists and is no checkpoint; name another folder with --output")
    info = checkpoint.CheckpointInfo(
        step=0,
        categories=[{"id": identifier, "name": name} for identifier, name in categories.items()],
        model=settings.model_dump(mode="json"),
        provenance=report.provenance(),
    )
    checkpoint.save(output, info, model.variables_by_path)
    print(f"wrote {output}")
    return 0


def _model(arguments: argparse.Namespace) -> "tuple[ModelConfig, dict[int, str]]":
    """Return the model's configuration and its classes by category id, from the options and the source."""
    from detector import config
    from detector.checkpoint import is_checkpoint, read_info
    from detector.label_map import read_label_map
    from detector.weights.importing import model_of

    section, names = model_of(arguments.source)
    if arguments.config or arguments.pipeline_config:
        loaded = command_line.load_config(arguments)
        settings, names = loaded.model, list(loaded.data.class_names or names)
        if settings.num_classes and len(names) != settings.num_classes:
            names = [str(number) for number in range(1, settings.num_classes + 1)]
    else:
        settings = config.override({"model": section}, arguments.set, str(arguments.source)).model
    if arguments.label_map:
        known = read_label_map(arguments.label_map)
        # A class for every id up to the largest: published label maps have gaps where the predictor has none.
        most = max(max(known), len(names) if names and names[-1] == str(len(names)) else 0)
        return settings, {
            identifier: known.get(identifier, str(identifier)) for identifier in range(1, most + 1)
        }
    if arguments.class_names:
        names = [name.strip() for name in arguments.class_names.split(",")]
    if not names:
        raise ValueError(
            f"{arguments.source} has no classes: name the model's with --class-names or --label-map"
        )
    if is_checkpoint(arguments.source) and names == (info := read_info(arguments.source)).class_names:
        return settings, {category["id"]: category["name"] for category in info.categories}
    return settings, dict(enumerate(names, start=1))


def _print(report: "ImportReport", verbose: bool) -> None:
    print(f"{report.source}: {report.format}")
    if verbose:
        for path, name in report.restored.items():
            print(f"  restored {path} <- {name}")
        for path, why in report.fresh.items():
            print(f"  fresh    {path}: {why}")
        for name, why in report.left.items():
            print(f"  left     {name}: {why}")
    for component, part in report.provenance().items():
        reasons = Counter(report.fresh[path] for path in part["fresh"])
        why = f" ({_reasons(reasons)})" if reasons else ""
        print(f"{component}: {part['restored']} restored, {len(part['fresh'])} fresh{why}")
    reasons = Counter(report.left.values())
    print(f"left in the file: {len(report.left)}" + (f" ({_reasons(reasons)})" if reasons else ""))


def _reasons(reasons: Counter[str]) -> str:
    return "; ".join(f"{count}: {why}" if len(reasons) > 1 else why for why, count in reasons.items())


def _name(source: Path) -> str:
    """Return a name for what is imported: files are often called model.ckpt, their folders seldom."""
    if source.is_dir() or source.suffix in (".h5", ".hdf5"):
        return source.stem if source.suffix else source.name
    return source.resolve().parent.name or source.name


if __name__ == "__main__":
    sys.exit(main())

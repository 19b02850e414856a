"""Turn weights of another project into a checkpoint of this one, and account for every variable.

python tools/import_weights.py faster_rcnn_inception_v2_coco_2018_01_28/model.ckpt --label-map coco.pbtxt
python tools/import_weights.py resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5 --class-names cat,dog

SOURCE is a TensorFlow checkpoint's prefix (an Object Detection API detector of TF1 or TF2, a slim classifier,
a Model Garden backbone), a .h5 file of tf_keras.applications (a ResNet, Inception v3, Inception-ResNet v2),
or a checkpoint or a run of this package.
The model is that of the file, unless a configuration says otherwise.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import command_line
import foreign_checkpoint
import launch


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="the weights")
    command_line.add_config_options(parser, "what SOURCE tells of its model")
    parser.add_argument(
        "--type",
        choices=("classification", "detection", "full"),
        help="what to restore, as the Object Detection API's fine_tune_checkpoint_type: from a classifier "
        "(classification); from a detector its feature extractor and tower (detection) or everything (full); "
        "default: classification or full, as SOURCE is",
    )
    classes = parser.add_mutually_exclusive_group()
    classes.add_argument(
        "--class-names",
        metavar="A,B,…",
        help="the model's classes (default: SOURCE's; numbers where it has no names)",
    )
    classes.add_argument("--label-map", type=Path, metavar="FILE", help="the model's classes, a .pbtxt file")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="the checkpoint to write (default: build/imported/NAME)"
    )
    parser.add_argument("--verbose", action="store_true", help="a line for every variable, too")
    arguments = parser.parse_args(argv)
    return launch.run(lambda: _import(arguments))


def _import(arguments: argparse.Namespace) -> int:
    from detector.weights.account import account

    output = arguments.output or foreign_checkpoint.default_output(arguments.source)
    report = foreign_checkpoint.convert(
        arguments.source,
        arguments,
        output,
        arguments.type,
        () if arguments.class_names is None else command_line.split_class_names(arguments.class_names),
        arguments.label_map,
    )
    print(*account(report, arguments.verbose), sep="\n")
    if not (arguments.class_names or arguments.label_map):
        remedy = "--label-map or --class-names, or training on named classes will not find them"
        foreign_checkpoint.note_numbers(output, remedy)
    print(f"wrote {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

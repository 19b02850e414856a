"""Show what is frozen: by a dry run of `tools/train.py`, or in what was trained already.

python tools/plan.py --freeze box_classifier
python tools/plan.py --freeze 'feature_extractor[:Mixed_4c]' --freeze rpn
python tools/plan.py --freeze auto
python tools/plan.py runs/shapes-001
python tools/plan.py --verify data/shapes_source runs/shapes-001
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import command_line
import launch
import published_config


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 1 if `--verify` finds that something frozen differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "model",
        type=Path,
        nargs="?",
        metavar="MODEL",
        help="a run, a checkpoint or a SavedModel: show the plan it was trained with, and its proof",
    )
    parser.add_argument(
        "--verify",
        type=Path,
        nargs=2,
        metavar=("A", "B"),
        help="compare two runs, checkpoints or SavedModels variable by variable; exit code 1 if one that B's "
        "plan freezes differs",
    )
    command_line.add_checkpoint_option(parser)
    command_line.add_config_options(parser)
    command_line.add_freeze_options(parser)
    parser.add_argument(
        "--class-names", metavar="A,B,…", help="the classes, where they are not to be read from the data"
    )
    arguments = parser.parse_args(argv)
    if arguments.model or arguments.verify:
        _refuse_other_options(parser, arguments)
    if arguments.verify:
        return launch.run(lambda: _verify(arguments))
    return launch.run(lambda: _show(arguments) if arguments.model else _plan(arguments))


def _refuse_other_options(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    if arguments.model and arguments.verify:
        parser.error("--verify takes its two models itself; leave out MODEL")
    allowed = {"model", "verify", "checkpoint"}
    given = [name for name, value in vars(arguments).items() if value and name not in allowed]
    if given:
        parser.error(
            f"--{given[0].replace('_', '-')} is for a dry run; what a model was trained with is read from it"
        )


def _plan(arguments: argparse.Namespace) -> int:
    from diagnose import resolve_auto
    from rich.console import Console

    from detector.auto_freeze import is_auto
    from detector.experiment import prepare
    from detector.train import check_settings

    command_line.check_choice(arguments.checkpoint)
    config = command_line.load_config(arguments)
    command_line.require_restorable_here(config)
    console = Console(highlight=False)
    reads_data = arguments.class_names is None
    published_config.check_paths(config, "train.restore", *(["data.train"] if reads_data else []))
    images = None
    if not reads_data:
        if is_auto(config):
            raise ValueError("--freeze auto looks at the training data; leave out --class-names")
        class_names = command_line.split_class_names(arguments.class_names)
    else:
        source = command_line.require_source(config.data.train, "data.train")
        dataset = command_line.read_source(source, config.data.class_names, config.model.num_classes)
        class_names, images = tuple(dataset.class_names), len(dataset)
        published_config.print_spare_classes(console, config)
        config = resolve_auto(config, dataset, console)
    command_line.build_augmentation(config)
    experiment = prepare(config, class_names, images)
    command_line.print_import(console, experiment.imported)
    check_settings(config, experiment.schedule, is_evaluated=config.data.evaluate is not None)
    command_line.print_schedule(console, config, experiment.model, experiment.schedule)
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from detector.plan_record import read_record
    from detector.plan_table import plan_table

    command_line.check_choice(arguments.checkpoint, arguments.model)
    record = read_record(arguments.model, arguments.checkpoint)
    console = Console(highlight=False)
    console.print(f"{record.path}, step {record.step}", markup=False, soft_wrap=True)
    if record.plan is None:
        console.print("carries no freeze plan")
        return 0
    console.print(plan_table(record.plan))
    for name, part in record.provenance.items():
        fresh = f", {len(part['fresh'])} fresh" if part["fresh"] else ""
        origin = f" from {part['checkpoint']}" if part["restored"] else ""
        console.print(
            f"{name}: {part['restored']} variables restored{origin}{fresh}", markup=False, soft_wrap=True
        )
    if record.earlier:
        ends = ", ".join(str(step) for step, _ in record.earlier)
        console.print(f"earlier freeze stages ended at step {ends}; the plan above is the last one's")
    console.print(record.proof.summary(), markup=False, soft_wrap=True)
    return 0 if record.proof.holds else 1


def _verify(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from detector.plan_compare import compare, comparison_table
    from detector.plan_record import read_record

    command_line.check_choice(arguments.checkpoint, *arguments.verify)
    a, b = (read_record(path, arguments.checkpoint) for path in arguments.verify)
    comparison = compare(a.digests, b.digests, b.frozen_since(a))
    console = Console(highlight=False)
    for letter, record in (("A", a), ("B", b)):
        console.print(f"{letter}: {record.path}, step {record.step}", markup=False, soft_wrap=True)
    console.print(comparison_table(comparison), soft_wrap=False)
    return 1 if comparison.broken else 0


if __name__ == "__main__":
    sys.exit(main())

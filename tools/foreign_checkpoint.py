"""Weights of another project as a checkpoint of this one, for the commands that take either."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import command_line

if TYPE_CHECKING:
    from detector.config import Config
    from detector.model_config import ModelConfig
    from detector.weights.importing import ImportReport


def as_own(model: Path, arguments: argparse.Namespace) -> Path:
    """Return `model` if it is a SavedModel, a checkpoint or a run; else import it and return the checkpoint.

    Its configuration is that of `--config` or `--pipeline-config`, else what the file tells.

    Raises:
        ValueError: it is of no known format, or does not hold the whole detector.
    """
    from detector.checkpoint import is_checkpoint
    from detector.export import is_saved_model
    from detector.run_log import is_run
    from detector.weights.source import exists

    holds_weights = model.is_file() or any(model.glob("*.index"))
    if (
        is_saved_model(model)
        or is_checkpoint(model)
        or is_run(model)
        or (model.is_dir() and not holds_weights)
    ):
        return model  # what is wrong with a folder of something else is said where it is read
    if not exists(model):
        raise FileNotFoundError(
            f"there is nothing at {model}; expected a SavedModel, a checkpoint, a run's folder, or "
            "the weights of another project"
        )
    output = default_output(model)
    report = convert(model, arguments, output, kind="full")
    if report.fresh:
        path, why = next(iter(report.fresh.items()))
        raise ValueError(
            f"{model} does not hold the whole detector: {len(report.fresh)} fresh, {path}: {why}"
        )
    print(f"{model}: {report.format}, imported as {output}")
    note_numbers(output, "tools/import_weights.py --label-map FILE")
    return output


def refuse_config_options(model: Path, arguments: argparse.Namespace) -> None:
    """Raise ValueError for options about a configuration, which a model of this package has itself."""
    if arguments.config or arguments.pipeline_config or arguments.set:
        raise ValueError(
            f"{model} has its own configuration: leave --config, --pipeline-config and --set out"
        )


def note_numbers(output: Path, remedy: str) -> None:
    """Print that the classes of an imported checkpoint are called by their numbers, if they are.

    `remedy` is what names them.
    """
    from detector.checkpoint import read_info
    from detector.label_map import are_numbered

    names = read_info(output).class_names
    if are_numbered(names):
        print(f"classes are called 1 … {len(names)}, as the file does not name them: name them with {remedy}")


def convert(
    source: Path,
    arguments: argparse.Namespace,
    output: Path,
    kind: str | None,
    class_names: Sequence[str] = (),
    label_map: Path | None = None,
) -> "ImportReport":
    """Import `source` into the model that the options and the file name, and write the checkpoint `output`.

    Args:
        source: what `tools/import_weights.py` takes.
        arguments: of `command_line.add_config_options`.
        output: a folder that is not there, or an older checkpoint.
        kind: of `import_weights`.
        class_names: the model's classes, numbered from 1.
        label_map: the file that names them; without either they are the configuration's or the source's.

    Raises:
        ValueError: the source's, the configuration's, or `output` is something else.
    """
    from detector import checkpoint
    from detector.builder import build_model
    from detector.run_log import find_checkpoint, is_run
    from detector.weights.importing import import_weights

    if is_run(source):
        source = find_checkpoint(source)
    if output.exists() and not checkpoint.is_checkpoint(output):
        raise ValueError(f"{output} exists and is no checkpoint; name another folder with --output")
    settings, categories = _model(source, arguments, class_names, label_map)
    settings = settings.model_copy(update={"num_classes": None})  # the names say it
    model = build_model(settings, list(categories.values()))
    report = import_weights(model, source, kind)
    info = checkpoint.CheckpointInfo(
        step=0,
        categories=[{"id": identifier, "name": name} for identifier, name in categories.items()],
        model=settings.model_dump(mode="json"),
        provenance=report.provenance(),
    )
    checkpoint.save(output, info, model.variables_by_path)
    return report


def default_output(source: Path) -> Path:
    """Return where a source is imported to: files are often called model.ckpt, their folders seldom."""
    if source.is_dir() or source.suffix in (".h5", ".hdf5"):
        name = source.stem if source.suffix else source.name
    else:
        name = source.resolve().parent.name or source.name
    return Path("build/imported") / name


def _model(
    source: Path, arguments: argparse.Namespace, class_names: Sequence[str], label_map: Path | None
) -> "tuple[ModelConfig, dict[int, str]]":
    """Return the model's configuration and its classes by category id."""
    from detector import config
    from detector.checkpoint import is_checkpoint, read_info
    from detector.label_map import read_label_map
    from detector.weights.importing import model_of

    section, names = model_of(source)
    if arguments.config or arguments.pipeline_config:
        loaded = command_line.load_config(arguments, training=False)
        settings, names = loaded.model, list(loaded.data.class_names or names)
        if settings.num_classes and len(names) != settings.num_classes:
            names = [str(number) for number in range(1, settings.num_classes + 1)]
        if not class_names:
            label_map = label_map or _label_map(loaded)
    else:
        settings = config.override({"model": section}, arguments.set, str(source)).model
    if label_map:
        known = read_label_map(label_map)
        # A class for every id up to the largest: published label maps have gaps where the predictor has none.
        most = max(max(known), settings.num_classes or 0)
        return settings, {
            identifier: known.get(identifier, f"(no class {identifier})") for identifier in range(1, most + 1)
        }
    names = list(class_names) or names
    if not names:
        raise ValueError(f"{source} has no classes: name the model's with --class-names or --label-map")
    if is_checkpoint(source) and names == (info := read_info(source)).class_names:
        return settings, {category["id"]: category["name"] for category in info.categories}
    return settings, dict(enumerate(names, start=1))


def _label_map(config: "Config") -> Path | None:
    """Return the label map of the configuration's TFRecords, if it is there; say so where it is not.

    A published `pipeline.config` has a placeholder in its place.
    """
    for source in (config.data.evaluate, config.data.train):
        if source is not None and source.format == "tfrecord" and source.label_map is not None:
            if source.label_map.is_file():
                return source.label_map
            print(f"no label map {source.label_map}, which the configuration names", file=sys.stderr)
            return None
    return None

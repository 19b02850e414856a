"""Score a detector: the 12 COCO numbers and the AP of every class.

python tools/evaluate.py runs/shapes-001
python tools/evaluate.py runs/shapes-001/saved_model
python tools/evaluate.py my_detector --config configs/bccd.yaml --set data.evaluate.split=val
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import command_line
import foreign_checkpoint
import launch
import published_config

if TYPE_CHECKING:
    from data.dataset import DetectionDataset
    from detector.coco_metrics import CocoScores


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "model",
        type=Path,
        metavar="MODEL",
        help="a SavedModel, a checkpoint, a run, or a checkpoint of another project",
    )
    command_line.add_config_options(
        parser, "the run's; a model without a run needs one, or its data by --set"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="where detections.json and evaluation.json go (default: evaluation in the run's folder, whose "
        "own scores stay those of its training; evaluation-NAME there for a checkpoint or SavedModel of the "
        "run; or beside the model)",
    )
    command_line.add_checkpoint_option(parser)
    arguments = parser.parse_args(argv)
    return launch.run(lambda: _evaluate(arguments))


def _evaluate(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from detector.export import is_saved_model
    from detector.loading import place_beside, run_of
    from detector.run_log import find_checkpoint, is_run
    from detector.score_table import score_table

    command_line.check_choice(arguments.checkpoint, arguments.model)
    source_model = foreign_checkpoint.as_own(arguments.model, arguments)
    model = (
        source_model if is_saved_model(source_model) else find_checkpoint(source_model, arguments.checkpoint)
    )
    for text in arguments.set:
        if source_model == arguments.model and not text.startswith(("data.", "evaluate.")):
            raise ValueError(f"--set {text}: the model is scored as it is; only data and evaluate can be set")
    run = run_of(model)
    if (
        run is not None
        and (run / "config.yaml").is_file()
        and not (arguments.config or arguments.pipeline_config)
    ):
        arguments.config = run / "config.yaml"
    config = command_line.load_config(arguments, training=False, base={})
    published_config.check_paths(config, "data.evaluate")
    source = command_line.require_source(config.data.evaluate, "data.evaluate")
    dataset = command_line.read_source(source, config.data.class_names, config.model.num_classes)
    console = Console(highlight=False)
    console.print(f"model: {model}", markup=False)
    command_line.print_dataset(console, dataset)

    evaluate = evaluate_files if is_saved_model(model) else _evaluate_checkpoint
    scores, detections = evaluate(model, dataset, config.evaluate.batch_size)
    output = arguments.output or (
        source_model / "evaluation" if is_run(source_model) else place_beside(source_model, "evaluation")
    )
    output.mkdir(parents=True, exist_ok=True)
    page = {**scores.to_dict(), "model": str(model), "data": dataset.name}
    (output / "detections.json").write_text(json.dumps(detections), encoding="utf-8")
    (output / "evaluation.json").write_text(json.dumps(page, indent=1), encoding="utf-8")
    console.print(score_table(scores, title=f"{model} on {dataset.name}"))
    console.print(f"wrote detections.json and evaluation.json to {output}", markup=False)
    return 0


def _evaluate_checkpoint(
    path: Path, dataset: "DetectionDataset", batch_size: int
) -> "tuple[CocoScores, list[dict[str, Any]]]":
    """Score a checkpoint through the input pipeline, as training does."""
    from data.pipeline import evaluation_batches, plain_errors
    from detector.evaluate import Evaluator
    from detector.loading import load_checkpoint
    from detector.resizer import to_canvas

    model, resizer, _ = load_checkpoint(path)
    batches = evaluation_batches(dataset, batch_size=batch_size, resize=to_canvas(resizer))
    evaluator = Evaluator(model, batches, dataset.coco_ground_truth())
    with plain_errors():
        scores = evaluator()
    return scores, evaluator.detections


def evaluate_files(
    path: Path, dataset: "DetectionDataset", batch_size: int
) -> "tuple[CocoScores, list[dict[str, Any]]]":
    """Score a SavedModel, or a checkpoint as if it were one, on the bytes of the data set's files.

    The model's graph decodes and resizes them: nothing of this package touches a SavedModel's pixels.
    """
    import numpy as np

    from detector.coco_metrics import score, to_coco_results
    from detector.evaluate import category_ids
    from detector.loading import load_detector

    detector = load_detector(path)
    ground_truth = dataset.coco_ground_truth()
    ids = category_ids(list(detector.label_map.values()), ground_truth)
    wanted = [class_id for class_id, category in enumerate(ids) if category is not None]
    known_ids = [-1 if category is None else category for category in ids]
    detections = []
    for start in range(0, len(dataset), batch_size):
        indices = range(start, min(start + batch_size, len(dataset)))
        examples = [dataset.examples[index] for index in indices]
        try:
            found = detector.detect([dataset.encoded_image(index) for index in indices])
        except ValueError as error:
            raise ValueError(f"{', '.join(str(example.source) for example in examples)}: {error}") from None
        for example, on_image in zip(examples, found, strict=True):
            kept = np.isin(on_image.classes, wanted)
            detections += to_coco_results(
                example.image_id,
                on_image.boxes_in_pixels(example.height, example.width)[kept],
                on_image.classes[kept],
                on_image.scores[kept],
                known_ids,
            )
    return score(ground_truth, detections), detections


if __name__ == "__main__":
    sys.exit(main())

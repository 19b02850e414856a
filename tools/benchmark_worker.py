"""The worker that `tools/benchmark.py` starts for each workload of this package; nothing to call by hand.

It reads its workload from standard input; `detector/benchmark/worker.py` describes what is said.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import command_line
import launch
import tensorflow as tf
from example_caches import training_cache

from data.dataset import DetectionDataset
from data.pipeline import evaluation_batches, training_batches
from data.random_images import random_image_dataset
from detector.benchmark import workloads
from detector.benchmark.process import WorkerProcess
from detector.benchmark.worker import Prepared, Start, serve
from detector.builder import build_model, build_resizer
from detector.config import Config, validate
from detector.evaluate import Evaluator
from detector.export import export
from detector.resizer import to_canvas

Spec = Mapping[str, Any]

# A pipeline that works ahead gives its batches in bursts: so many make one repetition.
_INPUT_BATCHES = 16


def main(argv: Sequence[str] | None = None) -> int:
    """Serve one workload, or export one model for it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--export", type=Path, metavar="DIR", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    launch.settle_process()
    if arguments.export:
        _export(json.load(sys.stdin), arguments.export)
    else:
        serve(prepare)
    return 0


def prepare(spec: Spec) -> Start:
    """Return what starts the workload of `spec`."""
    if spec["kind"] == "peak":
        return lambda: workloads.matrix_product(spec["precision"])
    prepare_kind = {
        "train": _training,
        "infer": _inference,
        "input": _input,
        "evaluate": _evaluation,
        "startup": _startup,
    }[spec["kind"]]
    return prepare_kind(spec, validate(spec["config"], "benchmark"))


def _training(spec: Spec, config: Config) -> Start:
    is_cached = config.train.cache == "features"
    if spec["data"] == "random" and not is_cached:
        batches = itertools.cycle(_random_batches(spec))
        return lambda: workloads.training(config, _class_names(spec), batches)
    import albumentations  # noqa: F401 - now, so that the time to the first step is not that of an import

    # Of its own: features that an earlier call kept would make this one's start look quick.
    kept_in = {"cache_folder": Path(tempfile.mkdtemp())}
    config = config.model_copy(update={"train": config.train.model_copy(update=kept_in)})
    read = _dataset(spec, config)

    def start() -> Prepared:
        dataset = read()
        cache = None
        if is_cached:
            cache = training_cache(config, dataset, command_line.build_augmentation(config))
        source = _training_batches(dataset, config)
        return workloads.training(config, dataset.class_names, source, cache, len(dataset))

    return start


def _inference(spec: Spec, config: Config) -> Start:
    if spec["data"] == "random":
        names, batches = _class_names(spec), _random_batches(spec)
    else:
        dataset = _dataset(spec, config)()
        names, batches = dataset.class_names, list(_evaluation_batches(dataset, config).take(4))
    if not spec["saved_model"]:
        return lambda: workloads.inference(config, names, batches)
    folder = Path(tempfile.mkdtemp()) / "saved_model"
    # By another process, whose memory is not this one's.
    done = subprocess.run(
        [sys.executable, __file__, "--export", str(folder)],
        input=json.dumps({"config": spec["config"], "class_names": names}),
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ValueError(f"the model cannot be exported: {done.stderr.strip()[-2000:]}")
    return lambda: workloads.saved_model_inference(folder, config, names, batches)


def _input(spec: Spec, config: Config) -> Start:
    read = _dataset(spec, config)

    def start() -> Prepared:
        dataset = _training_batches(read(), config)

        def repeat() -> float:
            # Anew each time: while other workers have their turns, a pipeline would fill what it keeps ready.
            batches = iter(dataset)
            next(batches)
            began = time.perf_counter()
            for _ in range(_INPUT_BATCHES):
                next(batches)
            return time.perf_counter() - began

        return Prepared(repeat, _INPUT_BATCHES * config.train.batch_size)

    return start


def _evaluation(spec: Spec, config: Config) -> Start:
    read = _dataset(spec, config)

    def start() -> Prepared:
        dataset = read()
        model = build_model(config.model, dataset.class_names, seed=config.train.seed)
        evaluator = Evaluator(model, _evaluation_batches(dataset, config), dataset.coco_ground_truth())

        def repeat() -> None:
            evaluator()

        return Prepared(repeat, len(dataset))

    return start


def _startup(spec: Spec, config: Config) -> Start:
    """Repeat the start of a training run: from its imports' end through its first step, its data read."""
    child = {**spec, "kind": "train", "data": "configured" if spec["data"] == "configured" else "files"}

    def repeat() -> float:
        process = WorkerProcess("startup", [sys.executable, __file__], child)
        process.kill()
        seconds = process.readiness.start_seconds
        assert seconds is not None
        return seconds

    return lambda: Prepared(repeat, 0)


def _dataset(spec: Spec, config: Config) -> Callable[[], DetectionDataset]:
    """Return what reads the labels; files of random images are drawn now."""
    if spec["data"] == "configured":
        section, key = (
            (config.data.evaluate, "data.evaluate")
            if spec["kind"] in ("evaluate", "infer")
            else (config.data.train, "data.train")
        )
        source = command_line.require_source(section, key)
        return lambda: command_line.read_source(source, config.data.class_names, config.model.num_classes)
    sizes = {key: spec[key] for key in ("images", "height", "width", "classes", "boxes")}
    dataset = random_image_dataset(Path(tempfile.mkdtemp()), **sizes)
    return lambda: dataset


def _training_batches(dataset: DetectionDataset, config: Config) -> tf.data.Dataset:
    return training_batches(
        dataset,
        batch_size=config.train.batch_size,
        resize=to_canvas(build_resizer(config.model)),
        augment=command_line.build_augmentation(config),
        seed=config.train.seed,
        views=config.train.views,
    )


def _evaluation_batches(dataset: DetectionDataset, config: Config) -> tf.data.Dataset:
    return evaluation_batches(
        dataset, batch_size=config.evaluate.batch_size, resize=to_canvas(build_resizer(config.model))
    )


def _random_batches(spec: Spec) -> list[Any]:
    return workloads.random_batches(
        *(spec[key] for key in ("batch_size", "height", "width", "classes", "boxes"))
    )


def _class_names(spec: Spec) -> list[str]:
    return [f"class {number}" for number in range(1, spec["classes"] + 1)]


def _export(spec: Spec, folder: Path) -> None:
    config = validate(spec["config"], "benchmark")
    model = build_model(config.model, spec["class_names"], seed=config.train.seed)
    categories = [{"id": number, "name": name} for number, name in enumerate(spec["class_names"], start=1)]
    export(model, build_resizer(config.model), folder, categories=categories, manifest={})


if __name__ == "__main__":
    sys.exit(main())

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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import launch

from detector.benchmark import workloads
from detector.benchmark.worker import Prepared, Start, serve
from detector.builder import build_model, build_resizer
from detector.config import Config, validate

Spec = Mapping[str, Any]

# A pipeline that works ahead gives its batches in bursts: so many make one repetition.
_INPUT_BATCHES = 16


def main(argv: Sequence[str] | None = None) -> int:
    """Serve one workload, or do for one what takes a process of its own: export its model, or train it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--export", type=Path, metavar="DIR", help=argparse.SUPPRESS)
    parser.add_argument("--train", type=Path, metavar="DIR", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    launch.settle_process()
    if arguments.train:
        _train(arguments.train)
    elif arguments.export:
        _export(json.load(sys.stdin), arguments.export)
    else:
        serve(prepare, load)
    return 0


def load(spec: Spec) -> None:
    """Import what the workload of `spec` takes and others do not."""
    if spec["kind"] in ("input", "evaluate") or (spec["kind"] == "train" and spec["data"] != "random"):
        import benchmark_data  # noqa: F401


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
    import benchmark_data

    # Of its own: features that an earlier call kept would make this one's start look quick.
    kept_in = {"cache_folder": Path(tempfile.mkdtemp())}
    config = config.model_copy(update={"train": config.train.model_copy(update=kept_in)})
    read = benchmark_data.dataset_reader(spec, config)

    def start() -> Prepared:
        dataset = read()
        cache = benchmark_data.cache_of(dataset, config) if is_cached else None
        source = benchmark_data.training(dataset, config)
        return workloads.training(config, dataset.class_names, source, cache, len(dataset))

    return start


def _inference(spec: Spec, config: Config) -> Start:
    if spec["data"] == "random":
        names, batches = _class_names(spec), _random_batches(spec)
    else:
        import benchmark_data

        dataset = benchmark_data.dataset_reader(spec, config)()
        names, batches = dataset.class_names, list(benchmark_data.evaluation(dataset, config).take(4))
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
    import benchmark_data

    read = benchmark_data.dataset_reader(spec, config)

    def start() -> Prepared:
        dataset = benchmark_data.training(read(), config)

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
    import benchmark_data

    from detector.evaluate import Evaluator

    read = benchmark_data.dataset_reader(spec, config)

    def start() -> Prepared:
        dataset = read()
        model = build_model(config.model, dataset.class_names, seed=config.train.seed)
        evaluator = Evaluator(model, benchmark_data.evaluation(dataset, config), dataset.coco_ground_truth())

        def repeat() -> None:
            evaluator()

        return Prepared(repeat, len(dataset))

    return start


def _startup(spec: Spec, config: Config) -> Start:
    """Repeat the start of `tools/train.py`, all that it prints, writes and scores first included."""
    logging_each_step = config.model_copy(update={"train": config.train.model_copy(update={"log_every": 1})})

    def repeat() -> float:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / _CONFIG).write_text(logging_each_step.to_yaml(), encoding="utf-8")
            with subprocess.Popen(
                [sys.executable, __file__, "--train", str(folder)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            ) as process:
                try:
                    return _first_step_at(process, folder) - float((folder / _IMPORTED).read_text())
                finally:
                    process.kill()

    return lambda: Prepared(repeat, 0)


# What `_train` and `_startup` have in their folder.
_CONFIG, _IMPORTED, _RUN = "config.yaml", "imported", "run"


def _train(folder: Path) -> None:
    """Run `tools/train.py`, and note when all that its start takes was imported."""
    import benchmark_data  # noqa: F401 - and with it what reads data
    import train

    import detector.evaluate
    import detector.plan_table
    import detector.score_table
    import detector.train  # noqa: F401

    (folder / _IMPORTED).write_text(str(time.monotonic()))
    sys.exit(train.main(["--config", str(folder / _CONFIG), "--run", str(folder / _RUN), "--no-progress"]))


def _first_step_at(process: "subprocess.Popen[str]", folder: Path) -> float:
    """Wait for the first step that a run logs, and return when that was."""
    metrics = folder / _RUN / "metrics.jsonl"
    while True:
        rows = metrics.read_text(encoding="utf-8").split("\n")[:-1] if metrics.is_file() else []
        if any(json.loads(row)["step"] > 0 for row in rows):
            return time.monotonic()
        if process.poll() is not None:
            assert process.stderr is not None
            errors = process.stderr.read().strip()[-2000:]
            raise ValueError(f"tools/train.py ended before its first step: {errors}")
        time.sleep(0.005)


def _random_batches(spec: Spec) -> list[Any]:
    return workloads.random_batches(
        *(spec[key] for key in ("batch_size", "height", "width", "classes", "boxes"))
    )


def _class_names(spec: Spec) -> list[str]:
    return [f"class {number}" for number in range(1, spec["classes"] + 1)]


def _export(spec: Spec, folder: Path) -> None:
    from detector.export import export

    config = validate(spec["config"], "benchmark")
    model = build_model(config.model, spec["class_names"], seed=config.train.seed)
    categories = [{"id": number, "name": name} for number, name in enumerate(spec["class_names"], start=1)]
    export(model, build_resizer(config.model), folder, categories=categories, manifest={})


if __name__ == "__main__":
    sys.exit(main())

"""Measure how fast this package trains, detects, reads, evaluates and starts, in alternating rounds.

python tools/benchmark.py benchmarks/freezing.yaml
python tools/benchmark.py benchmarks/freezing.yaml --starts 3
python tools/benchmark.py benchmarks/freezing.yaml --compare
python tools/benchmark.py --config configs/bccd.yaml --workload 'frozen=train freeze.freeze=[rpn]'
python tools/benchmark.py --config configs/resnet50_coco.yaml --against model_garden

A file of benchmarks/ lists workloads; without one and without --workload, training, inference, the input
pipeline, evaluation and start-up of --config are measured.  Every workload has a process of its own; they
take turns, so that ratios are of the same minutes, and the others wait meanwhile.  The peak that arithmetic
is compared with is the machine's matrix product, measured in the same rounds.

A workload is NAME=KIND KEY=VALUE ….  Kinds:

  train      one training step          infer     detection on a batch (saved_model=true: of a SavedModel)
  input      reading, decoding, augmenting, batching, 16 batches a repetition
  evaluate   detection and scores on images=N images
  startup    tools/train.py from the end of its imports through its first step, with the data of the
             configuration (data=configured); it scores first unless data.evaluate=null

Keys with a dot are the configuration's (freeze.freeze=[rpn], train.deterministic=false); without one:
batch_size, size (of a square canvas), data (random, or configured: the configuration's own), images,
reference (the workload to compare with), gflop (operations of an image, counted otherwise), repeats.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import command_line
import launch

if TYPE_CHECKING:
    from detector.benchmark.jobs import Job
    from detector.benchmark.process import WorkerProcess
    from detector.benchmark.result import BenchmarkResult
    from detector.benchmark.spec import Benchmark
    from detector.config import Config

PROTOCOL = """\
peers:
  --against model_garden runs Model Garden's Faster R-CNN, ResNet-50-FPN.  --against object_detection_api runs
  the original, the Object Detection API's Faster R-CNN with Inception v2; where another environment has it,
  name that one's interpreter, from this project's folder:

    --against 'object_detection_api=PYTHON -m detector.benchmark.object_detection_api'

  --against 'NAME=COMMAND' runs a worker of your own.  A peer is run once for each shape of the unfrozen
  workloads of kind train and infer on random images.  It reads and writes lines of JSON on standard input and
  output (other lines are skipped, standard error is shown if it fails).  First it reads what to do:

    {"kind": "train" or "infer", "batch_size": 1, "height": 512, "width": 512, "classes": 90, "boxes": 8,
     "started_at": when it was started, by the clock of Python's time.monotonic(), seconds}

  It builds its model, does that once on random images with so many boxes of so many classes, and writes

    {"ready": true, "first_step_seconds": 3.2}

  to which it may add "import_seconds" and "start_seconds" (from its start until its libraries are loaded,
  from there through the first step).  Then, as often as it reads the first, it repeats n times and writes
  the second:

    {"run": 6}                   {"seconds": [0.31, 0.30, 0.31, 0.30, 0.30, 0.31]}

  It must be idle while it waits: others are measured then.  At the end it reads and writes, and leaves:

    {"quit": true}               {"peak_memory_bytes": 1610612736}

  "flops", the operations of a repetition, may be added.  {"error": "why"} at any time gives up.  In Python:

    import json, sys, time
    spec = json.loads(sys.stdin.readline())
    step = build(spec)                                  # yours: returns when the step is done
    def seconds():
        began = time.perf_counter(); step(); return time.perf_counter() - began
    print(json.dumps({"ready": True, "first_step_seconds": seconds()}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "quit" in request:
            print(json.dumps({"peak_memory_bytes": peak()}), flush=True); break
        print(json.dumps({"seconds": [seconds() for _ in range(request["run"])]}), flush=True)
"""

WORKER = [sys.executable, str(Path(__file__).resolve().parent / "benchmark_worker.py")]

# Of --config, where neither a file nor a workload is named.
_DEFAULT_WORKLOADS = (
    "train=train",
    "infer=infer",
    "input=input",
    "evaluate=evaluate",
    "startup=startup data=configured",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 1 if a worker failed, or a ratio got worse."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=PROTOCOL, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benchmark", nargs="?", type=Path, metavar="FILE", help="YAML of benchmarks/")
    command_line.add_config_options(parser, "configs/shapes.yaml; a FILE names its own")
    parser.add_argument(
        "--workload", action="append", metavar="NAME=KIND …", help="a workload; may be repeated"
    )
    parser.add_argument(
        "--against",
        action="append",
        metavar="PEER",
        help="model_garden, object_detection_api, or NAME=COMMAND; may be repeated",
    )
    parser.add_argument(
        "--rounds", type=int, metavar="N", help="turns of every workload (default: the file's)"
    )
    parser.add_argument(
        "--repeats", type=int, metavar="N", help="repetitions in a turn (default: the file's)"
    )
    parser.add_argument(
        "--starts",
        type=int,
        metavar="N",
        help="do all of it N times, with new processes (default: the file's)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="where NAME.json, NAME.md and NAME.png go (default: results/ beside FILE; nowhere without one)",
    )
    parser.add_argument(
        "--compare",
        nargs="?",
        const=True,
        type=Path,
        metavar="FRESH.json",
        help="instead of storing the result, or with one that was stored elsewhere: report every ratio "
        "that is worse by more than 10%% than the stored one",
    )
    arguments = parser.parse_args(argv)
    return launch.run(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from detector.benchmark.figure import draw
    from detector.benchmark.process import WorkerError
    from detector.benchmark.result import read_result
    from detector.benchmark.table import markdown, terminal_tables

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 130  # the tables'; rich takes 80 for a log
    name = arguments.benchmark.stem if arguments.benchmark else "benchmark"
    folder = arguments.output or (arguments.benchmark.parent / "results" if arguments.benchmark else None)
    stored = None
    if arguments.compare:
        if folder is None:
            raise ValueError("--compare needs a benchmark's FILE, or --output with a stored result")
        stored = read_result(folder / f"{name}.json")  # before the time is spent
    if isinstance(arguments.compare, Path):
        fresh = read_result(arguments.compare)
    else:
        try:
            fresh = _measure(arguments, name, console)
        except WorkerError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        console.print()
        console.print(terminal_tables(fresh))
    if stored is not None:
        return _compare(stored, fresh, console)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        fresh.write(folder / f"{name}.json")
        (folder / f"{name}.md").write_text(markdown(fresh), encoding="utf-8")
        draw(fresh, folder / f"{name}.png")
        console.print(f"{name}.json, {name}.md and {name}.png are in {folder}", markup=False)
    return 0


def _measure(arguments: argparse.Namespace, name: str, console: Any) -> "BenchmarkResult":
    from detector.benchmark.jobs import groups_of, jobs_of
    from detector.benchmark.machine import machine_facts
    from detector.benchmark.process import WorkerProcess
    from detector.benchmark.result import summarize
    from detector.benchmark.rounds import measure

    benchmark, base = _benchmark(arguments)
    jobs = {job.name: job for job in jobs_of(benchmark, WORKER, base)}
    groups = groups_of(list(jobs.values()), benchmark.rounds_of)
    console.print(
        f"{len(jobs)} workers, {benchmark.rounds} rounds{_in_groups(len(groups))}"
        f"{f', {benchmark.starts} starts' if benchmark.starts > 1 else ''}; "
        "anything else that runs meanwhile widens the spread",
        markup=False,
    )

    def start(job_name: str) -> "WorkerProcess":
        job: Job = jobs[job_name]
        return WorkerProcess(job.name, job.command, job.spec)

    measured = measure(
        groups,
        start,
        {job.name: job.turn for job in jobs.values()},
        benchmark.rounds,
        lambda line: console.print(line, markup=False, soft_wrap=True),
        benchmark.starts,
    )
    command = _command(arguments)
    return summarize(
        name,
        command,
        list(jobs.values()),
        measured,
        machine_facts(),
        benchmark.rounds,
        benchmark.starts,
    )


def _benchmark(arguments: argparse.Namespace) -> "tuple[Benchmark, Config | None]":
    """Return what to measure, and the configuration to start from if it is not the file's."""
    from detector.benchmark.spec import amended, parse_workloads, read_benchmark

    base = None
    changes: dict[str, Any] = {
        key: value
        for key in ("rounds", "repeats", "starts")
        if (value := getattr(arguments, key)) is not None
    }
    if arguments.benchmark:
        if arguments.config or arguments.pipeline_config or arguments.workload:
            raise ValueError(
                "a benchmark's FILE has its own config and workloads; leave out --config, "
                "--pipeline-config and --workload, or leave out the FILE"
            )
        benchmark = read_benchmark(arguments.benchmark)
        changes["set"] = (*benchmark.set, *arguments.set)
    else:
        base = command_line.load_config(arguments)
        benchmark = parse_workloads(arguments.workload or _DEFAULT_WORKLOADS)
    if arguments.against:
        changes["against"] = tuple(dict.fromkeys([*benchmark.against, *arguments.against]))
    return amended(benchmark, changes), base


def _compare(stored: "BenchmarkResult", fresh: "BenchmarkResult", console: Any) -> int:
    from detector.benchmark.regression import TOLERANCE, changes, same_machine

    if not same_machine(stored, fresh):
        console.print(
            f"stored on {stored.machine.get('cores')} cores of {stored.machine.get('cpu')}, another machine: "
            "its ratios carry over only roughly",
            markup=False,
            soft_wrap=True,
        )
    found = changes(stored, fresh)
    worse = [change for change in found if change.is_regression]
    for change in found:
        mark = "REGRESSION  " if change.is_regression else "            "
        console.print(f"{mark}{change}", markup=False, soft_wrap=True)
    console.print(
        f"{len(worse)} of {len(found)} ratios are worse by more than {TOLERANCE:.0%} than the stored ones",
        markup=False,
    )
    return 1 if worse else 0


def _in_groups(count: int) -> str:
    return "" if count == 1 else f" in each of {count} groups"


def _command(arguments: argparse.Namespace) -> str:
    """Return the command that measures the same again."""
    words = ["python", "tools/benchmark.py"]
    if arguments.benchmark:
        words.append(_anywhere(arguments.benchmark))
    for option in ("config", "pipeline_config"):
        if path := getattr(arguments, option):
            words += [f"--{option.replace('_', '-')}", _anywhere(path)]
    for option in ("set", "workload", "against"):
        for value in getattr(arguments, option) or ():
            words += [f"--{option}", value]
    for option in ("rounds", "repeats", "starts"):
        if getattr(arguments, option) is not None:
            words += [f"--{option}", str(getattr(arguments, option))]
    return shlex.join(words)


def _anywhere(path: Path) -> str:
    """Return a path as a command on another machine may have it."""
    return path.name if path.is_absolute() else path.as_posix()


if __name__ == "__main__":
    sys.exit(main())

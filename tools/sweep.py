"""Train several freezes from the same weights on the same data, and compare what they reach and cost.

python tools/sweep.py --config configs/sweep_components.yaml --seeds 0,1,2
python tools/sweep.py --variant heads=feature_extractor --variant early='feature_extractor[:Mixed_4c]'

Every variant and seed is a run of tools/train.py in its own process.  Started again, a sweep skips the runs
that are finished and resumes those that were cut off.  In the file a variant may also be a schedule:
{name: late, freeze: rpn, freeze_schedule: [{from_step: 100, unfreeze: [rpn]}]} or freeze_schedule: gradual.
"""

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import command_line
import launch
import published_config

if TYPE_CHECKING:
    from data.dataset import DetectionDataset
    from detector.config import Config
    from detector.sweep import SweepResult
    from detector.sweep_config import SweepConfig, Variant
    from detector.sweep_disagreements import Picture
    from detector.sweep_runs import State

TRAIN = [sys.executable, str(Path(__file__).resolve().parent / "train.py")]
_EXAMPLES = 4


@dataclass(frozen=True)
class Run:
    """One variant with one seed: its folder, its options of tools/train.py, and what these resolve to."""

    variant: "Variant"
    seed: int
    folder: Path
    options: list[str]
    config: "Config"

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.variant.name}, seed {self.seed}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command_line.add_config_options(parser)
    parser.add_argument(
        "--allow-fresh",
        action="store_true",
        help="allow every variant to freeze weights that no checkpoint gave a value",
    )
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="NAME=SELECTORS",
        help="a freeze to try, instead of the list in --config; may be repeated",
    )
    parser.add_argument("--seeds", default="0", metavar="0,1,…", help="train every variant with each seed")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where runs and results go (default: runs/sweep-NAME)"
    )
    arguments = parser.parse_args(argv)
    return launch.run(lambda: _sweep(arguments))


def _sweep(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from detector.plain_path import require_plain
    from detector.sweep_config import parse_variant, with_reference
    from detector.sweep_runs import run_state

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 116  # the table's; rich takes 80 for a log
    seeds = _seeds(arguments.seeds)
    sweep = _sweep_config(arguments)
    variants = with_reference([parse_variant(text) for text in arguments.variant] or sweep.variants)
    if len(variants) == 1:
        raise ValueError("a sweep needs a freeze to try: --variant name=selectors, or a list in --config")
    name = (arguments.config or arguments.pipeline_config or command_line.DEFAULT_CONFIG).stem
    output = require_plain(arguments.output or Path("runs") / f"sweep-{name.removeprefix('sweep_')}")
    # Seeds outside: if time runs out, all variants have been trained with the first ones.
    runs = [_run(arguments, sweep, variant, seed, output) for seed in seeds for variant in variants]
    states = [run_state(run.folder, run.config) for run in runs]
    config = runs[0].config
    published_config.check_paths(config, "data", "train.restore")
    source = command_line.require_source(config.data.evaluate, "data.evaluate")
    train_set = command_line.read_source(
        command_line.require_source(config.data.train, "data.train"),
        config.data.class_names,
        config.model.num_classes,
    )
    evaluation_set = command_line.read_source(source, train_set.class_names, config.model.num_classes)
    published_config.print_spare_classes(console, config)
    if "new" in states:
        _check_freezes(runs, train_set)
    console.print(
        f"{len(variants)} variants × {len(seeds)} {'seed' if len(seeds) == 1 else 'seeds'} in {output}; "
        f"{states.count('finished')} of {len(runs)} runs are finished",
        markup=False,
    )
    failed = _train_all(console, runs, states)
    result = _report(console, runs, variants, evaluation_set, output, failed)
    return 1 if failed or result is None else 0


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(seed) for seed in text.split(",")]
    except ValueError:
        raise ValueError(f"--seeds takes whole numbers and commas, like 0,1,2; got {text!r}") from None
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds {text}: a seed stands there twice, and would train the same run again")
    return seeds


def _sweep_config(arguments: argparse.Namespace) -> "SweepConfig":
    from detector.sweep_config import SweepConfig, is_sweep, read_sweep

    if arguments.config and is_sweep(arguments.config):
        return read_sweep(arguments.config)
    return SweepConfig(config=arguments.config)


def _run(
    arguments: argparse.Namespace, sweep: "SweepConfig", variant: "Variant", seed: int, output: Path
) -> Run:
    """Resolve a run's options exactly as tools/train.py will."""

    options = []
    if arguments.pipeline_config:
        options += ["--pipeline-config", str(arguments.pipeline_config)]
    elif sweep.config:
        options += ["--config", str(sweep.config)]
    settings = [*sweep.set, *arguments.set, f"train.seed={seed}"]
    options += [word for setting in settings for word in ("--set", setting)]
    parser = argparse.ArgumentParser()
    command_line.add_config_options(parser)
    command_line.add_freeze_options(parser)
    base = command_line.load_config(parser.parse_args(options))
    _refuse_freezes(base)
    options += variant.options
    if arguments.allow_fresh:
        options.append("--allow-fresh")
    config = command_line.load_config(parser.parse_args(options))
    command_line.require_restorable_here(config)
    return Run(variant, seed, output / variant.name / f"seed-{seed}", options, config)


def _refuse_freezes(config: "Config") -> None:
    """Refuse a configuration that freezes by itself, and say how to take that back."""
    from detector.freeze_config import FreezeConfig

    settings = [
        f"freeze.{name}={'[]' if field.default == () else 'null'}"
        for name, field in FreezeConfig.model_fields.items()
        if name != "allow_fresh" and getattr(config.freeze, name) != field.default
    ]
    if config.freeze_schedule:
        settings.append("freeze_schedule=[]")
    if settings:
        options = shlex.join(word for setting in settings for word in ("--set", setting))
        raise ValueError(
            "the configuration freezes something already; in a sweep only its variants do: take it back with "
            f"{options}"
        )


def _check_freezes(runs: Sequence[Run], train_set: "DetectionDataset") -> None:
    """Refuse a variant that cannot be trained before hours went into the others."""
    from detector.experiment import prepare, schedule_of
    from detector.selectors import FreezeError

    full = prepare(runs[0].config, train_set.class_names)
    for run in {run.variant.name: run for run in runs}.values():
        if "auto" in run.variant.freeze:  # decided by what the run itself measures
            continue
        try:
            schedule_of(run.config, full.plan.rows, full.imported is not None, len(train_set))
        except FreezeError as error:
            raise ValueError(f"variant {run.variant.name}: {error}") from None


def _train_all(console: Any, runs: Sequence[Run], states: Sequence["State"]) -> list[str]:
    """Train what is not finished; returns the names of the runs that failed."""
    from detector.sweep_table import duration

    failed = []
    for number, (run, state) in enumerate(zip(runs, states, strict=True), start=1):
        head = f"[{number}/{len(runs)}] {run.name}: "
        if state == "finished":
            console.print(f"{head}finished before", markup=False)
            continue
        start = time.monotonic()
        code = _train(run, state)
        took = duration(time.monotonic() - start)
        if code == 0:
            console.print(
                f"{head}{'resumed, ' if state == 'cut off' else ''}{_ap(run)}, {took}", markup=False
            )
        else:
            failed.append(run.name)
            console.print(f"{head}FAILED after {took}: {_last_line(run)}", markup=False, soft_wrap=True)
    return failed


def _train(run: Run, state: "State") -> int:
    """Train one run in a process of its own, and note what it took; returns its exit code."""
    from detector.run_lock import run_lock
    from detector.sweep_runs import add_cost

    if state == "new":
        # What a run that was cut off before its first checkpoint left: it starts from the beginning.
        with run_lock(run.folder):
            shutil.rmtree(run.folder, ignore_errors=True)
    run.folder.mkdir(parents=True, exist_ok=True)
    what = [*run.options, "--run", str(run.folder)] if state == "new" else ["--resume", str(run.folder)]
    command = [*TRAIN, *what, "--no-progress"]
    start = time.monotonic()
    with open(run.folder / "train.log", "a", encoding="utf-8") as log:
        log.write(f"$ {shlex.join(command)}\n")
        log.flush()
        # In a session of its own, so that Ctrl-C comes once, from here, and not from the terminal as well.
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        code, peak, stopped_by = _wait(process)
    add_cost(run.folder, time.monotonic() - start, peak)
    if stopped_by is not None:
        raise launch.StopSignal(stopped_by)
    return code


def _wait(process: subprocess.Popen[bytes]) -> tuple[int, int, int | None]:
    """Return the exit code, the peak memory in bytes, and which of SIGINT, SIGTERM and SIGHUP came, if any.

    These are passed on, and the run saves itself; a second one kills it.  The peak that the kernel tells is
    never below this process's own when the child began; the child loads all that this one has loaded by then.
    """

    def stop(number: int, frame: Any) -> None:
        raise launch.StopSignal(number)

    stopped_by: int | None = None
    # SIGHUP comes when the terminal is closed: the run, in a session of its own, would go on unseen.  Under
    # nohup it is ignored, as that is what nohup is for.
    previous = {
        number: signal.signal(number, stop)
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        while True:
            try:
                _, status, usage = os.wait4(process.pid, 0)
                break
            except KeyboardInterrupt as came:
                process.send_signal(signal.SIGINT if stopped_by is None else signal.SIGKILL)
                stopped_by = came.number if isinstance(came, launch.StopSignal) else signal.SIGINT
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    process.returncode = os.waitstatus_to_exitcode(status)
    # Kibibytes, but bytes on macOS.
    return process.returncode, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024), stopped_by


def _report(
    console: Any,
    runs: Sequence[Run],
    variants: Sequence["Variant"],
    evaluation_set: "DetectionDataset",
    output: Path,
    failed: Sequence[str],
) -> "SweepResult | None":
    """Print and write the results; None if no run has any."""
    import json

    from detector.sweep import compare, to_dict, write_csv
    from detector.sweep_advice import advise
    from detector.sweep_report import report
    from detector.sweep_runs import read_run
    from detector.sweep_table import sweep_table

    records = defaultdict(list)
    for run in runs:
        if run.name not in failed:
            records[run.variant.name].append(read_run(run.folder))
    if not records:
        return None
    ground_truth = evaluation_set.coco_ground_truth()
    result = compare(variants, records, ground_truth)
    advice = advise(result)
    console.print()
    console.print(sweep_table(result))
    console.print(f"\n{advice}", markup=False)
    (output / "sweep.json").write_text(
        json.dumps(to_dict(result, advice, failed), indent=1), encoding="utf-8"
    )
    write_csv(output / "sweep.csv", result)
    first = {name: entries[0].detections for name, entries in records.items()}
    page = report(
        result,
        advice,
        title=f"Which parts to freeze: {output.name.removeprefix('sweep-')}",
        failed=failed,
        pictures=_pictures(result, first, ground_truth, evaluation_set),
    )
    (output / "sweep.html").write_text(page, encoding="utf-8")
    console.print(f"sweep.html, sweep.json and sweep.csv are in {output}", markup=False)
    return result


def _pictures(
    result: "SweepResult",
    detections: dict[str, list[dict[str, Any]]],
    ground_truth: dict[str, Any],
    evaluation_set: "DetectionDataset",
) -> list["Picture"]:
    """Draw the images on which the variants' first seeds differ most."""
    import tensorflow as tf

    from detector.sweep_config import REFERENCE
    from detector.sweep_disagreements import disagreements, draw_picture

    places = {example.image_id: index for index, example in enumerate(evaluation_set.examples)}
    pictures = []
    for image_id, best, worst in disagreements(result, _EXAMPLES):
        encoded = evaluation_set.encoded_image(places[image_id])
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False).numpy()
        names = dict.fromkeys([*([REFERENCE] if result.reference else []), best, worst])
        pictures.append(
            draw_picture(image, image_id, ground_truth, {name: detections[name] for name in names})
        )
    return pictures


def _ap(run: Run) -> str:
    from detector.sweep_runs import read_run

    ap = read_run(run.folder).numbers["AP"]
    return "AP –" if ap is None else f"AP {ap:.3f}"


def _last_line(run: Run) -> str:
    lines = (run.folder / "train.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"{lines[-1] if lines else 'it printed nothing'} (all of it in {run.folder / 'train.log'})"


if __name__ == "__main__":
    sys.exit(main())

"""From a benchmark's file to the workers that measure it, and who takes turns with whom."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from detector.benchmark.rounds import Turn
from detector.benchmark.spec import PEAKS, Benchmark, Workload
from detector.builder import build_resizer
from detector.config import Config, ConfigError, load, override

_BUILT_IN_PEERS = {
    name: [sys.executable, "-m", f"detector.benchmark.{name}"]
    for name in ("model_garden", "object_detection_api")
}
# One repetition of these takes seconds and fills its own caches: none is discarded, and one makes a turn.
_LONG_KINDS = ("evaluate", "startup")


@dataclass(frozen=True)
class Job:
    """A worker to start: one of this package's (`peer` None), a peer's, or the measurement of a peak.

    `spec` is the first line that it reads; `references` are the jobs that its time is compared with.
    """

    name: str
    kind: str
    command: tuple[str, ...]
    spec: Mapping[str, Any]
    turn: Turn
    peer: str | None = None
    references: tuple[str, ...] = ()
    gflop: float | None = None
    settings: tuple[str, ...] = ()


def jobs_of(benchmark: Benchmark, own_worker: Sequence[str], base: Config | None = None) -> list[Job]:
    """Return the workers of a benchmark: the peaks, the workloads, and the peers.

    A peer does what each training step and inference on random images does in which nothing is frozen, once
    per shape, and these are compared with it.

    Args:
        benchmark: what its file says.
        own_worker: the command of this package's worker.
        base: the configuration to start from, instead of the one that the file names.

    Raises:
        ConfigError: a setting cannot be used, or a peer is unknown.
    """
    start = base if base is not None else load(benchmark.config)
    peers = [_peer(text) for text in benchmark.against]
    configs = {workload.name: _config(start, benchmark, workload) for workload in benchmark.workloads}
    peer_jobs: dict[tuple[Any, ...], Job] = {}
    own_jobs = []
    for workload in benchmark.workloads:
        config = configs[workload.name]
        job = _own_job(benchmark, own_worker, workload, config)
        references = list(job.references)
        if workload.kind in ("train", "infer") and workload.data == "random" and _trains_all(config):
            for peer, command in peers:
                shape = (peer, *(job.spec[key] for key in ("kind", "batch_size", "height", "width")))
                if shape not in peer_jobs:
                    taken = {other.name for other in peer_jobs.values()}
                    peer_jobs[shape] = _peer_job(peer, command, job, taken)
                references.append(peer_jobs[shape].name)
        own_jobs.append(replace(job, references=tuple(references)))
    return [*_peak_jobs(benchmark, own_worker), *own_jobs, *peer_jobs.values()]


def groups_of(jobs: Sequence[Job], rounds_of: str) -> list[list[str]]:
    """Return the names of the jobs that take turns with each other, group by group; the peaks are in each.

    "all" is one group; "pairs" has one for every workload with what it is compared with.
    """
    if rounds_of == "all":
        return [[job.name for job in jobs]]
    peaks = [job.name for job in jobs if job.kind == "peak"]
    compared_with = {name for job in jobs for name in job.references}
    groups = [
        [*peaks, *job.references, job.name]
        for job in jobs
        if job.kind != "peak" and (job.references or job.name not in compared_with)
    ]
    return groups or [peaks]


def _own_job(benchmark: Benchmark, own_worker: Sequence[str], workload: Workload, config: Config) -> Job:
    height, width = build_resizer(config.model).nominal_hw
    evaluates = workload.kind in ("infer", "evaluate")
    spec = {
        "kind": workload.kind,
        "batch_size": config.evaluate.batch_size if evaluates else config.train.batch_size,
        "height": height,
        "width": width,
        "classes": config.model.num_classes or benchmark.classes,
        "boxes": benchmark.boxes,
        "data": workload.data,
        "images": workload.images or 100,
        "saved_model": workload.saved_model,
        "config": config.model_dump(mode="json"),
    }
    is_long = workload.kind in _LONG_KINDS
    return Job(
        name=workload.name,
        kind=workload.kind,
        command=tuple(own_worker),
        spec=spec,
        turn=Turn(workload.repeats or (1 if is_long else benchmark.repeats), discard=0 if is_long else 1),
        references=(workload.reference,) if workload.reference else (),
        gflop=workload.gflop,
        settings=(*benchmark.set, *workload.set),
    )


def _peer_job(peer: str, command: Sequence[str], job: Job, taken: set[str]) -> Job:
    spec = {key: job.spec[key] for key in ("kind", "batch_size", "height", "width", "classes", "boxes")}
    name = f"{peer} {job.kind}"
    if name in taken:
        name += f" {spec['width']}x{spec['height']} batch {spec['batch_size']}"
    return Job(name, job.kind, tuple(command), spec, job.turn, peer=peer)


def _peak_jobs(benchmark: Benchmark, own_worker: Sequence[str]) -> list[Job]:
    return [
        Job(
            name,
            "peak",
            tuple(own_worker),
            {"kind": "peak", "precision": precision, "batch_size": 0},
            Turn(max(benchmark.repeats, 5)),
        )
        for precision, name in PEAKS.items()
    ]


def _config(base: Config, benchmark: Benchmark, workload: Workload) -> Config:
    settings = [*benchmark.set, *workload.set]
    if workload.batch_size is not None:
        settings += [f"{section}.batch_size={workload.batch_size}" for section in ("train", "evaluate")]
    if workload.size is not None:
        shape = f"{{kind: fixed_shape, height: {workload.size}, width: {workload.size}}}"
        settings.append(f"model.resizer={shape}")
    # Times do not depend on whether a frozen value came from a checkpoint.
    settings.append("freeze.allow_fresh=true")
    return override(base.model_dump(mode="json"), settings, workload.name)


def _trains_all(config: Config) -> bool:
    freeze = config.freeze
    return not (freeze.freeze or freeze.train_only) and freeze.layers in (None, "all")


def _peer(text: str) -> tuple[str, list[str]]:
    """Return name and command of `--against NAME` or `--against 'NAME=COMMAND'`."""
    name, separator, command = text.partition("=")
    if separator and name.strip() and command.strip():
        return name.strip(), shlex.split(command)
    if not separator and text in _BUILT_IN_PEERS:
        return text, _BUILT_IN_PEERS[text]
    raise ConfigError(
        f"--against takes {', '.join(_BUILT_IN_PEERS)}, or NAME=COMMAND for a worker of your own; "
        f"got {text!r}"
    )

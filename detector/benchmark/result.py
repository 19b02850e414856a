"""A benchmark's result: what each workload took, and what it took in parts of another, from the same rounds.

Ratios are taken round by round and then summarised: what slowed the machine for a while is in both their
times.  They carry to another call, and to some extent to another machine; absolute times do not.
"""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError

from detector.benchmark.jobs import Job
from detector.benchmark.process import Farewell
from detector.benchmark.rounds import Measurement, Round
from detector.benchmark.spec import PEAKS
from detector.config_section import Section


class ResultError(ValueError):
    """A file is no benchmark's result; the message names it."""


class Spread(Section):
    """A distribution by its median and quartiles."""

    median: float
    q1: float
    q3: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return the spread of at least one value; quartiles are interpolated linearly."""
        q1, median, q3 = np.percentile(values, [25, 50, 75])
        return cls(median=float(median), q1=float(q1), q3=float(q3), count=len(values))


class Peak(Section):
    """The machine's matrix product in one precision, in the rounds of the same call.

    `side` is the matrices'; where starts chose differently, that of most of them.
    """

    precision: str
    side: int
    gflops: Spread


class WorkloadResult(Section):
    """What one workload took.

    `seconds` are those of a repetition, which works on `images` images (0: on none).  `gflop` are a
    repetition's operations, `gflops` what was reached per second, `peak_part` that as a part of the float32
    peak, round by round; None where operations are not counted.
    """

    name: str
    kind: str
    peer: str | None
    settings: tuple[str, ...]
    batch_size: int
    height: int
    width: int
    images: int
    seconds: Spread
    gflop: float | None
    gflops: float | None
    peak_part: Spread | None
    peak_memory_bytes: int | None
    import_seconds: float | None
    start_seconds: float | None
    first_step_seconds: float

    @property
    def seconds_per_image(self) -> float | None:
        """The median; None if a repetition has no images."""
        return self.seconds.median / self.images if self.images else None


class Ratio(Section):
    """A workload in parts of its reference: time per image, peak memory, and the first step.

    Below 1 it is faster or smaller.  The time is that of every round; the others are measured once a start.
    """

    workload: str
    reference: str
    time: Spread
    memory: float | None
    first_step: float | None


class BenchmarkResult(Section):
    """Everything that a call measured, and `command`, which measures it again.

    The workers were started `starts` times, for `rounds` rounds each; what is measured once a start (memory,
    first step) is the median.
    """

    format: Literal[1] = 1
    name: str
    command: str
    machine: dict[str, Any]
    rounds: int
    starts: int = 1
    peaks: tuple[Peak, ...]
    workloads: tuple[WorkloadResult, ...]
    ratios: tuple[Ratio, ...]
    samples: tuple[dict[str, tuple[float, ...]], ...]

    def write(self, path: Path) -> None:
        """Write the JSON file."""
        path.write_text(json.dumps(self.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")


def read_result(path: Path) -> BenchmarkResult:
    """Read what `BenchmarkResult.write` wrote.

    Raises:
        ResultError: there is no such file, or it is something else.
    """
    if not path.is_file():
        raise ResultError(f"no result {path}: run the benchmark without --compare to store one")
    try:
        return BenchmarkResult.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else str(error)
        raise ResultError(
            f"{path} is no benchmark's result ({reason.lstrip(': ')}); run the benchmark again to store one"
        ) from None


def summarize(
    name: str,
    command: str,
    jobs: Sequence[Job],
    measured: Measurement,
    machine: Mapping[str, Any],
    rounds: int,
    starts: int = 1,
) -> BenchmarkResult:
    """Return what the rounds say."""
    peaks = [_peak(job, measured) for job in jobs if job.kind == "peak"]
    peak = next((job.name for job in jobs if job.name == PEAKS["float32"]), None)
    peak_rates = None if peak is None else _product_rates(peak, measured)
    workloads = [job for job in jobs if job.kind != "peak"]
    return BenchmarkResult(
        name=name,
        command=command,
        machine=dict(machine),
        rounds=rounds,
        starts=starts,
        peaks=tuple(peaks),
        workloads=tuple(_workload(job, measured, peak_rates) for job in workloads),
        ratios=tuple(_ratio(job.name, other, measured) for job in workloads for other in job.references),
        samples=tuple({name: tuple(seconds) for name, seconds in r.items()} for r in measured.rounds),
    )


def ratios_by_round(rounds: Sequence[Round], name: str, reference: str) -> list[float]:
    """Return median time by median time of the rounds that both took part in."""
    return [
        statistics.median(seconds[name]) / statistics.median(seconds[reference])
        for seconds in rounds
        if name in seconds and reference in seconds
    ]


def _peak(job: Job, measured: Measurement) -> Peak:
    rates = [rate / 1e9 for rate in _product_rates(job.name, measured) if rate is not None]
    flops = statistics.mode(_product_flops(farewell) for farewell in measured.farewells[job.name])
    return Peak(precision=job.spec["precision"], side=round((flops / 2) ** (1 / 3)), gflops=Spread.of(rates))


def _product_rates(name: str, measured: Measurement) -> list[float | None]:
    """Return the operations a second of a matrix product, round by round; None where it had no turn.

    Every start's worker chooses the size of its own matrices.
    """
    farewells = measured.farewells[name]
    rounds_of_a_start = len(measured.rounds) // len(farewells)
    return [
        _product_flops(farewells[number // rounds_of_a_start]) / statistics.median(seconds[name])
        if name in seconds
        else None
        for number, seconds in enumerate(measured.rounds)
    ]


def _product_flops(farewell: Farewell) -> float:
    assert farewell.flops is not None, "a matrix product counts its operations"
    return farewell.flops


def _workload(job: Job, measured: Measurement, peak_rates: Sequence[float | None] | None) -> WorkloadResult:
    images = measured.readiness[job.name][0].images
    seconds = Spread.of([value for s in _rounds_of(job.name, measured) for value in s])
    flops = _flops(job.name, measured) if job.gflop is None else 1e9 * job.gflop * images
    part = None
    if flops is not None and peak_rates is not None:
        part = Spread.of(
            [
                flops / statistics.median(seconds_by_job[job.name]) / rate
                for seconds_by_job, rate in zip(measured.rounds, peak_rates, strict=True)
                if job.name in seconds_by_job and rate is not None
            ]
        )
    return WorkloadResult(
        name=job.name,
        kind=job.kind,
        peer=job.peer,
        settings=job.settings,
        batch_size=job.spec["batch_size"],
        height=job.spec["height"],
        width=job.spec["width"],
        images=images,
        seconds=seconds,
        gflop=None if flops is None else flops / 1e9,
        gflops=None if flops is None else flops / 1e9 / seconds.median,
        peak_part=part,
        peak_memory_bytes=_memory(job.name, measured),
        import_seconds=_median(ready.import_seconds for ready in measured.readiness[job.name]),
        start_seconds=_median(ready.start_seconds for ready in measured.readiness[job.name]),
        first_step_seconds=_first_step(job.name, measured),
    )


def _ratio(name: str, reference: str, measured: Measurement) -> Ratio:
    images, other_images = (measured.readiness[n][0].images or 1 for n in (name, reference))
    memory, other_memory = (_memory(n, measured) for n in (name, reference))
    first_step, other_first_step = (_first_step(n, measured) for n in (name, reference))
    return Ratio(
        workload=name,
        reference=reference,
        time=Spread.of(
            [other_images / images * r for r in ratios_by_round(measured.rounds, name, reference)]
        ),
        memory=memory / other_memory if memory and other_memory else None,
        first_step=first_step / other_first_step if other_first_step else None,
    )


def _flops(name: str, measured: Measurement) -> float | None:
    return measured.farewells[name][0].flops  # a workload's are the same each time


def _memory(name: str, measured: Measurement) -> int | None:
    memory = _median(farewell.peak_memory_bytes for farewell in measured.farewells[name])
    return None if memory is None else round(memory)


def _first_step(name: str, measured: Measurement) -> float:
    return statistics.median(ready.first_step_seconds for ready in measured.readiness[name])


def _median(values: Iterable[float | None]) -> float | None:
    """Return the median of what was told; None if nothing was."""
    told = [value for value in values if value is not None]
    return statistics.median(told) if told else None


def _rounds_of(name: str, measured: Measurement) -> list[Sequence[float]]:
    return [seconds[name] for seconds in measured.rounds if name in seconds]

"""The runs of a sweep: what is left to do for one, what it took, and what it left in its folder."""

import itertools
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from detector.coco_metrics import SCORE_NAMES
from detector.config import Config, ConfigError, load
from detector.run_page import RunPageError, read_metrics, read_page

COST_FILE = "cost.json"

State = Literal["finished", "cut off", "new"]


@dataclass(frozen=True)
class RunRecord:
    """What one finished run left in its folder.

    `numbers` are the 12 COCO numbers, `classes` AP by class; None where the labels leave one undefined.
    `trained_parameters` are those that any freeze stage trains.  `step_seconds` is the median over the logged
    steps; of a schedule it is the mean of its stages' medians, each with the weight of its steps.  None if no
    step was timed.  `seconds` and `peak_memory_bytes` are the whole process's, None if it was not started by
    the sweep.  `boundaries` are the steps at which a new freeze stage began.
    """

    seed: int
    numbers: dict[str, float | None]
    classes: dict[str, float | None]
    detections: list[dict[str, Any]]
    trained_parameters: int
    parameters: int
    step_seconds: float | None
    seconds: float | None
    peak_memory_bytes: int | None
    metrics: list[dict[str, Any]]
    boundaries: tuple[int, ...] = ()


def run_state(folder: Path, config: Config) -> State:
    """Say what is left to do for the run in `folder`, whose resolved configuration is to be `config`.

    A run without a checkpoint counts as new.  A key that the run's version did not have yet counts as left
    out.  Raises ValueError if the folder holds a run with another configuration.
    """
    written = folder / "config.yaml"
    if not written.is_file():
        return "new"
    had, wants = (_flat(each.model_dump(mode="json")) for each in (load(written), config))
    changed = [key for key in {**had, **wants} if had.get(key) != wants.get(key)]
    if changed:
        shown = ", ".join(f"{key} {had.get(key)} -> {wants.get(key)}" for key in changed[:3])
        raise ValueError(
            f"{folder} holds a run with another configuration ({shown}); "
            "name another --output, or delete the folder"
        )
    if (folder / "evaluation.json").is_file() and (folder / "freeze_proof.json").is_file():
        return "finished"
    return "cut off" if (folder / "checkpoints" / "last").exists() else "new"


def add_cost(folder: Path, seconds: float, peak_memory_bytes: int) -> None:
    """Note what a process that trained in `folder` took; a run that was resumed had several."""
    path = folder / COST_FILE
    cost = {"seconds": seconds, "peak_memory_bytes": peak_memory_bytes}
    if path.is_file():
        cost = read_page(
            path,
            lambda before: {
                "seconds": before["seconds"] + seconds,
                "peak_memory_bytes": max(before["peak_memory_bytes"], peak_memory_bytes),
            },
            "delete it: what the run took is counted anew then",
        )
    path.write_text(json.dumps(cost), encoding="utf-8")


def read_run(folder: Path) -> RunRecord:
    """Read a finished run.

    Raises:
        RunPageError: a page is missing or damaged.
    """
    remedy = f"delete {folder} to train the run again"

    def read(name: str, values_of: Callable[[Any], Any]) -> Any:
        return read_page(folder / name, values_of, remedy)

    try:
        settings = load(folder / "config.yaml").train
    except ConfigError as error:
        raise RunPageError(f"{error}; {remedy}") from None
    numbers, classes = read("evaluation.json", _scores)
    trained, every, starts = read("plan.json", _plan)
    metrics = read_metrics(folder / "metrics.jsonl")
    last = max((row["step"] for row in metrics), default=0)
    # A run that was stopped early has stages that it never came to.
    starts = [start for start in starts if start < last]
    seconds, peak = read(COST_FILE, _cost) if (folder / COST_FILE).is_file() else (None, None)
    return RunRecord(
        seed=settings.seed,
        numbers=numbers,
        classes=classes,
        detections=read("detections.json", list),
        trained_parameters=trained,
        parameters=every,
        step_seconds=_step_seconds(metrics, [*starts, last], settings.batch_size),
        seconds=seconds,
        peak_memory_bytes=peak,
        metrics=metrics,
        boundaries=tuple(starts[1:]),
    )


def _scores(page: Mapping[str, Any]) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Return the 12 numbers by name, and AP by class."""
    return {name: page[name] for name in SCORE_NAMES}, {
        name: values["AP"] for name, values in page["classes"].items()
    }


def _cost(page: Mapping[str, Any]) -> tuple[float, int]:
    return page["seconds"], page["peak_memory_bytes"]


def _step_seconds(
    metrics: Sequence[Mapping[str, Any]], bounds: Sequence[int], batch_size: int
) -> float | None:
    """Return the seconds a step takes: per freeze stage the median, of these the mean weighted by steps.

    Stage i spans the steps from bounds[i] to bounds[i + 1]; one in which nothing was timed is left out.
    """
    seconds, steps = 0.0, 0
    for first, end in itertools.pairwise(bounds):
        # A row's `step` counts the steps that are done: that of the stage's first is first + 1.
        rates = [
            row["images_per_second"]
            for row in metrics
            if first < row["step"] <= end and "images_per_second" in row
        ]
        if rates:
            seconds += (end - first) * batch_size / statistics.median(rates)
            steps += end - first
    return seconds / steps if steps else None


def _plan(page: Mapping[str, Any]) -> tuple[int, int, list[int]]:
    """Return how many parameters some freeze stage trains, how many there are, and where the stages begin."""
    sizes: dict[str, int] = {}
    trained = set()
    for stage in page["stages"]:
        for row in stage["plan"]["variables"]:
            sizes[row["path"]] = math.prod(row["shape"])
            if row["fate"] == "trained":
                trained.add(row["path"])
    starts = [stage["from_step"] for stage in page["stages"]]
    return sum(sizes[path] for path in trained), sum(sizes.values()), starts


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat

"""A sweep: the same training under several freezes, and what their runs say about each other.

Pure: variants and run folders in, figures out.  `tools/sweep.py` trains, `detector.sweep_report` draws, and
`detector.sweep_advice` says what follows.
"""

import csv
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from pydantic import Field, ValidationError, field_validator

from detector.coco_metrics import SCORE_NAMES
from detector.config import ConfigError, Section
from detector.paired_interval import (
    CONFIDENCE,
    RESAMPLES,
    Interval,
    Matches,
    average_precision,
    draw_images,
    match_detections,
    paired_interval,
)
from detector.selectors import split_selectors

REFERENCE = "none"
COST_FILE = "cost.json"

State = Literal["finished", "cut off", "new"]


class Variant(Section):
    """One freeze of a sweep; its name is also its folder's."""

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+-]*$")
    freeze: tuple[str, ...] = ()
    train_only: tuple[str, ...] = ()

    @field_validator("freeze", "train_only", mode="before")
    @classmethod
    def _selectors(cls, value: Any) -> Any:
        return tuple(split_selectors(value)) if value else ()

    @property
    def options(self) -> list[str]:
        """The variant as options of `tools/train.py`."""
        return freeze_options(self.freeze, self.train_only)


class SweepConfig(Section):
    """A sweep's file: the configuration to start from, what is set in it, and the variants."""

    config: Path | None = None
    set: tuple[str, ...] = ()
    variants: tuple[Variant, ...] = ()


@dataclass(frozen=True)
class RunRecord:
    """What one finished run left in its folder.

    `numbers` are the 12 COCO numbers, `classes` AP by class; None where the labels leave one undefined.
    `step_seconds` is the median over the logged steps, None if none was timed; `seconds` and
    `peak_memory_bytes` are the whole process's, None if it was not started by the sweep.
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


@dataclass(frozen=True)
class VariantResult:
    """What the runs of a variant say together.

    Numbers are means over the seeds, `step_seconds` their median, `peak_memory_bytes` their maximum.
    `difference` and `class_differences` are those from full fine-tuning over the seeds that both finished;
    None for full fine-tuning itself, or without such a seed.  `curves` are {"loss" or "AP": [(step, mean)]}.
    """

    name: str
    freeze: tuple[str, ...]
    train_only: tuple[str, ...]
    seeds: tuple[int, ...]
    numbers: dict[str, float | None]
    classes: dict[str, float | None]
    ap_by_seed: tuple[float, ...]
    trained_parameters: int
    parameters: int
    step_seconds: float | None
    seconds: float | None
    peak_memory_bytes: int | None
    difference: Interval | None
    class_differences: dict[str, Interval]
    curves: dict[str, list[tuple[int, float]]]

    @property
    def ap(self) -> float:
        """The mean AP; 0 where the labels leave it undefined."""
        return self.numbers["AP"] or 0.0


@dataclass(frozen=True, eq=False)
class SweepResult:
    """The results of a sweep, the reference first.

    `matches` are those of each variant's first seed, by name.
    """

    variants: tuple[VariantResult, ...]
    num_images: int
    matches: dict[str, Matches]

    @property
    def reference(self) -> VariantResult | None:
        """Full fine-tuning; None if none of its runs finished."""
        return next((variant for variant in self.variants if variant.name == REFERENCE), None)


def freeze_options(freeze: Sequence[str], train_only: Sequence[str]) -> list[str]:
    """Return selectors as options of `tools/train.py`."""
    options = [word for selector in freeze for word in ("--freeze", selector)]
    options += [word for selector in train_only for word in ("--train-only", selector)]
    return options or ["--freeze", "none"]


def is_sweep(path: Path) -> bool:
    """Whether a YAML file lists variants; any other is the configuration of one experiment."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return False
    return isinstance(values, dict) and "variants" in values


def read_sweep(path: Path) -> SweepConfig:
    """Read a sweep's file; its `config` is relative to it.

    Raises ConfigError naming the file and the key.
    """
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        sweep = SweepConfig.model_validate(values)
    except ValidationError as error:
        lines = [
            f"{path}: {'.'.join(map(str, issue['loc']))}: {issue['msg'].removeprefix('Value error, ')}"
            for issue in error.errors()
        ]
        raise ConfigError("\n".join(lines)) from None
    return sweep.model_copy(update={"config": path.parent / sweep.config}) if sweep.config else sweep


def parse_variant(text: str) -> Variant:
    """Return the variant of `--variant name=selectors`; raises ConfigError if it is not one."""
    name, separator, selectors = text.partition("=")
    if not separator or not selectors:
        raise ConfigError(f"--variant takes name=selectors, like rpn=rpn; got {text!r}")
    try:
        return Variant(name=name.strip(), freeze=(selectors,))
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ConfigError(f"--variant {text}: {reason}") from None


def with_reference(variants: Sequence[Variant]) -> list[Variant]:
    """Return the variants with full fine-tuning, which all are compared with, first.

    Raises ConfigError for two of one name, and for a `none` that freezes something.
    """
    names = [variant.name for variant in variants]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"two variants are called {twice[0]!r}; give every variant a name of its own")
    reference = next((variant for variant in variants if variant.name == REFERENCE), None)
    if reference is None:
        reference = Variant(name=REFERENCE, freeze=("none",))
    elif reference.options != ["--freeze", "none"]:
        raise ConfigError(
            f"the variant {REFERENCE!r} is full fine-tuning, which the others are compared with; "
            "call one that freezes something otherwise"
        )
    return [reference, *(variant for variant in variants if variant.name != REFERENCE)]


def run_state(folder: Path, config_yaml: str) -> State:
    """Say what is left to do for the run in `folder`, whose resolved configuration is to be `config_yaml`.

    A run without a checkpoint counts as new.  Raises ValueError if the folder holds a run with another
    configuration.
    """
    written = folder / "config.yaml"
    if not written.is_file():
        return "new"
    had, wants = (_flat(yaml.safe_load(text)) for text in (written.read_text(encoding="utf-8"), config_yaml))
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
    before = json.loads(path.read_text()) if path.is_file() else {"seconds": 0.0, "peak_memory_bytes": 0}
    cost = {
        "seconds": before["seconds"] + seconds,
        "peak_memory_bytes": max(before["peak_memory_bytes"], peak_memory_bytes),
    }
    path.write_text(json.dumps(cost), encoding="utf-8")


def read_run(folder: Path) -> RunRecord:
    """Read a finished run."""

    def read(name: str) -> Any:
        return json.loads((folder / name).read_text(encoding="utf-8"))

    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    scores = read("evaluation.json")
    trained, every = _parameters(read("plan.json"))
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rates = [row["images_per_second"] for row in metrics if "images_per_second" in row]
    cost = read(COST_FILE) if (folder / COST_FILE).is_file() else {}
    return RunRecord(
        seed=config["train"]["seed"],
        numbers={name: scores[name] for name in SCORE_NAMES},
        classes={name: values["AP"] for name, values in scores["classes"].items()},
        detections=read("detections.json"),
        trained_parameters=trained,
        parameters=every,
        step_seconds=config["train"]["batch_size"] / statistics.median(rates) if rates else None,
        seconds=cost.get("seconds"),
        peak_memory_bytes=cost.get("peak_memory_bytes"),
        metrics=metrics,
    )


def compare(
    variants: Sequence[Variant],
    runs: Mapping[str, Sequence[RunRecord]],
    ground_truth: Mapping[str, Any],
    resamples: int = RESAMPLES,
) -> SweepResult:
    """Return what the finished runs say; a variant without any is left out.

    Args:
        variants: in the order of the table.
        runs: the finished runs by variant.
        ground_truth: of the images that all of them were scored on, COCO format.
        resamples: how many draws of images the intervals come from.
    """
    num_images = len(ground_truth["images"])
    draws = np.concatenate([np.ones([1, num_images], int), draw_images(num_images, resamples)])
    precisions: dict[str, dict[int, np.ndarray]] = defaultdict(dict)  # [1 + R, K] by variant and seed
    matches: dict[str, Matches] = {}
    for variant in variants:
        for run in runs.get(variant.name, ()):
            matched = match_detections(ground_truth, run.detections)
            matches.setdefault(variant.name, matched)
            precisions[variant.name][run.seed] = average_precision(matched, draws)
    names = [found.name for found in next(iter(matches.values())).classes] if matches else []
    return SweepResult(
        tuple(
            _summarize(variant, runs[variant.name], precisions[variant.name], precisions[REFERENCE], names)
            for variant in variants
            if runs.get(variant.name)
        ),
        num_images,
        matches,
    )


def disagreements(result: SweepResult, count: int) -> list[tuple[int, str, str]]:
    """Return the images on which the variants' first seeds differ most: (image id, best there, worst there).

    A variant's success on an image is F1 at IoU 0.5, of the detections with a score of at least 0.5.
    """
    if len(result.matches) < 2:
        return []
    names = list(result.matches)
    success = np.array([_f1(matches) for matches in result.matches.values()])  # [variants, I]
    spread = success.max(axis=0) - success.min(axis=0)
    image_ids = result.matches[names[0]].image_ids
    return [
        (image_ids[i], names[success[:, i].argmax()], names[success[:, i].argmin()])
        for i in np.argsort(-spread, kind="stable")[:count]
        if spread[i] > 0
    ]


def to_dict(result: SweepResult, advice: str, failed: Sequence[str] = ()) -> dict[str, Any]:
    """Return the JSON values of `sweep.json`; `failed` names the runs that are missing."""
    return {
        "advice": advice,
        "reference": REFERENCE,
        "confidence": CONFIDENCE,
        "resamples": RESAMPLES,
        "num_images": result.num_images,
        "failed": list(failed),
        "variants": [asdict(variant) for variant in result.variants],
    }


def write_csv(path: Path, result: SweepResult) -> None:
    """Write one line per variant; a cell is empty where there is no number."""
    classes = list(result.variants[0].classes) if result.variants else []
    with open(path, "w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(
            [
                *("variant", "freeze", "train_only", "seeds"),
                *SCORE_NAMES,
                *(f"AP {name}" for name in classes),
                *("AP_min", "AP_max", "difference", "difference_low", "difference_high"),
                *("trained_parameters", "step_seconds", "seconds", "peak_memory_bytes"),
            ]
        )
        for v in result.variants:
            bounds = (
                (v.difference.difference, v.difference.low, v.difference.high) if v.difference else [None] * 3
            )
            lines.writerow(
                [
                    *(v.name, ",".join(v.freeze), ",".join(v.train_only), " ".join(map(str, v.seeds))),
                    *(v.numbers[name] for name in SCORE_NAMES),
                    *(v.classes[name] for name in classes),
                    *(min(v.ap_by_seed), max(v.ap_by_seed), *bounds),
                    *(v.trained_parameters, v.step_seconds, v.seconds, v.peak_memory_bytes),
                ]
            )


def _summarize(
    variant: Variant,
    runs: Sequence[RunRecord],
    precisions: Mapping[int, np.ndarray],
    reference: Mapping[int, np.ndarray],
    class_names: Sequence[str],
) -> VariantResult:
    common = [seed for seed in precisions if seed in reference] if variant.name != REFERENCE else []
    pairs = [(precisions[seed], reference[seed]) for seed in common]
    labelled = [k for k in range(len(class_names)) if pairs and not np.isnan(pairs[0][0][0, k])]
    return VariantResult(
        name=variant.name,
        freeze=variant.freeze,
        train_only=variant.train_only,
        seeds=tuple(run.seed for run in runs),
        numbers={name: _mean([run.numbers[name] for run in runs]) for name in SCORE_NAMES},
        classes={name: _mean([run.classes[name] for run in runs]) for name in runs[0].classes},
        ap_by_seed=tuple(run.numbers["AP"] or 0.0 for run in runs),
        trained_parameters=runs[0].trained_parameters,
        parameters=runs[0].parameters,
        step_seconds=_of([run.step_seconds for run in runs], statistics.median),
        seconds=_mean([run.seconds for run in runs]),
        peak_memory_bytes=_of([run.peak_memory_bytes for run in runs], max),
        difference=paired_interval(
            *zip(*((_over_classes(a), _over_classes(b)) for a, b in pairs), strict=True)
        )
        if pairs
        else None,
        class_differences={
            class_names[k]: paired_interval([a[:, k] for a, _ in pairs], [b[:, k] for _, b in pairs])
            for k in labelled
        },
        curves={
            "loss": _mean_curve(runs, "loss"),
            "AP": _mean_curve(runs, "evaluation/AP"),
        },
    )


def _over_classes(precisions: np.ndarray) -> np.ndarray:
    """Return the mean over the classes that a draw has, float [R] of [R, K]; NaN if it has none."""
    counted = ~np.isnan(precisions)
    total = np.where(counted, precisions, 0.0).sum(axis=1)
    return np.divide(total, counted.sum(axis=1), out=np.full(len(total), np.nan), where=counted.any(axis=1))


def _mean_curve(runs: Sequence[RunRecord], key: str) -> list[tuple[int, float]]:
    """Return the mean over the runs at the steps that all of them logged."""
    values: dict[int, list[float]] = defaultdict(list)
    for run in runs:
        for row in run.metrics:
            if row.get(key) is not None:
                values[row["step"]].append(row[key])
    return [(step, statistics.fmean(v)) for step, v in sorted(values.items()) if len(v) == len(runs)]


def _f1(matches: Matches) -> np.ndarray:
    """Return F1 at IoU 0.5 of the detections with a score of at least 0.5 on every image, float [I]."""
    found, wrong, labels = (np.zeros(len(matches.image_ids)) for _ in range(3))
    for of_class in matches.classes:
        sure = of_class.score >= 0.5
        np.add.at(found, of_class.image[sure & of_class.true[0]], 1)
        np.add.at(wrong, of_class.image[sure & of_class.false[0]], 1)
        labels += of_class.labels
    everything = labels + found + wrong
    return np.divide(2 * found, everything, out=np.ones(len(labels)), where=everything > 0)


def _parameters(plan: Mapping[str, Any]) -> tuple[int, int]:
    """Return how many parameters of a run's `plan.json` some freeze stage trains, and how many there are."""
    sizes: dict[str, int] = {}
    trained = set()
    for stage in plan["stages"]:
        for row in stage["plan"]["variables"]:
            sizes[row["path"]] = math.prod(row["shape"])
            if row["fate"] == "trained":
                trained.add(row["path"])
    return sum(sizes[path] for path in trained), sum(sizes.values())


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _of(values: Sequence[Any], summary: Any) -> Any:
    known = [value for value in values if value is not None]
    return summary(known) if known else None


def _mean(values: Sequence[float | None]) -> float | None:
    return _of(values, statistics.fmean)

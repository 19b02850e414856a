"""A sweep's results: what its runs say about each other.

Pure: variants and runs in, figures out.  `tools/sweep.py` trains, `detector.sweep_runs` reads the runs,
`detector.sweep_report` shows, and `detector.sweep_advice` says what follows.
"""

import csv
import shlex
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detector.coco_metrics import SCORE_NAMES
from detector.paired_interval import (
    CONFIDENCE,
    RESAMPLES,
    Interval,
    Matches,
    average_precision,
    draw_images,
    match_detections,
    mean_over_classes,
    paired_interval,
)
from detector.sweep_config import REFERENCE, Variant
from detector.sweep_runs import RunRecord


@dataclass(frozen=True)
class VariantResult:
    """What the runs of a variant say together.

    Numbers are means over the seeds, `step_seconds` their median, `peak_memory_bytes` their maximum.
    `difference` and `class_differences` are those from full fine-tuning over the seeds that both finished;
    None for full fine-tuning itself, or without such a seed.  `curves` are {"loss" or "AP": [(step, mean)]},
    and `boundaries` the steps at which a schedule's next freeze stage begins.  `options` are those of
    `tools/train.py` that make the variant.
    """

    name: str
    options: tuple[str, ...]
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
    boundaries: tuple[int, ...] = ()

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
                *("variant", "options", "seeds"),
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
                    *(v.name, shlex.join(v.options), " ".join(map(str, v.seeds))),
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
        options=tuple(variant.options),
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
            *zip(*((mean_over_classes(a), mean_over_classes(b)) for a, b in pairs), strict=True)
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
        boundaries=runs[0].boundaries,
    )


def _mean_curve(runs: Sequence[RunRecord], key: str) -> list[tuple[int, float]]:
    """Return the mean over the runs at the steps that all of them logged."""
    values: dict[int, list[float]] = defaultdict(list)
    for run in runs:
        for row in run.metrics:
            if row.get(key) is not None:
                values[row["step"]].append(row[key])
    return [(step, statistics.fmean(v)) for step, v in sorted(values.items()) if len(v) == len(runs)]


def _of(values: Sequence[Any], summary: Any) -> Any:
    known = [value for value in values if value is not None]
    return summary(known) if known else None


def _mean(values: Sequence[float | None]) -> float | None:
    return _of(values, statistics.fmean)

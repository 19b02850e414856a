import json

import pytest

from detector.benchmark.jobs import Job
from detector.benchmark.process import Farewell, Readiness
from detector.benchmark.regression import changes, same_machine
from detector.benchmark.result import ResultError, Spread, read_result, summarize
from detector.benchmark.rounds import Measurement, Turn

MACHINE = {
    "cpu": "a CPU",
    "cores": 2,
    "instruction_sets": [],
    "system": "Linux",
    "python": "3",
    "packages": {},
}
SHAPE = {"batch_size": 1, "height": 64, "width": 32}


def result(slow=1.0, memory=3000, flops=2e9):
    """Two rounds of `full` and of `frozen`, which works on two images at once; the machine slows down."""
    jobs = [
        Job("float32 peak", "peak", (), {"precision": "float32"}, Turn(2)),
        Job("full", "train", (), SHAPE, Turn(2)),
        Job("frozen", "train", (), {**SHAPE, "batch_size": 2}, Turn(2), references=("full",)),
    ]
    names = [job.name for job in jobs]
    images = dict(zip(names, (0, 1, 2), strict=True))
    measured = Measurement(
        {name: [Readiness(1.0, 2.0, {"full": 4.0}.get(name, 1.0), images[name])] for name in names},
        {
            "float32 peak": [Farewell(100, 2 * 1000**3)],
            "full": [Farewell(4000, flops)],
            "frozen": [Farewell(memory, None)],
        },
        [
            {"float32 peak": [0.01, 0.01], "full": [0.1, 0.1], "frozen": [0.12 * slow, 0.12 * slow]},
            {"float32 peak": [0.02, 0.02], "full": [0.2, 0.2], "frozen": [0.16 * slow, 0.16 * slow]},
        ],
    )
    return summarize("small", "python tools/benchmark.py", jobs, measured, MACHINE, 2)


def test_every_start_multiplies_matrices_of_its_own_size():
    jobs = [
        Job("float32 peak", "peak", (), {"precision": "float32"}, Turn(1)),
        Job("full", "train", (), SHAPE, Turn(1)),
    ]
    ready = Readiness(1.0, 2.0, 4.0, 1)
    measured = Measurement(
        {job.name: [ready, ready, ready] for job in jobs},
        {
            "float32 peak": [Farewell(100, 2 * side**3) for side in (2000, 1000, 1000)],
            "full": [Farewell(4000, 2e9)] * 3,
        },
        [{"float32 peak": [seconds], "full": [0.1]} for seconds in (0.16, 0.16, 0.02, 0.02, 0.02, 0.02)],
    )
    found = summarize("starts", "python tools/benchmark.py", jobs, measured, MACHINE, 2, starts=3)
    (peak,) = found.peaks
    assert (peak.side, peak.gflops.q1, peak.gflops.q3) == (1000, pytest.approx(100), pytest.approx(100))
    (full,) = found.workloads
    assert full.peak_part.q1 == full.peak_part.q3 == pytest.approx(0.2)


def test_a_spread_is_median_and_quartiles():
    spread = Spread.of([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (spread.median, spread.q1, spread.q3, spread.count) == (3.0, 2.0, 4.0, 5)


def test_ratios_are_those_of_each_round():
    (ratio,) = result().ratios
    # Per image 0.06 of 0.1 in the first round, 0.08 of 0.2 in the second: not 0.14 of 0.3, nor the medians'.
    assert ratio.time.median == pytest.approx((0.6 + 0.4) / 2)
    assert (ratio.time.q1, ratio.time.q3, ratio.time.count) == (pytest.approx(0.45), pytest.approx(0.55), 2)
    assert (ratio.memory, ratio.first_step) == (0.75, 0.25)


def test_arithmetic_in_parts_of_the_peak():
    measured = result()
    (peak,) = measured.peaks
    assert (peak.side, peak.gflops.median) == (1000, pytest.approx((200 + 100) / 2))
    full, frozen = measured.workloads
    # 2 GFLOP in 0.1 s are a tenth of 200 GFLOP/s, and so they are when both are half as fast.
    assert full.peak_part.median == full.peak_part.q1 == pytest.approx(0.1)
    assert full.gflops == pytest.approx(2 / 0.15)
    assert frozen.peak_part is None and frozen.gflop is None
    assert frozen.seconds_per_image == pytest.approx(0.07)


def test_operations_counted_otherwise():
    jobs = [
        Job("float32 peak", "peak", (), {"precision": "float32"}, Turn(1)),
        Job("infer", "infer", (), SHAPE, Turn(1), gflop=91),
    ]
    ready = Readiness(None, None, 1.0, 2)
    measured = Measurement(
        {"float32 peak": [ready], "infer": [ready]},
        {"float32 peak": [Farewell(None, 2e9)], "infer": [Farewell(None, 5e9)]},
        [{"float32 peak": [0.01], "infer": [1.0]}],
    )
    (infer,) = summarize("x", "x", jobs, measured, MACHINE, 1).workloads
    assert infer.gflop == 182 and infer.peak_part.median == pytest.approx(182 / 200)


def test_what_is_measured_once_a_start_is_a_median_over_starts():
    jobs = [
        Job("full", "train", (), SHAPE, Turn(1)),
        Job("frozen", "train", (), SHAPE, Turn(1), references=("full",)),
    ]
    measured = Measurement(
        {
            "full": [
                Readiness(1.0, start, first, 1) for start, first in ((5.0, 4.0), (9.0, 8.0), (6.0, 2.0))
            ],
            "frozen": [Readiness(None, None, first, 1) for first in (1.0, 1.0, 7.0)],
        },
        {
            "full": [Farewell(size, 1e9) for size in (300, 100, 200)],
            "frozen": [Farewell(100, None), Farewell(100, None), Farewell(None, None)],
        },
        [
            {"full": [1.0], "frozen": [0.5]},
            {"full": [2.0], "frozen": [0.8]},
            {"full": [1.0], "frozen": [0.6]},
        ],
    )
    shown = summarize("x", "x", jobs, measured, MACHINE, 1, 3)
    full, frozen = shown.workloads
    assert (full.first_step_seconds, full.start_seconds, full.peak_memory_bytes) == (4.0, 6.0, 200)
    assert (frozen.start_seconds, frozen.peak_memory_bytes) == (None, 100)
    (ratio,) = shown.ratios
    assert (ratio.time.median, ratio.time.count) == (0.5, 3)
    assert (ratio.memory, ratio.first_step) == (0.5, 0.25)
    assert shown.starts == 3


def test_a_result_comes_back_from_its_file(tmp_path):
    path = tmp_path / "small.json"
    result().write(path)
    assert read_result(path) == result()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no result .*small.json: run the benchmark without --compare"),
        ("not JSON", "is no benchmark's result .*Invalid JSON"),
        ('{"format": 1}', "is no benchmark's result .*Field required"),
        ("FORMAT 2", "is no benchmark's result .*format"),
    ],
)
def test_a_file_that_is_none(text, message, tmp_path):
    path = tmp_path / "small.json"
    if text == "FORMAT 2":
        text = json.dumps({**result().model_dump(mode="json"), "format": 2})
    if text is not None:
        path.write_text(text)
    with pytest.raises(ResultError, match=message):
        read_result(path)


def regressions(stored, fresh):
    return [str(change) for change in changes(stored, fresh) if change.is_regression]


def test_a_regression_of_more_than_a_tenth_is_told():
    assert regressions(result(), result()) == []
    assert regressions(result(), result(slow=1.05, memory=3150)) == []
    assert regressions(result(), result(slow=0.5)) == []
    assert regressions(result(), result(slow=1.12)) == ["frozen / full, time: 0.500 -> 0.560 (12% worse)"]
    assert regressions(result(), result(memory=3600)) == [
        "frozen / full, peak memory: 0.750 -> 0.900 (20% worse)"
    ]


def test_less_of_the_peak_is_worse():
    assert regressions(result(), result(flops=1.9e9)) == []
    assert regressions(result(), result(flops=1.6e9)) == [
        "full, part of the float32 peak: 0.100 -> 0.080 (25% worse)"
    ]
    assert regressions(result(flops=1.6e9), result()) == []


def test_what_is_not_measured_any_more_is_told():
    fresh = result()
    gone = fresh.model_copy(update={"ratios": ()})
    assert regressions(fresh, gone) == [
        "frozen / full, time: was 0.500, is not measured any more",
        "frozen / full, peak memory: was 0.750, is not measured any more",
    ]
    assert regressions(gone, fresh) == []


def test_machines_are_told_apart():
    other = result().model_copy(update={"machine": {**MACHINE, "cores": 8}})
    assert same_machine(result(), result()) and not same_machine(result(), other)

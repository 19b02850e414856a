import struct

import pytest
from rich.console import Console

from detector.benchmark.figure import draw
from detector.benchmark.machine import machine_facts
from detector.benchmark.result import BenchmarkResult, Peak, Ratio, Spread, WorkloadResult
from detector.benchmark.table import duration, markdown, precise, terminal_tables


def result(ratios=True):
    """Steps of 1, 2, 4 and 8 images, 1 s each but for the last four, which take 2 s."""
    workloads = [
        WorkloadResult(
            **{"name": f"batch | {size}", "kind": "train", "peer": None, "settings": (), "batch_size": size},
            **{
                "height": 64,
                "width": 48,
                "images": size,
                "seconds": Spread.of([seconds - 0.5, seconds, 12.5]),
            },
            **{"gflop": 2.0, "gflops": 2.0 / seconds, "peak_part": Spread.of([0.5]), "import_seconds": None},
            **{"peak_memory_bytes": 2**30, "start_seconds": None, "first_step_seconds": 0.0123},
        )
        for size, seconds in ((1, 1.0), (2, 2.0), (4, 4.0), (8, 12.0))
    ]
    ratio = Ratio(
        workload="batch | 8",
        reference="batch | 1",
        time=Spread.of([1.25, 1.5, 1.75]),
        memory=None,
        first_step=1.0,
    )
    machine = {"cpu": "a CPU", "cores": 2, "instruction_sets": ["fma"], "system": "Linux", "python": "3.11"}
    return BenchmarkResult(
        name="small",
        command="python tools/benchmark.py small.yaml",
        machine={**machine, "packages": {"tensorflow": "2.20.0"}},
        rounds=3,
        peaks=(Peak(precision="float32", side=2048, gflops=Spread.of([452.0])),),
        workloads=tuple(workloads),
        ratios=(ratio,) if ratios else (),
        samples=(),
    )


def test_the_terminals_tables():
    console = Console(width=130)
    with console.capture() as capture:
        console.print(terminal_tables(result()))
    rows = [" ".join(line.split()) for line in capture.get().splitlines()]
    assert "batch | 1 1 48x64 1.00 s 750 ms–6.75 s 1 2 50% – 1.00 GiB 12.3 ms" in rows
    assert "batch | 8 8 48x64 12.0 s 11.8–12.2 s 0.667 0.167 50% 1.500 1.00 GiB 12.3 ms" in rows
    assert "batch | 8 batch | 1 1.500 1.375–1.625 – 1.00" in rows
    assert "4 4.00 s 1,000 ms 1,000 ms 1.00 GiB" in rows
    assert "8 12.0 s 1,500 ms 2,000 ms 1.00 GiB bend" in rows
    assert any("float32 452 GFLOP/s (452–452, side 2048)" in row for row in rows)


def test_the_page_beside_the_result():
    page = markdown(result())
    assert page.startswith("# small\n\n```sh\npython tools/benchmark.py small.yaml\n```\n")
    assert "2 cores of a CPU (fma), Linux, TensorFlow 2.20.0, Python 3.11" in page
    assert "| batch \\| 8 | batch \\| 1 | 1.500 | 1.375–1.625 | – | 1.00 |" in page
    tables = [block.splitlines() for block in page.split("\n\n") if block.startswith("|")]
    assert len(tables) == 3
    for table in tables:
        assert len({line.replace("\\|", "").count("|") for line in table}) == 1


def test_the_picture_has_a_panel_for_all_there_is(tmp_path):
    def height(drawn):
        draw(drawn, tmp_path / "small.png")
        return struct.unpack(">II", (tmp_path / "small.png").read_bytes()[16:24])[1]

    assert height(result()) > height(result(ratios=False)) > 100
    alone = result().workloads[0].model_copy(update={"peak_part": None})
    only = result(ratios=False).model_copy(update={"workloads": (alone,)})
    assert height(only) > 100, "nothing to compare with: its time"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.0000012, "1.20 µs"),
        (0.00234, "2.34 ms"),
        (0.0996, "99.6 ms"),
        (0.2345, "234 ms"),
        (9.876, "9.88 s"),
        (98.76, "98.8 s"),
        (1234.0, "1,234 s"),
    ],
)
def test_durations_have_three_digits(seconds, shown):
    assert duration(seconds) == shown


def test_prices_of_a_pixel_are_in_small_units():
    assert (precise(1.5e-9), precise(2.0)) == ("1.50 ns", "2,000 ms")


def test_a_machine_is_told_by_its_cpu_and_not_by_its_name(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\nmodel name\t: A CPU\nflags\t: fpu avx2 avx512_bf16 avx512_bf1\n")
    facts = machine_facts(cpuinfo)
    assert (facts["cpu"], facts["instruction_sets"]) == ("A CPU", ["avx2", "avx512_bf16"])
    assert facts["cores"] >= 1 and facts["packages"]["tensorflow"].startswith("2.20")
    assert set(facts) == {"cpu", "cores", "instruction_sets", "system", "python", "packages"}
    assert machine_facts(tmp_path / "none")["instruction_sets"] == []

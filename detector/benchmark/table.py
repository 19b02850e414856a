"""A benchmark's result for people to read: tables for the terminal and, with the same cells, in Markdown."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from detector.benchmark.result import BenchmarkResult, Ratio, Spread, WorkloadResult
from detector.benchmark.scaling import Scaling, scaling_of

_NONE = "–"
_WORKLOAD_COLUMNS = (
    *("workload", "batch", "size", "time", "quartiles", "images/s", "GFLOP/s", "of peak", "ratio"),
    *("memory", "first step"),
)


@dataclass(frozen=True)
class TextTable:
    """A heading, column names and rows of text; the first column is flush left, the others right."""

    heading: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def terminal_tables(result: BenchmarkResult) -> Group:
    """Return the tables for `rich.print`, at most 110 columns wide with usual names."""
    parts: list[Table | Text] = []
    for table in _tables(result):
        shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        shown.add_column(table.columns[0], overflow="fold", min_width=12)
        for column in table.columns[1:]:
            shown.add_column(column, justify="right", no_wrap=True)
        for row in table.rows:
            shown.add_row(*(Text(cell) for cell in row))
        parts += [Text(table.heading, style="bold"), shown, Text()]
    return Group(*parts, Text(_footer(result)))


def markdown(result: BenchmarkResult) -> str:
    """Return the page that is stored beside the JSON: the command, the machine, and the tables."""
    lines = [f"# {result.name}", "", "```sh", result.command, "```", "", _machine_line(result), ""]
    for table in _tables(result):
        lines += [f"**{table.heading}**", ""]
        lines.append("| " + " | ".join(table.columns) + " |")
        lines.append("| --- |" + " ---: |" * (len(table.columns) - 1))
        lines += ["| " + " | ".join(_escape(cell) for cell in row) + " |" for row in table.rows]
        lines.append("")
    return "\n".join([*lines, _footer(result), ""])


def _tables(result: BenchmarkResult) -> list[TextTable]:
    tables = [
        TextTable(
            f"{result.name}: medians of {_rounds(result)}",
            _WORKLOAD_COLUMNS,
            [_workload_cells(workload, result.ratios) for workload in result.workloads],
        )
    ]
    if result.ratios:
        tables.append(
            TextTable(
                "In parts of the reference: time per image by rounds, peak memory, first step",
                ("workload", "reference", "time", "quartiles", "memory", "first step"),
                [_ratio_cells(ratio) for ratio in result.ratios],
            )
        )
    tables += [_scaling_table(scaling) for scaling in scaling_of(result.workloads)]
    return tables


def _rounds(result: BenchmarkResult) -> str:
    rounds = f"{result.rounds} alternating round{'' if result.rounds == 1 else 's'}"
    return rounds if result.starts == 1 else f"{rounds} in each of {result.starts} starts"


def _workload_cells(workload: WorkloadResult, ratios: Sequence[Ratio]) -> tuple[str, ...]:
    first = next((ratio for ratio in ratios if ratio.workload == workload.name), None)
    per_image = workload.seconds_per_image
    return (
        workload.name,
        str(workload.batch_size),
        f"{workload.width}x{workload.height}",
        duration(workload.seconds.median),
        _quartiles(workload.seconds, duration),
        _NONE if per_image is None else f"{1 / per_image:.3g}",
        _NONE
        if workload.gflops is None
        else f"{workload.gflops:.3g}"
        if workload.gflops < 100
        else f"{workload.gflops:,.0f}",
        _NONE if workload.peak_part is None else f"{workload.peak_part.median:.0%}",
        _NONE if first is None else f"{first.time.median:.3f}",
        memory(workload.peak_memory_bytes),
        duration(workload.first_step_seconds),
    )


def _ratio_cells(ratio: Ratio) -> tuple[str, ...]:
    return (
        ratio.workload,
        ratio.reference,
        f"{ratio.time.median:.3f}",
        _quartiles(ratio.time, lambda value: f"{value:.3f}"),
        _NONE if ratio.memory is None else f"{ratio.memory:.2f}",
        _NONE if ratio.first_step is None else f"{ratio.first_step:.2f}",
    )


def _scaling_table(scaling: Scaling) -> TextTable:
    return TextTable(
        f"{scaling.kind} by {scaling.axis}: the cost of one more; a bend is where it changes by a fifth",
        (scaling.axis, "time", f"per {scaling.unit}", f"per further {scaling.unit}", "memory", ""),
        [
            (
                f"{point.at:,}",
                duration(point.seconds),
                precise(point.average),
                _NONE if point.marginal is None else precise(point.marginal),
                memory(point.memory_bytes),
                "bend" if point.is_bend else "",
            )
            for point in scaling.points
        ],
    )


def duration(seconds: float) -> str:
    """Return seconds to three digits, in the unit that people say them in."""
    if seconds < 0.9995:
        return precise(seconds)
    return (
        f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s" if seconds < 100 else f"{seconds:,.0f} s"
    )


def precise(seconds: float) -> str:
    """Return seconds to three digits in ms, µs or ns."""
    for factor, unit in ((1e3, "ms"), (1e6, "µs")):
        if abs(seconds) * factor >= 0.9995:
            value = seconds * factor
            return f"{value:,.0f} {unit}" if abs(value) >= 99.95 else f"{value:#.3g} {unit}"
    return f"{seconds * 1e9:#.3g} ns"


def memory(size: int | None) -> str:
    """Return bytes in GiB."""
    return _NONE if size is None else f"{size / 2**30:.2f} GiB"


def _quartiles(spread: Spread, text: Callable[[float], str]) -> str:
    low, high = text(spread.q1), text(spread.q3)
    number, _, unit = low.partition(" ")
    return f"{number}–{high}" if unit == high.partition(" ")[2] else f"{low}–{high}"


def _machine_line(result: BenchmarkResult) -> str:
    machine = result.machine
    sets = ", ".join(machine["instruction_sets"]) or "no vector instructions known"
    return (
        f"{machine['cores']} cores of {machine['cpu']} ({sets}), {machine['system']}, "
        f"TensorFlow {machine['packages']['tensorflow']}, Python {machine['python']}"
    )


def _footer(result: BenchmarkResult) -> str:
    peaks = "; ".join(
        f"{peak.precision} {peak.gflops.median:,.0f} GFLOP/s "
        f"({peak.gflops.q1:,.0f}–{peak.gflops.q3:,.0f}, side {peak.side})"
        for peak in result.peaks
    )
    return f"Matrix product in the same rounds: {peaks}. Parts of peak are of the float32 one."


def _escape(cell: str) -> str:
    return cell.replace("|", "\\|")

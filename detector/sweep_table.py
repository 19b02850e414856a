"""The results of a sweep for the terminal."""

from rich import box
from rich.table import Table
from rich.text import Text

from detector.sweep import SweepResult, VariantResult


def sweep_table(result: SweepResult) -> Table:
    """Return the table for `rich.print`, at most 100 columns wide longer names folded.

    A difference is marked where its interval excludes zero: ▲ above full fine-tuning, ▼ below.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("variant", overflow="fold", min_width=12, max_width=28)
    for heading in ("AP", "seeds ±", "AP50", "AP − full, 95 %", "trains", "step", "memory", "total"):
        table.add_column(heading, justify="right", no_wrap=True)
    for variant in result.variants:
        table.add_row(Text(variant.name), *(Text(cell) for cell in _cells(variant)))
    return table


def seed_spread(variant: VariantResult) -> float | None:
    """Return half of the distance between the highest and the lowest AP of the seeds; None for one seed."""
    if len(variant.ap_by_seed) < 2:
        return None
    return (max(variant.ap_by_seed) - min(variant.ap_by_seed)) / 2


def difference_text(variant: VariantResult) -> str:
    """Return the difference with its interval, marked where it excludes zero."""
    interval = variant.difference
    if interval is None:
        return "–"
    mark = "▲" if interval.above_zero else "▼" if interval.below_zero else " "
    return f"{interval.difference:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}] {mark}"


def duration(seconds: float | None) -> str:
    """Return seconds as people say them."""
    if seconds is None:
        return "–"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds // 60:.0f}m{seconds % 60:02.0f}s"


def memory(size: int | None) -> str:
    """Return bytes in GiB."""
    return "–" if size is None else f"{size / 2**30:.1f} GiB"


def _cells(variant: VariantResult) -> list[str]:
    spread, ap50 = seed_spread(variant), variant.numbers["AP50"]
    return [
        f"{variant.ap:.3f}",
        "–" if spread is None else f"{spread:.3f}",
        "–" if ap50 is None else f"{ap50:.3f}",
        difference_text(variant),
        f"{variant.trained_parameters / variant.parameters:.0%}",
        duration(variant.step_seconds),
        memory(variant.peak_memory_bytes),
        duration(variant.seconds),
    ]

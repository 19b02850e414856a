import io

from rich.console import Console
from test_sweep_advice import variant

from detector.sweep import SweepResult
from detector.sweep_table import sweep_table


def test_the_table_in_the_terminal():
    worse = variant("feature_extractor+box_classifier/tower", (-0.1, -0.15, -0.05))
    result = SweepResult((variant("none"), worse, variant("rpn", (0.0, -0.02, 0.02))), 100, {})
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(sweep_table(result))
    lines = console.export_text().splitlines()
    assert "…" not in "".join(lines)
    marked = [line for line in lines if "▼" in line or "▲" in line]
    assert len(marked) == 1 and marked[0].startswith("feature_extractor+") and "-0.100 [" in marked[0]
    assert any(line.startswith("rpn ") and "+0.000 [-0.020, +0.020]" in line for line in lines)

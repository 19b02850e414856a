"""The reference of the configuration's keys says what the schema says."""

import re
from pathlib import Path

from detector.config_reference import page

STORED = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"


def test_the_stored_page_is_that_of_the_schema():
    remedy = "write it anew: python -m detector.config_reference > docs/configuration.md"
    assert STORED.read_text() == page(), remedy


def test_every_key_has_a_meaning():
    untold = re.findall(r"^\| `(\w+)` .*\|  \|$", page(), re.MULTILINE)
    assert set(untold) == {"kind", "format", "domain", "split", "resizer"}  # their headings and values say it


def test_a_row_says_values_bounds_default_and_meaning():
    assert (
        "| `batch_size` | whole number ≥ 1 | `64` | Proposals that its losses draw of an image. |" in page()
    )
    assert "| `momentum` | number ≥ 0 and < 1 | `0.9` | Of sgd. |" in page()
    assert "| `topology` | `keras`, `slim`, `garden` | `keras` |" in page()
    assert "## `data.train` and `data.evaluate` with `format: voc`" in page()
    assert "| `height` | whole number ≥ 33 | required | Pixels. |" in page()

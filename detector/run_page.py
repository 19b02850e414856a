"""The pages of a run's folder, read back: an error says which is missing or damaged, and what to do."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

Page = TypeVar("Page")


class RunPageError(ValueError):
    """A file of a run's folder that cannot be used; the message names it and says what to do."""


def read_page(path: Path, read: Callable[[Any], Page], remedy: str) -> Page:
    """Return what `read` makes of the JSON values in the file `path`.

    Args:
        path: of the page.
        read: raises ValueError, KeyError or TypeError for values that are not those that were written.
        remedy: what to do if it cannot be read, for the message.

    Raises:
        RunPageError: the page is not there, is no JSON, or `read` raised.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RunPageError(f"{path}: no such file; {remedy}") from None
    except UnicodeDecodeError as error:
        raise RunPageError(f"{path} is damaged: expected JSON: {error}; {remedy}") from None
    try:
        values = json.loads(text)
    except ValueError as error:
        raise RunPageError(f"{path} is damaged: expected JSON: {error}; {remedy}") from None
    try:
        return read(values)
    except KeyError as error:
        raise RunPageError(f"{path} is damaged: it lacks the key {error}; {remedy}") from None
    except ValueError as error:
        raise RunPageError(f"{path} is damaged: {error}; {remedy}") from None
    except (TypeError, AttributeError) as error:
        raise RunPageError(f"{path} is damaged: other values than were written ({error}); {remedy}") from None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a `metrics.jsonl`; a last line that a killed run left half written is dropped.

    Raises:
        RunPageError: the file is not there, or another line is damaged.
    """
    if not path.is_file():
        raise RunPageError(f"{path}: no such file; delete {path.parent} to train the run again")
    rows = []
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line.decode("utf-8"))
        except ValueError as error:
            if number == len(lines):
                break
            raise _damaged(path, number, f"expected JSON: {error}") from None
        if not isinstance(row, dict) or "step" not in row:
            raise _damaged(path, number, f"expected a mapping with a 'step', got {line.decode()[:40]}")
        rows.append(row)
    return rows


def _damaged(path: Path, line: int, what: str) -> RunPageError:
    remedy = "delete the line, which the run does not need to go on"
    return RunPageError(f"{path}: line {line} is damaged: {what}; {remedy}")

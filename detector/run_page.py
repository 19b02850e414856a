"""The JSON pages of a run's folder, read back: an error says which is missing or damaged, and what to do."""

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

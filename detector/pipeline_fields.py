"""Reading a parsed protobuf message so that no field of it is lost.

Whoever reads a message takes its fields one by one; what cannot be honoured becomes a `Note`, and what nobody
asked for is found at the end.  A wrong type is a note too, so that one error lists everything.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detector.protobuf_text import Message, Word


@dataclass(frozen=True)
class Note:
    """A setting that is not honoured as it stands, or not at all.

    `field` is its path in the file, `value` what it says there, `consequence` what happens instead.  `key` is
    the configuration's that the field sets, where the note holds only while nothing else sets it.
    """

    field: str
    value: str
    consequence: str
    changes_results: bool
    key: str | None = None

    def __str__(self) -> str:
        return f"{self.field}: {self.value} ({self.consequence})"


class Account:
    """What is noted of one file, and which messages of it were opened."""

    def __init__(self) -> None:
        self.notes: list[Note] = []
        self._opened: list[Fields] = []

    def open(self, message: Message, path: str = "") -> "Fields":
        """Return a reader of `message`, whose fields will have to be taken before `close`."""
        fields = Fields(message, path, self)
        self._opened.append(fields)
        return fields

    def close(self) -> None:
        """Note every field that nobody took."""
        for fields in self._opened:
            fields.note_untaken()


class Fields:
    """One message, from which fields are taken; an absent field takes its default, as in proto2."""

    def __init__(self, message: Message, path: str, account: Account):
        self._message = dict(message)
        self._path = path
        self._account = account
        self._known: list[str] = []

    def path_of(self, name: str) -> str:
        """Return the path of a field from the top of the file."""
        return f"{self._path}.{name}" if self._path else name

    def has(self, name: str) -> bool:
        """Return whether the message has the field (taken or not: ask before taking)."""
        return name in self._message

    def note(
        self, name: str, value: Any, consequence: str, changes_results: bool, key: str | None = None
    ) -> None:
        """Note what happens about the field `name`; `key` is that of `Note`."""
        self._account.notes.append(Note(self.path_of(name), _shown(value), consequence, changes_results, key))

    def integer(self, name: str, default: int) -> int:
        """Take a whole number."""
        return self._single(name, default, "a whole number", lambda value: type(value) is int)

    def required_integer(self, name: str) -> int:
        """Take a whole number of 1 or more that has no default."""
        value = self.integer(name, 0)
        if value < 1:
            self.note(name, value or "absent", "expected a whole number of 1 or more", changes_results=True)
        return value

    def number(self, name: str, default: float) -> float:
        """Take a number, to float32, which all of the API's are."""
        return _float32(self._single(name, default, "a number", _is_number))

    def text(self, name: str, default: str = "") -> str:
        """Take a quoted string."""
        return self._single(name, default, "a quoted string", lambda value: type(value) is str)

    def boolean(self, name: str, default: bool) -> bool:
        """Take a truth value."""
        truths = {"t": True, "f": False, 1: True, 0: False}  # 1 is True, and 0 is False, to a dict
        value = self._single(
            name, default, "true or false", lambda value: type(value) in (bool, int, Word) and value in truths
        )
        return truths[value]

    def word(self, name: str, default: str, choices: Sequence[str]) -> str:
        """Take the name of an enumeration's value."""
        expected = "one of " + ", ".join(choices)
        return str(
            self._single(name, default, expected, lambda value: type(value) is Word and value in choices)
        )

    def numbers(self, name: str) -> list[float]:
        """Take a repeated number, as `number` does."""
        return [_float32(value) for value in self._take(name, "a number", _is_number)]

    def texts(self, name: str) -> list[str]:
        """Take a repeated quoted string."""
        return self._take(name, "a quoted string", lambda value: type(value) is str)

    def message(self, name: str) -> "Fields":
        """Take a message; an absent one reads like an empty one."""
        value = self._single(name, {}, "a message", lambda value: isinstance(value, dict))
        return self._account.open(value, self.path_of(name))

    def messages(self, name: str) -> list["Fields"]:
        """Take a repeated message."""
        values = self._take(name, "a message", lambda value: isinstance(value, dict))
        return [
            self._account.open(value, self.path_of(name) + (f"[{index}]" if len(values) > 1 else ""))
            for index, value in enumerate(values)
        ]

    def one_of(self, *names: str) -> str | None:
        """Return which of the alternatives the message has; more than one is noted, none is None."""
        self._known += names
        given = [name for name in names if name in self._message]
        for name in given[1:]:
            self.note(name, self._message.pop(name), f"only one of {', '.join(names)} can hold", True)
        return given[0] if given else None

    def only(self, name: str, value: bool | int | float | str, consequence: str) -> None:
        """Take a field that has one value here, which is also its default; note any other value.

        A text stands for an enumeration's value.
        """
        read: bool | int | float | str
        if isinstance(value, bool):
            read = self.boolean(name, value)
        elif isinstance(value, int):
            read = self.integer(name, value)
        elif isinstance(value, float):
            read = self.number(name, value)
        else:
            read = self._single(name, value, f"the word {value}", lambda given: type(given) is Word)
        if read != value:
            self.note(name, read, consequence, changes_results=True)

    def refuse(self, *names: str, consequence: str) -> bool:
        """Take fields whose presence changes results and cannot be honoured; return whether any is there."""
        self._known += names
        given = [name for name in names if name in self._message]
        for name in given:
            self.note(name, _first(self._message.pop(name)), consequence, changes_results=True)
        return bool(given)

    def ignore(self, consequences: Mapping[str, str]) -> None:
        """Take fields that change no result, {name: what happens}, and note those that are there.

        `false` is not noted: it asks for nothing.
        """
        self._known += consequences
        for name, consequence in consequences.items():
            value = _first(self._message.pop(name, [False]))
            if value is not False:
                self.note(name, value, consequence, changes_results=False)

    def note_untaken(self) -> None:
        """Note what is left as unknown, with the nearest name that was asked for."""
        for name, values in self._message.items():
            nearest = difflib.get_close_matches(name, self._known, n=1)
            hint = f"; nearest: {nearest[0]}" if nearest else ""
            self.note(name, _first(values), f"no such field is known here{hint}", changes_results=True)
        self._message = {}

    def _single(self, name: str, default: Any, expected: str, is_right: Callable[[Any], bool]) -> Any:
        values = self._take(name, expected, is_right)
        if len(values) > 1:
            self.note(name, values, "given more than once; keep one", changes_results=True)
        return values[0] if values else default

    def _take(self, name: str, expected: str, is_right: Callable[[Any], bool]) -> list[Any]:
        self._known.append(name)
        values = self._message.pop(name, [])
        for value in values:
            if not is_right(value):
                self.note(name, value, f"expected {expected}", changes_results=True)
        return [value for value in values if is_right(value)]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _float32(value: int | float) -> float:
    """Return the shortest number that is `value` in float32.

    Published files were written from float32: their 0.00999999977648 is 0.01.
    """
    with np.errstate(over="ignore"):  # infinity is refused later, with its key
        return float(str(np.float32(value)))


def _first(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "{ … }" if value else "{}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    return str(value)

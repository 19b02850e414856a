"""Protocol buffers' text format, read without a schema.

It is the format of the Object Detection API's `pipeline.config` and label maps.  The grammar is that of
https://protobuf.dev/reference/protobuf/textformat-spec/.
"""

import re
from pathlib import Path

Message = dict[str, list]
"""{field: its values in order}: text alone does not tell a repeated field from a single one."""


class ProtobufTextError(ValueError):
    """Text that is not the text format; the message says where: `FILE:LINE:COLUMN: expected …, got …`."""


class Word(str):
    """An unquoted word: the name of an enumeration's value."""


# A comment takes its line's end along, so that there is one way to match blanks: no backtracking.
_BLANK = r"(?:\s|\#[^\n]*(?:\n|\Z))*"
_TOKEN = re.compile(
    _BLANK
    + r"""(?:
      (?P<string>"(?:[^"\\\n]|\\[^\n])*"|'(?:[^'\\\n]|\\[^\n])*')
    | (?P<number>(?:0[xX][0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?[fF]?)(?![\w.]))
    | (?P<word>[A-Za-z_]\w*)
    | (?P<symbol>[{}<>\[\]:,;-])
    | (?P<end>\Z)
    )""",
    re.VERBOSE,
)
# An extension, [package.name], or the type of a packed message, [host/package.Type].
_EXTENSION = re.compile(r"\[\s*([A-Za-z_][\w./-]*)\s*\]")
_ESCAPE = re.compile(r"\\(?:([0-7]{1,3})|[xX]([0-9a-fA-F]{1,2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))")
_ESCAPED = {"a": 7, "b": 8, "t": 9, "n": 10, "v": 11, "f": 12, "r": 13, **{c: ord(c) for c in "\\'\"?"}}
_TRUTH = {"true": True, "True": True, "false": False, "False": False}
_NOT_FINITE = {"inf": float("inf"), "infinity": float("inf"), "nan": float("nan")}
_CLOSING = {"{": "}", "<": ">"}


def parse(text: str, source: str = "text") -> Message:
    """Parse `text`; `source` (a file's name) opens the message of an error.

    Quoted strings become str (adjacent ones are joined), numbers int or float, `true` and `false` bool, other
    words `Word`, messages nested dicts.  Raises ProtobufTextError.
    """
    return _Parser(text, source).fields(end="")


def read_text(path: Path) -> str:
    """Return the text of a file; raises FileNotFoundError, or ProtobufTextError if it is not UTF-8."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ProtobufTextError(f"{path}: expected UTF-8 text, got other bytes at {error.start}") from None


class _Parser:
    """One pass from left to right; `kind` and `token` are the next token, not yet used."""

    def __init__(self, text: str, source: str):
        self._text = text
        self._source = source
        self._next = 0
        self.advance()

    def advance(self) -> None:
        match = _TOKEN.match(self._text, self._next)
        if match is None:
            blank = re.compile(_BLANK).match(self._text, self._next)
            self._start = blank.end() if blank else self._next
            rest = self._text[self._start :].split("\n", 1)[0]
            if rest[0] in "\"'":
                raise self.error(f"a closing {rest[0]} on the same line", "the end of the line")
            raise self.error("a field, a value or a bracket", repr(rest.split()[0]))
        self.kind = str(match.lastgroup)
        self.token = match[self.kind]
        self._start = match.start(self.kind)
        self._next = match.end()

    def error(self, expected: str, got: str | None = None) -> ProtobufTextError:
        line = self._text.count("\n", 0, self._start) + 1
        column = self._start - (self._text.rfind("\n", 0, self._start) + 1) + 1
        if got is None:
            got = repr(self.token) if self.token else "the end of the text"
        return ProtobufTextError(f"{self._source}:{line}:{column}: expected {expected}, got {got}")

    def accept(self, symbol: str) -> bool:
        if self.kind == "symbol" and self.token == symbol:
            self.advance()
            return True
        return False

    def fields(self, end: str) -> Message:
        """Parse fields up to `end`, the closing bracket, or up to the end of the text."""
        message: Message = {}
        while self.token != end:
            name = self.field_name(end)
            message.setdefault(name, []).extend(self.field_values(name))
            if not self.accept(","):
                self.accept(";")
        if end:
            self.advance()
        return message

    def field_name(self, end: str) -> str:
        extension = _EXTENSION.match(self._text, self._start)
        if extension:
            self._next = extension.end()
            self.advance()
            return f"[{extension[1]}]"
        if self.kind != "word":
            raise self.error("the name of a field" + (f" or {end!r}" if end else ""))
        name = self.token
        self.advance()
        return name

    def field_values(self, name: str) -> list:
        has_colon = self.accept(":")
        if not has_colon and not (self.kind == "symbol" and self.token in "{<["):
            raise self.error(f"':' after {name!r}")
        if not self.accept("["):
            return [self.value()]
        values: list = []
        while not self.accept("]"):
            if values and not self.accept(","):
                raise self.error("',' or ']'")
            values.append(self.value())
        return values

    def value(self):
        if self.kind == "symbol" and self.token in _CLOSING:
            closing = _CLOSING[self.token]
            self.advance()
            return self.fields(closing)
        if self.kind == "string":
            return self.string()
        sign = -1 if self.accept("-") else 1
        if self.kind == "number":
            number = self.number()
            self.advance()
            return sign * number
        if self.kind == "word":
            word = self.token
            if word.lower() in _NOT_FINITE:
                self.advance()
                return sign * _NOT_FINITE[word.lower()]
            if sign > 0:
                self.advance()
                return _TRUTH.get(word, Word(word))
        raise self.error("a number" if sign < 0 else "a value")

    def number(self) -> int | float:
        token = self.token.lower()
        if token.startswith("0x"):
            return int(token, 16)
        if re.fullmatch(r"0[0-7]+", token):
            return int(token, 8)
        if token.isdigit():
            if token[0] == "0" and token != "0":
                raise self.error("octal digits after a leading 0")
            return int(token)
        return float(token.rstrip("f"))

    def string(self) -> str:
        """Parse one or more adjacent strings.  Octal and hexadecimal escapes are bytes of UTF-8."""
        joined = b""
        first = self._start
        while self.kind == "string":
            position = 0
            inner = self.token[1:-1]
            for escape in _ESCAPE.finditer(inner):
                octal, hexadecimal, short, long, letter = escape.groups()
                joined += inner[position : escape.start()].encode()
                position = escape.end()
                if octal or hexadecimal:
                    code = int(octal, 8) if octal else int(hexadecimal, 16)
                    if code > 255:
                        raise self.error("an octal escape of at most \\377", escape[0])
                    joined += bytes([code])
                elif short or long:
                    code = int(short or long, 16)
                    if code > 0x10FFFF or 0xD800 <= code < 0xE000:
                        raise self.error("an escape that is a Unicode character", escape[0])
                    joined += chr(code).encode()
                elif letter in _ESCAPED:
                    joined += bytes([_ESCAPED[letter]])
                else:
                    raise self.error("a known escape", escape[0])
            joined += inner[position:].encode()
            self.advance()
        try:
            return joined.decode()
        except UnicodeDecodeError:
            self._start = first
            raise self.error("a string of UTF-8", repr(joined)) from None


def quote(text: str) -> str:
    """Return `text` as a string of the text format."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'

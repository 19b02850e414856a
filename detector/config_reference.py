"""The reference of a configuration's keys, as the schema states them: `docs/configuration.md`.

python -m detector.config_reference > docs/configuration.md
"""

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from detector.config import Config
from detector.config_section import is_section, sections_of

_OPENING = """\
# Configuration

A file of `configs/` says what differs from these defaults, which are those of the published Faster R-CNN
configurations, or from the file that its `base:` names. `--set KEY=VALUE` overrides a key on the command
line, with its dots and a YAML value: `--set train.steps=500`, `--set 'freeze.freeze=[rpn]'`. A run's
`config.yaml` has every key.
"""
_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    Path: "path",
    types.NoneType: "null",
    Any: "anything",
}
_BOUNDS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}


def page() -> str:
    """Return the reference of all keys, as Markdown."""
    places: dict[type[BaseModel], list[str]] = {Config: []}
    for path, section in _sections(Config):
        places.setdefault(section, []).append(path)
    return "\n".join([_OPENING, *(_table(section, paths) for section, paths in places.items())])


def _sections(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield every mapping with the path that it stands at, those inside after those around."""
    for name, key in section.model_fields.items():
        for inner in sections_of(key.annotation):
            yield prefix + name, inner
            yield from _sections(inner, f"{prefix}{name}.")


def _table(section: type[BaseModel], paths: list[str]) -> str:
    """Return the heading, the meaning and the keys of a mapping."""
    rows = [
        f"| `{name}` | {_value(key)} | {_default(key)} | {_one_line(key.description or '')} |"
        for name, key in section.model_fields.items()
        if not is_section(key.annotation)
    ]
    head = ["| key | value | default | meaning |", "| --- | --- | --- | --- |"] if rows else []
    title = f"## {' and '.join(f'`{path}`' for path in paths) or 'Top level'}{_variant(section)}"
    return "\n".join([title, "", _one_line(section.__doc__ or ""), "", *head, *rows, ""])


def _variant(section: type[BaseModel]) -> str:
    """Return by which of its keys a mapping is told from others at the same place."""
    for name in ("kind", "format"):
        key = section.model_fields.get(name)
        if key is not None and len(get_args(key.annotation)) == 1:
            return f" with `{name}: {get_args(key.annotation)[0]}`"
    return ""


def _value(key: FieldInfo) -> str:
    bounds = [
        f"{sign} {getattr(bound, name)}"
        for bound in key.metadata
        for name, sign in _BOUNDS.items()
        if hasattr(bound, name)
    ]
    return " ".join([_words(key.annotation), " and ".join(bounds)]).strip()


def _words(annotation: Any) -> str:
    """Say in words what values a key takes."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _words(parts[0])
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_words, parts)))
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin is tuple:
        return f"list of {_words(parts[0])}" if parts[-1] is ... else f"[{', '.join(map(_words, parts))}]"
    if origin is dict:
        return f"mapping to {_words(parts[1])}"
    return "mapping" if is_section(annotation) else _WORDS[annotation]


def _default(key: FieldInfo) -> str:
    if key.is_required():
        return "required"
    value = key.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_defaults=True)
    elif isinstance(value, Path):
        value = str(value)
    elif isinstance(value, tuple):
        value = list(value)
    # YAML ends a document that is one plain value with a line of three dots.
    return f"`{yaml.safe_dump(value, default_flow_style=True).split(chr(10))[0]}`"


def _one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    print(page(), end="")

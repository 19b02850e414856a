"""Label maps of the Object Detection API (`.pbtxt`): class names by category id."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from detector import protobuf_text

# What an item may say besides its id and its names; none of it is about boxes.
_OTHER_FIELDS = {"keypoints", "ancestor_ids", "descendant_ids", "frequency", "instance_count"}


class LabelMapError(ValueError):
    """A label map that cannot be used; the message names the file and the item."""


def read_label_map(path: str | Path, use_display_name: bool = True) -> dict[int, str]:
    """Read a label map: {category id: name}, ids rising.

    A class is called by its `display_name` where it has one, unless `use_display_name` is false.  As in the
    original (`label_map_util.py`): of several items with one id the first counts, id 0 is the background's
    and left out, and ids may have gaps, with one class of the model for every id from 1 to the largest (COCO:
    80 names, 90 classes; class c is category c + 1).  Unlike there, two ids with one name are an error,
    because classes are matched by name here.

    Raises FileNotFoundError, or LabelMapError naming the item.
    """
    try:
        text = protobuf_text.read_text(Path(path))
    except protobuf_text.ProtobufTextError as error:
        raise LabelMapError(str(error)) from None
    return parse_label_map(text, str(path), use_display_name)


def read_label_names(path: str | Path) -> dict[str, int]:
    """Return {name: category id} of every `name` and `display_name` of a label map; raises as above."""
    return {
        name: identifier
        for use_display_name in (False, True)
        for identifier, name in read_label_map(path, use_display_name).items()
    }


def parse_label_map(text: str, source: str = "label map", use_display_name: bool = True) -> dict[int, str]:
    """Return what `read_label_map` returns, for the text of a label map; `source` names it in errors."""
    try:
        fields = protobuf_text.parse(text, source)
    except protobuf_text.ProtobufTextError as error:
        raise LabelMapError(str(error)) from None
    items = fields.pop("item", [])
    if fields or not items:
        got = f"the field {next(iter(fields))!r}" if fields else "none"
        raise LabelMapError(f"{source}: expected items, `item {{ id: 1 name: 'cat' }}`, got {got}")
    names: dict[int, str] = {}
    for number, item in enumerate(items, start=1):
        identifier, name = _read_item(item, f"{source}: item {number}", use_display_name)
        if identifier > 0:
            names.setdefault(identifier, name)
    if not names:
        raise LabelMapError(f"{source}: expected a class with an id of 1 or more, got only the background")
    ids_by_name: dict[str, int] = {}
    for identifier, name in names.items():
        if name in ids_by_name:
            raise LabelMapError(
                f"{source}: ids {ids_by_name[name]} and {identifier} are both called {name!r}; rename one"
            )
        ids_by_name[name] = identifier
    return dict(sorted(names.items()))


def format_label_map(names: Mapping[int, str]) -> str:
    """Return the text of a label map for {category id: name}, ids rising; ids start at 1."""
    if not names or min(names) < 1:
        raise LabelMapError(f"expected category ids from 1 on (0 is the background), got {sorted(names)}")
    return "".join(
        f"item {{\n  id: {identifier}\n  name: {protobuf_text.quote(name)}\n}}\n"
        for identifier, name in sorted(names.items())
    )


def are_numbered(class_names: Sequence[str]) -> bool:
    """Whether classes are called 1, 2, …, as those of a detector are that does not name them."""
    return list(class_names) == [str(number) for number in range(1, len(class_names) + 1)]


def write_label_map(path: str | Path, names: Mapping[int, str]) -> None:
    """Write {category id: name} as a label map."""
    Path(path).write_text(format_label_map(names), encoding="utf-8")


def _read_item(item: object, where: str, use_display_name: bool) -> tuple[int, str]:
    if not isinstance(item, dict):
        raise LabelMapError(f"{where}: expected `{{ id: … name: … }}`, got {item!r}")
    unknown = item.keys() - {"id", "name", "display_name"} - _OTHER_FIELDS
    if unknown:
        raise LabelMapError(
            f"{where}: expected id, name and display_name, got the unknown {', '.join(sorted(unknown))}"
        )
    single = {}
    for field in ("id", "name", "display_name"):
        values = item.get(field, [])
        kind = int if field == "id" else str
        if len(values) > 1 or any(type(value) is not kind for value in values):
            expected = "one whole number" if field == "id" else "one quoted string"
            raise LabelMapError(f"{where}: expected {expected} as {field}, got {values}")
        single[field] = values[0] if values else None
    identifier = single["id"]
    name = single["name"] or single["display_name"]
    if use_display_name and single["display_name"]:
        name = single["display_name"]
    if not name:
        raise LabelMapError(f"{where}: expected a name, got none")
    # An absent id is 0, as everywhere in protocol buffers.
    is_background = "background" in (single["name"], single["display_name"])
    if not identifier and not is_background:
        raise LabelMapError(
            f"{where} ({name!r}): expected an id from 1 on, got {identifier}; 0 is the background's"
        )
    if identifier is not None and identifier < 0:
        raise LabelMapError(f"{where} ({name!r}): expected an id from 1 on, got {identifier}")
    return identifier or 0, name

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from detector.label_map import (
    LabelMapError,
    format_label_map,
    parse_label_map,
    read_label_map,
    write_label_map,
)

PETS = """
item { id: 2 name: 'dog' }
item {
  name: "/m/01yrx"  # the order of fields and items does not matter
  id: 1
  display_name: "cat"
}
"""


def test_display_names_come_first_where_there_are_any():
    assert list(parse_label_map(PETS).items()) == [(1, "cat"), (2, "dog")]
    assert parse_label_map(PETS, use_display_name=False) == {1: "/m/01yrx", 2: "dog"}
    assert parse_label_map("item { id: 1 display_name: 'cat' }", use_display_name=False) == {1: "cat"}


def test_background_and_gaps_and_duplicate_ids_as_in_the_original():
    text = """
      item { id: 0 name: 'background' }
      item { name: 'x' display_name: 'background' }
      item { id: 90 name: 'toothbrush' }
      item { id: 1 name: 'person' }
      item { id: 1 name: 'human' }
    """
    assert list(parse_label_map(text).items()) == [(1, "person"), (90, "toothbrush")]


def test_what_is_not_about_boxes_is_left_alone():
    text = "item { id: 1 name: 'person' keypoints { id: 1 label: 'nose' } frequency: RARE instance_count: 3 }"
    assert parse_label_map(text) == {1: "person"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "m.pbtxt: expected items.*got none"),
        ("items { id: 1 name: 'a' }", "expected items.*'items'"),
        ("item: 3", r"item 1: expected `\{ id"),
        ("item { id: 1 name: 'a' } item { id: 2 }", "item 2: expected a name"),
        ("item { name: 'a' }", r"item 1 \('a'\): expected an id from 1 on, got None"),
        ("item { id: 0 name: 'a' }", r"\('a'\): expected an id from 1 on, got 0; 0 is the background's"),
        ("item { id: -1 name: 'a' }", "expected an id from 1 on, got -1"),
        ("item { id: -1 name: 'background' }", "expected an id from 1 on, got -1"),
        ("item { id: 0 name: 'background' }", "only the background"),
        ("item { id: '1' name: 'a' }", r"expected one whole number as id, got \['1'\]"),
        ("item { id: 1 id: 2 name: 'a' }", r"expected one whole number as id, got \[1, 2\]"),
        ("item { id: 1 name: cat }", r"expected one quoted string as name, got \['cat'\]"),
        ("item { id: 1 name: 'a' nmae: 'b' }", "item 1: .*unknown nmae"),
        ("item { id: 1 name: 'a' } item { id: 2 name: 'a' }", "ids 1 and 2 are both called 'a'"),
        ("item { id: 1 name: 'a'", "m.pbtxt:1:23: expected the name of a field or '}'"),
    ],
)
def test_wrong_label_maps_are_named(text, message):
    with pytest.raises(LabelMapError, match=message):
        parse_label_map(text, "m.pbtxt")


def test_round_trip(tmp_path):
    names = {3: "red 'blood' cell", 1: 'a "quoted" \\ name', 90: "É, 雪\n"}
    write_label_map(tmp_path / "map.pbtxt", names)
    read = read_label_map(tmp_path / "map.pbtxt")
    assert read == names and list(read) == [1, 3, 90]


def test_protobuf_reads_what_is_written():
    file = descriptor_pb2.FileDescriptorProto(name="label_map.proto", syntax="proto2")
    item = file.message_type.add(name="Item")
    item.field.add(name="name", number=1, type="TYPE_STRING", label="LABEL_OPTIONAL")
    item.field.add(name="id", number=2, type="TYPE_INT32", label="LABEL_OPTIONAL")
    label_map = file.message_type.add(name="LabelMap")
    label_map.field.add(name="item", number=1, type="TYPE_MESSAGE", label="LABEL_REPEATED", type_name=".Item")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    message = message_factory.GetMessageClass(pool.FindMessageTypeByName("LabelMap"))()
    text_format.Parse(format_label_map({2: 'the "second"', 1: "É\n"}), message)
    assert [(entry.id, entry.name) for entry in message.item] == [(1, "É\n"), (2, 'the "second"')]


def test_writing_refuses_the_background_and_nothing():
    with pytest.raises(LabelMapError, match=r"from 1 on.*\[0, 1\]"):
        format_label_map({1: "a", 0: "b"})
    with pytest.raises(LabelMapError, match="got \\[\\]"):
        format_label_map({})


def test_a_file_gives_what_its_text_gives(tmp_path):
    path = tmp_path / "pets.pbtxt"
    path.write_text(PETS)
    assert read_label_map(path) == {1: "cat", 2: "dog"}
    assert read_label_map(path, use_display_name=False) == {1: "/m/01yrx", 2: "dog"}


def test_absent_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*gone\.pbtxt"):
        read_label_map(tmp_path / "gone.pbtxt")
    (tmp_path / "binary.pbtxt").write_bytes(b"\xff")
    with pytest.raises(LabelMapError, match=r"binary\.pbtxt: expected UTF-8 text"):
        read_label_map(tmp_path / "binary.pbtxt")

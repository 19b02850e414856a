import math

import pytest
from google.protobuf import descriptor_pb2, struct_pb2, text_format, wrappers_pb2

from detector.protobuf_text import ProtobufTextError, Word, parse, quote


def one(text):
    return parse(f"x: {text}")["x"]


def test_messages_nest_in_both_brackets_with_and_without_a_colon():
    assert parse("a { b: 1 } a: { b: 2 } a <b: 3> a: < c {} >") == {
        "a": [{"b": [1]}, {"b": [2]}, {"b": [3]}, {"c": [{}]}]
    }


def test_repeated_fields_and_lists_and_separators():
    assert parse("s: 1 t: 'x'; s: [2, 3], s: [] m: [{a: 1}, <a: 2>]; s: 4;") == {
        "s": [1, 2, 3, 4],
        "t": ["x"],
        "m": [{"a": [1]}, {"a": [2]}],
    }


def test_comments_and_empty_texts():
    assert parse("# one: 1\n  two: 2 # three: 3\n#") == {"two": [2]}
    assert parse("") == parse(" \n# nothing") == {}
    assert parse("#" * 5000 + "\n" + " " * 5000) == {}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("0", 0), ("-7", -7), ("- 7", -7), ("0x1F", 31), ("017", 15), ("123456789012", 123456789012)],
        *[("1.5", 1.5), (".04", 0.04), ("2.", 2.0), ("1e-4", 1e-4), ("-1.5E+3", -1500.0), ("1.5f", 1.5)],
        *[("3F", 3.0), ("1e5", 1e5), ("inf", math.inf), ("-inf", -math.inf), ("Infinity", math.inf)],
        *[("true", True), ("false", False), ("True", True), ("False", False)],
    ],
)
def test_scalars(text, value):
    (read,) = one(text)
    assert (type(read), read) == (type(value), value)


def test_not_a_number_and_enumerations():
    assert math.isnan(one("nan")[0])
    (read,) = one("RELU_6")
    assert read == "RELU_6" and isinstance(read, Word)
    assert not isinstance(one("'RELU_6'")[0], Word)


@pytest.mark.parametrize(
    "literal",
    [
        r"'plain'",
        r"'a \"b\" \'c\' \\ \n\t\r\a\b\f\v'",
        r"'it''s' "
        '"joined"',
        "'over' # a comment\n   'lines'",
        r"'\101\7\0 \x41\x7e'",
        r"'\303\251 é \u00e9 \U0001F600'",
        "'# no comment { } [ ] : ,'",
    ],
)
def test_strings_as_protobuf_reads_them(literal):
    expected = text_format.Parse(f"value: {literal}", wrappers_pb2.StringValue()).value
    assert parse(f"value: {literal}") == {"value": [expected]}


def test_an_escaped_question_mark():
    assert one(r"'\?'") == ["?"]  # as the specification has it; protobuf's Python reader keeps the backslash


def test_what_protobuf_writes():
    """A second implementation: protobuf's own printer of a nested message."""
    message = descriptor_pb2.FileDescriptorProto(name='a "file"\n', dependency=["x", "é\\"])
    message.message_type.add(name="M").field.add(
        name="f", number=3, type="TYPE_INT32", label="LABEL_OPTIONAL"
    )
    message.options.java_multiple_files = True
    expected = {
        "name": ['a "file"\n'],
        "dependency": ["x", "é\\"],
        "message_type": [
            {
                "name": ["M"],
                "field": [
                    {"name": ["f"], "number": [3], "label": ["LABEL_OPTIONAL"], "type": ["TYPE_INT32"]}
                ],
            }
        ],
        "options": [{"java_multiple_files": [True]}],
    }
    for style in ({}, {"as_one_line": True}, {"use_short_repeated_primitives": True}, {"as_utf8": True}):
        assert parse(text_format.MessageToString(message, **style)) == expected
    floats = struct_pb2.ListValue(values=[struct_pb2.Value(number_value=v) for v in (1e-30, -2.5, 1e22)])
    read = parse(text_format.MessageToString(floats, pointy_brackets=True))
    assert [value["number_value"] for value in read["values"]] == [[1e-30], [-2.5], [1e22]]


def test_extensions_keep_their_brackets():
    assert parse("[package.name] { a: 1 } [type.org/a-b.C]: 2") == {
        "[package.name]": [{"a": [1]}],
        "[type.org/a-b.C]": [2],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\n  b 2", r"f\.config:2:5: expected ':' after 'b', got '2'"),
        ("a {\n b: 1\n", r"3:1: expected the name of a field or '}', got the end of the text"),
        ("a { b: 1 >", "1:10: expected the name of a field or '}', got '>'"),
        ("a: 1 }", "1:6: expected the name of a field, got '}'"),
        ("a: ", "1:4: expected a value, got the end"),
        ("a: -x", "1:5: expected a number, got 'x'"),
        ("a: -'1'", "1:5: expected a number"),
        ("a: [1 2]", r"1:7: expected ',' or '\]', got '2'"),
        ("a: [1,]", r"1:7: expected a value, got '\]'"),
        ("a: 'open\nb: 1", "1:4: expected a closing ' on the same line"),
        ("\n\n a: @x y", "3:5: expected a field, a value or a bracket, got '@x'"),
        ("a: 12abc", "1:4: expected a field, a value or a bracket, got '12abc'"),
        ("a: 089", "1:4: expected octal digits after a leading 0"),
        (r"a: '\q'", r"1:4: expected a known escape, got \\q"),
        (r"a: '\777'", "1:4: expected an octal escape"),
        (r"a: '\ud800'", "1:4: expected an escape that is a Unicode character"),
        (r"a: 'ok' '\377'", "1:4: expected a string of UTF-8"),
        ("a:: 1", "1:3: expected a value, got ':'"),
        ("[a b]: 1", r"1:1: expected the name of a field, got '\['"),
        ("5: 1", "1:1: expected the name of a field, got '5'"),
        ("a: 1,, b: 2", "1:6: expected the name of a field, got ','"),
    ],
)
def test_errors_say_where_and_what(text, message):
    with pytest.raises(ProtobufTextError, match=message):
        parse(text, "f.config")


@pytest.mark.parametrize("text", ["", 'a "b" \\ c', "two\nlines\r", "é 😀 \t", r"C:\new\x41"])
def test_quote_is_read_back_here_and_by_protobuf(text):
    assert one(quote(text)) == [text]
    assert text_format.Parse(f"value: {quote(text)}", wrappers_pb2.StringValue()).value == text

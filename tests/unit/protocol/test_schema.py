"""The protocol described for others is the protocol that the codec speaks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from llmws.protocol import CloseCode, ErrorCode, decode, decode_server, encode, schema
from llmws.protocol import messages as m
from tests.support.paths import ROOT
from tools import generate_docs

PROTOCOL = (ROOT / "PROTOCOL.md").read_text()
EXAMPLES = re.findall(r"^([CS]) (\{.*\})$", PROTOCOL, re.MULTILINE)
DEFINITIONS = schema.json_schema()["$defs"]


def test_the_generated_documents_are_in_step() -> None:
    """If this fails, run `python tools/generate_docs.py`."""
    differing = [
        path.name
        for path, text in generate_docs.documents(ROOT).items()
        if not path.exists() or path.read_text() != text
    ]
    assert differing == []


def test_the_check_tells_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "PROTOCOL.md").write_text(PROTOCOL.replace("| `bad_message` |", "| `mad_message` |"))
    monkeypatch.setattr(generate_docs, "ROOT", tmp_path)
    assert generate_docs.main(["--check"]) == 1
    assert {path.name for path in tmp_path.rglob("*")} == {"docs", "PROTOCOL.md"}
    assert "PROTOCOL.md: out of step" in capsys.readouterr().out
    assert generate_docs.main([]) == 0
    assert generate_docs.main(["--check"]) == 0
    assert (tmp_path / "PROTOCOL.md").read_text() == PROTOCOL


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", {"a": "x"}),
        ("<!-- generated:a -->\n<!-- /generated -->", {}),
        ("<!-- generated:a -->\n", {"a": "x"}),
    ],
)
def test_a_part_without_a_place_is_an_error(text: str, parts: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="place"):
        generate_docs.with_parts(text, parts)


def test_only_what_stands_in_its_place_is_replaced() -> None:
    text = "one\n<!-- generated:a -->\nold\n<!-- /generated -->\ntwo\n"
    expected = "one\n<!-- generated:a -->\n\nnew \\1\n<!-- /generated -->\ntwo\n"
    assert generate_docs.with_parts(text, {"a": "new \\1"}) == expected
    assert generate_docs.with_parts(expected, {"a": "new \\1"}) == expected


# --- the prose -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sender", "frame"), EXAMPLES, ids=lambda text: text[:50])
def test_every_example_is_a_frame_of_the_protocol(sender: str, frame: str) -> None:
    """It decodes, and the codec skips none of its fields."""
    message = decode(frame) if sender == "C" else decode_server(frame)
    shown = json.loads(frame)
    decoded = json.loads(encode(message))
    assert {key for key in shown if shown[key] is not None} <= {*decoded, *message.__struct_fields__, "type"}
    assert all(shown[key] == decoded[key] for key in shown if key in decoded)
    assert set(shown.get("config", {})) <= set(m.Sampling.__struct_fields__)


def test_there_are_examples_of_both_sides() -> None:
    assert {"C", "S"} == {sender for sender, _ in EXAMPLES}
    assert len(EXAMPLES) >= 20


def test_every_message_is_spoken_of_in_the_prose() -> None:
    prose = re.sub(r"<!-- generated:.*?<!-- /generated -->", "", PROTOCOL, flags=re.DOTALL)
    tags = {kind.__struct_config__.tag for kind in (*schema.client_messages(), *schema.server_messages())}
    assert {tag for tag in tags if f"`{tag}`" not in prose and f'"type":"{tag}"' not in prose} == set()


def test_every_link_leads_to_a_heading() -> None:
    headings = re.findall(r"^#+ (.*)$", PROTOCOL, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
    links = set(re.findall(r"\]\(#([\w-]+)\)", PROTOCOL))
    assert links - anchors == set()
    assert "sampling" in links


# --- tables ----------------------------------------------------------------------------------------------------------


def test_every_field_has_a_meaning() -> None:
    """Also that no docstring speaks of a field that is gone."""
    for name in DEFINITIONS.keys() - {"ClientMessage", "ServerMessage"}:
        kind = getattr(m, name)
        _, meanings = schema.documentation(kind)
        assert meanings.keys() == set(kind.__struct_fields__), name
        assert all(meanings.values()), name


def test_a_table_says_type_range_presence_and_meaning() -> None:
    table = schema.message_tables([m.History])
    assert table == (
        "#### `history`\n\nAsks for the conversation, newest last.\n\n"
        "| field | type | range | present | meaning |\n"
        "| --- | --- | --- | --- | --- |\n"
        "| `before_id` | string | at most 64 characters | optional | messages before this one; absent: the newest |\n"
        "| `limit` | integer | [1, 200] | optional, `50` | messages at most |\n"
    )


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        (m.Token, "| `seq` | integer |  | in events | "),
        (m.Status, "| `model` | string or null |  | always | "),
        (m.Inference, "| `prompt` | string or [Prompt](#prompt) |  | optional | "),
        (m.Inference, "| `messages` | list of [ChatMessage](#chatmessage) | 1 to 4096 items | optional | "),
        (m.Hello, '| `mode` | `observe` \\| `takeover` |  | optional, `"takeover"` | '),
        (m.Cancel, "| `request_id` | string | `^[A-Za-z0-9._:\\-]{1,64}$` | always | "),
    ],
)
def test_rows_of_tables(kind: type[m.Message], row: str) -> None:
    assert row in schema.message_tables([kind])


def test_a_message_without_fields_has_no_table() -> None:
    assert schema.message_tables([m.ListModels]).endswith("Asks for the models on this machine.\n\nNo fields.\n")


def test_open_and_closed_ranges_are_told_apart() -> None:
    parts = schema.part_tables()
    assert "| `top_p` | number | (0, 1] | optional |" in parts
    assert "| `temperature` | number | [0, 2] | optional |" in parts


@pytest.mark.parametrize(
    ("table", "codes"),
    [
        (schema.error_code_table(), [f"`{code.value}`" for code in ErrorCode]),
        (schema.close_code_table(), [str(code.value) for code in CloseCode]),
    ],
)
def test_every_code_has_a_meaning(table: str, codes: list[str]) -> None:
    rows = [[cell.strip() for cell in line.split(" | ")] for line in table.splitlines()[2:]]
    assert [row[0].removeprefix("| ") for row in rows] == codes
    assert all(row[2] for row in rows)


# --- JSON Schema -----------------------------------------------------------------------------------------------------


def conforms(value: Any, schema_: dict[str, Any]) -> bool:
    """A reader of the few JSON Schema keywords that ours uses; anything else is an error."""
    known = {
        "$ref", "anyOf", "enum", "type", "title", "description", "default", "discriminator", "properties", "required",
        "items", "minItems", "maxItems", "minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum",
        "pattern", "additionalProperties", "propertyNames", "maxProperties",
    }  # fmt: skip
    assert not schema_.keys() - known
    if "$ref" in schema_:
        return conforms(value, DEFINITIONS[schema_["$ref"].removeprefix("#/$defs/")])
    if "anyOf" in schema_:
        return any(conforms(value, option) for option in schema_["anyOf"])
    if "enum" in schema_:
        return value in schema_["enum"]
    kinds: dict[str, tuple[type, ...]] = {
        "null": (type(None),), "boolean": (bool,), "string": (str,), "array": (list,), "object": (dict,),
        "integer": (int,), "number": (int, float),
    }  # fmt: skip
    kind = schema_.get("type")
    if kind and (not isinstance(value, kinds[kind]) or (isinstance(value, bool) and kind != "boolean")):
        return False
    if isinstance(value, dict):
        inner = schema_.get("properties", {})
        rest = schema_.get("additionalProperties", {})
        return (
            all(name in value for name in schema_.get("required", ()))
            and all(conforms(item, inner.get(key, rest)) for key, item in value.items())
            and all(conforms(key, schema_.get("propertyNames", {})) for key in value)
        )
    if isinstance(value, list):
        bounds = schema_.get("minItems", 0) <= len(value) <= schema_.get("maxItems", len(value))
        return bounds and all(conforms(item, schema_["items"]) for item in value)
    if isinstance(value, str):
        fits = schema_.get("minLength", 0) <= len(value) <= schema_.get("maxLength", len(value))
        return fits and re.search(schema_.get("pattern", ""), value) is not None
    if isinstance(value, (int, float)):
        low, above = schema_.get("minimum", value), schema_.get("exclusiveMinimum")
        return bool(low <= value <= schema_.get("maximum", value)) and (above is None or value > above)
    return True


@pytest.mark.parametrize(("sender", "frame"), EXAMPLES, ids=lambda text: text[:50])
def test_every_example_conforms_to_the_json_schema(sender: str, frame: str) -> None:
    side = {"C": "ClientMessage", "S": "ServerMessage"}[sender]
    assert conforms(json.loads(frame), DEFINITIONS[side])


@pytest.mark.parametrize(
    "frame",
    [
        '{"type":"inference","config":{"temperature":-1}}',
        '{"type":"inference","config":{"top_p":0}}',
        '{"type":"inference","config":{"logit_bias":{"x":1}}}',
        '{"type":"inference","messages":[]}',
        '{"type":"cancel","request_id":"a b"}',
        '{"type":"cancel"}',
        '{"type":"ack","seq":9007199254740992}',
        '{"type":"hello","mode":"steal"}',
        '{"type":"nonsense"}',
    ],
)
def test_the_json_schema_refuses_what_the_codec_refuses(frame: str) -> None:
    assert not conforms(json.loads(frame), DEFINITIONS["ClientMessage"])


def test_the_json_schema_describes_every_message_of_both_sides() -> None:
    document = schema.json_schema()
    assert document["anyOf"] == [{"$ref": "#/$defs/ClientMessage"}, {"$ref": "#/$defs/ServerMessage"}]
    mapping = DEFINITIONS["ServerMessage"]["discriminator"]["mapping"]
    assert mapping.keys() == {kind.__struct_config__.tag for kind in schema.server_messages()}
    assert DEFINITIONS["Ack"]["description"].startswith("Cumulative acknowledgement")
    assert DEFINITIONS["Sampling"]["properties"]["top_k"]["description"] == (
        "keep this many of the likeliest tokens; 0: all"
    )
    assert "\\Z" not in json.dumps(document)

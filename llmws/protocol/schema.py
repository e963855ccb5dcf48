"""The protocol described for other programs and for people: a JSON Schema and the tables of PROTOCOL.md.

Everything comes from the message types, their ranges and their docstrings, so it cannot drift from what the codec does.
Not imported by the server. Invariant: every field of every message, and every code, has a meaning in words.
"""

from __future__ import annotations

import inspect
import json
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec

from llmws.protocol import messages as m
from llmws.protocol.codes import CloseCode, ErrorCode, is_final

_REF: Final = "#/$defs/"
_EVENT_FIELDS: Final = m.Event.__struct_fields__

_ERROR_MEANINGS: Final = {
    ErrorCode.BAD_MESSAGE: "not a frame of this protocol: not JSON, too deep, no `type`, a bad or a second hello",
    ErrorCode.BAD_REQUEST: "a field is missing, out of range or does not fit the others; `field` names it",
    ErrorCode.UNKNOWN_TYPE: "this server knows no message of that `type`",
    ErrorCode.TOO_LARGE: "the frame is longer than `limits.max_message_bytes`",
    ErrorCode.UNSUPPORTED_PROTOCOL: "none of the versions in the hello is spoken here",
    ErrorCode.UNAUTHORIZED: "no token, or not a valid one",
    ErrorCode.FORBIDDEN: "the token's role or the connection's mode does not allow it",
    ErrorCode.CONFLICT: "the `request_id` was used with another body, or the model is in use",
    ErrorCode.DUPLICATE: "the request ended before and its events were acknowledged; `terminal` says how",
    ErrorCode.RATE_LIMITED: "too many at once",
    ErrorCode.QUEUE_FULL: "too many requests wait",
    ErrorCode.NO_MODEL: "no model is loaded",
    ErrorCode.MODEL_NOT_FOUND: "no model is listed under exactly that name or path, or it may not be loaded on demand",
    ErrorCode.MODEL_LOADING: "the model is being loaded",
    ErrorCode.MODEL_OOM: "the model, or this request, does not fit into memory",
    ErrorCode.MODEL_FAILED: "the model's files, its chat template or its computation failed",
    ErrorCode.CONTEXT_TOO_LONG: "the prompt leaves no room for an answer",
    ErrorCode.BUFFER_FULL: "too much is not acknowledged",
    ErrorCode.STORAGE_FAILED: "the session's log cannot be written or read",
    ErrorCode.DOWNLOAD_FAILED: "a download ended early (not in this version)",
    ErrorCode.PEER_FAILED: "another server failed (not in this version)",
    ErrorCode.INTERNAL: "a fault of the server",
}

_CLOSE_MEANINGS: Final = {
    CloseCode.NORMAL: "the client is done",
    CloseCode.GOING_AWAY: "the client's page or program goes away",
    CloseCode.TOO_BIG: "a frame of more than twice the limit; never send it again",
    CloseCode.SERVER_ERROR: "a fault below the protocol",
    CloseCode.RESTART: "the server restarts",
    CloseCode.TRY_LATER: "too many connections, or too many observers of the session",
    CloseCode.BAD_HELLO: "the first message was no valid hello",
    CloseCode.UNAUTHORIZED: "no valid token, or it was revoked",
    CloseCode.FORBIDDEN: "the token may not do this",
    CloseCode.NO_HELLO: "no hello came in time",
    CloseCode.TAKEN_OVER: "a newer connection took the session over; attach again as an observer at most",
    CloseCode.PROTOCOL: "no common protocol version",
    CloseCode.INTERNAL: "a fault of the server, storage included",
    CloseCode.DRAINING: "the server is stopping",
    CloseCode.HEARTBEAT: "the client did not answer pings",
    CloseCode.RESYNC: "what this connection was to be sent is gone; resume, and a `snapshot` may follow",
}


def client_messages() -> list[type[m.Message]]:
    """The messages that clients send, in the order of `messages.py`."""
    return list(typing.get_args(m.ClientMessage))


def server_messages() -> list[type[m.Message]]:
    """The messages that the server sends, likewise."""
    return list(typing.get_args(m.ServerMessage))


def documentation(kind: type) -> tuple[str, dict[str, str]]:
    """A type's docstring as its text, paragraphs kept, and the meanings of its fields, inherited ones included."""
    text, meanings = "", {}
    for base in reversed(kind.__mro__):
        if base.__module__ != m.__name__:
            continue
        text, _, attributes = inspect.cleandoc(base.__doc__ or "").partition("\n\nAttributes:\n")
        for name, meaning in re.findall(r"^    (\w+): (.*(?:\n {8,}.*)*)", attributes, re.MULTILINE):
            meanings[name] = " ".join(meaning.split()).removesuffix(".")
    return text, meanings


# --- JSON Schema ---------------------------------------------------------------------------------------------------


def json_schema() -> dict[str, Any]:
    """All messages as one JSON Schema (draft 2020-12): `$defs` holds `ClientMessage`, `ServerMessage` and their parts.

    Unknown fields are allowed on purpose: both sides ignore them. In a client's first message `type` may be absent.
    """
    (client, server), parts = msgspec.json.schema_components(
        [m.ClientMessage, m.ServerMessage], ref_template=_REF + "{name}"
    )
    for name, part in parts.items():
        text, meanings = documentation(getattr(m, name))
        part["description"] = " ".join(text.split())
        for field, schema in part["properties"].items():
            if field in meanings:
                schema["description"] = meanings[field]
    definitions = {"ClientMessage": client, "ServerMessage": server} | parts
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "llmws protocol, version 1",
        "anyOf": [{"$ref": _REF + "ClientMessage"}, {"$ref": _REF + "ServerMessage"}],
        "$defs": _portable(definitions),
    }


def _portable(schema: Any) -> Any:  # noqa: ANN401 - any JSON
    r"""The schema with Python's `\Z` as `$`, which is what ends a pattern in JSON Schema."""
    if isinstance(schema, dict):
        return {
            key: value.replace(r"\Z", "$") if key == "pattern" and isinstance(value, str) else _portable(value)
            for key, value in schema.items()
        }
    return [_portable(item) for item in schema] if isinstance(schema, list) else schema


# --- tables --------------------------------------------------------------------------------------------------------


def message_tables(kinds: Iterable[type[m.Message]]) -> str:
    """A heading, the docstring and the table of fields of every message, as Markdown."""
    definitions = json_schema()["$defs"]
    return "\n".join(_section(kind, f"`{kind.__struct_config__.tag}`", definitions) for kind in kinds)


def part_tables() -> str:
    """The same of the values that messages hold."""
    definitions = json_schema()["$defs"]
    messages = [*client_messages(), *server_messages()]
    parts = [kind for name, kind in vars(m).items() if name in definitions and isinstance(kind, type)]
    return "\n".join(_section(kind, kind.__name__, definitions) for kind in parts if kind not in messages)


def error_code_table() -> str:
    """The error codes as Markdown."""
    rows = ([f"`{code}`", "yes" if code.retryable else "no", _ERROR_MEANINGS[code]] for code in ErrorCode)
    return _table(["code", "retryable", "meaning"], rows)


def close_code_table() -> str:
    """The close codes as Markdown."""
    rows = (
        [str(int(code)), "stay away" if is_final(code) else "reconnect, resume", _CLOSE_MEANINGS[code]]
        for code in CloseCode
    )
    return _table(["code", "the client should", "meaning"], rows)


def _section(kind: type, title: str, definitions: Mapping[str, Any]) -> str:
    text, meanings = documentation(kind)
    text = "\n\n".join(part for part in text.split("\n\n") if not part.startswith("Source:"))
    schema = definitions[kind.__name__]
    required = schema.get("required", ())
    rows = [
        [
            f"`{name}`",
            _type(field) + (" or null" if name in required and {"type": "null"} in field.get("anyOf", ()) else ""),
            ", ".join(_ranges(field)),
            "always" if name in required else "in events" if name in _EVENT_FIELDS else _default(field),
            meanings[name],
        ]
        for name, field in schema["properties"].items()
        if name != "type"
    ]
    table = _table(["field", "type", "range", "present", "meaning"], rows) if rows else "No fields.\n"
    return f"#### {title}\n\n{text}\n\n{table}"


def _default(field: Mapping[str, Any]) -> str:
    value = field.get("default")
    return "optional" if value is None else f"optional, `{json.dumps(value)}`"


def _type(field: Mapping[str, Any]) -> str:
    """The type in words; a value with a table of its own is a link to that."""
    if "$ref" in field:
        name = field["$ref"].removeprefix(_REF)
        return f"[{name}](#{name.lower()})"
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_type(option) for option in field["anyOf"] if option != {"type": "null"}))
    if "enum" in field:
        return " \\| ".join(f"`{value}`" for value in field["enum"] if value is not None)
    if field["type"] == "array":
        return f"list of {_type(field['items'])}"
    if field["type"] == "object":
        return f"object of {_type(field['additionalProperties'])}" if "additionalProperties" in field else "object"
    return str(field["type"])


def _ranges(field: Mapping[str, Any]) -> Iterator[str]:
    """The bounds in words; of a union, those of every member."""
    for option in field.get("anyOf", ()):
        yield from _ranges(option)
    low = field.get("minimum", field.get("exclusiveMinimum"))
    high = field.get("maximum", field.get("exclusiveMaximum"))
    if low is not None or high is not None:
        left = "(" if "exclusiveMinimum" in field else "["
        yield f"{left}{low}, {high}]"
    for key, unit in (("Length", "characters"), ("Items", "items"), ("Properties", "entries")):
        least, most = field.get(f"min{key}"), field.get(f"max{key}")
        if least is not None and most is not None:
            yield f"{least} to {most} {unit}"
        elif most is not None:
            yield f"at most {most} {unit}"
        elif least is not None:
            yield "not empty" if least == 1 else f"at least {least} {unit}"
    if "pattern" in field:
        yield f"`{field['pattern']}`"
    for inner in ("items", "propertyNames", "additionalProperties"):
        if isinstance(field.get(inner), dict):
            yield from (f"each {words}" for words in _ranges(field[inner]))


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)

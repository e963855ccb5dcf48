"""Frames to messages and back.

Owns the checks that must come before anything else sees a frame: UTF-8 text, size, nesting depth, type, ranges.
Invariant: `decode` returns a client message or raises `FrameError`; nothing else, on any bytes.
"""

from __future__ import annotations

import contextlib
import re
from typing import Final

import msgspec

from llmws.protocol import messages as m
from llmws.protocol.codes import ErrorCode

MAX_DEPTH: Final = 32
"""Deepest nesting taken. msgspec and the stdlib recurse once a level, so an unbounded frame exhausts the stack."""

_CLIENT_TYPES: Final[dict[str, type[m.Message]]] = {t.__struct_config__.tag: t for t in m.ClientMessage.__args__}
_DECODERS: Final = {tag: msgspec.json.Decoder(t) for tag, t in _CLIENT_TYPES.items()}
_SERVER_DECODER: Final = msgspec.json.Decoder(m.ServerMessage)
_ENCODER: Final = msgspec.json.Encoder()
_PATH: Final = re.compile(r" - at (?:`key` in )?`\$\.?([^`]*)`")


class FrameError(Exception):
    """A frame that cannot be taken. Carries what the `error` answer needs.

    Attributes:
        code: the wire code.
        field: dotted path of the offending field, where known.
        request_id: of the message, where it has a valid one.
    """

    def __init__(
        self, code: ErrorCode, message: str, *, field: str | None = None, request_id: str | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field
        self.request_id = request_id

    def to_message(self) -> m.Error:
        """The `error` that answers the frame; it has no `seq`."""
        return m.Error(
            code=self.code,
            message=self.message,
            retryable=self.code.retryable,
            field=self.field,
            request_id=self.request_id,
        )


class _Head(msgspec.Struct):
    type: str | None = None


class _RequestHead(msgspec.Struct):
    request_id: m.RequestId | None = None


_HEAD: Final = msgspec.json.Decoder(_Head)
_REQUEST_HEAD: Final = msgspec.json.Decoder(_RequestHead)


def encode(message: m.Message) -> bytes:
    """The message as one UTF-8 JSON object; a non-finite float becomes null, as JSON has none."""
    return _ENCODER.encode(message)


def decode(frame: str | bytes, *, first: bool = False) -> m.ClientMessage:
    """Decodes one frame from a client.

    Of a field that comes twice the last value counts, but every one of them must be valid; two different `type`s are
    refused. Unknown fields are skipped, once they are known to be JSON.

    Args:
        frame: the text of the frame; `bytes` are a binary frame's and are refused.
        first: whether a frame without `type` is a hello (only the first one is).

    Raises:
        FrameError: with `bad_message`, `unknown_type` or `bad_request`.
    """
    if isinstance(frame, bytes):
        raise FrameError(ErrorCode.BAD_MESSAGE, "binary frames are not part of the protocol; send JSON text")
    try:
        data = frame.encode()
    except UnicodeEncodeError:
        raise FrameError(ErrorCode.BAD_MESSAGE, "the frame is not valid UTF-8") from None
    if _too_deep(data):
        raise FrameError(ErrorCode.BAD_MESSAGE, f"the frame is nested deeper than {MAX_DEPTH} levels")
    try:
        head = _HEAD.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        message = "`type` must be a string" if "$.type" in str(error) else "the frame is not a JSON object"
        raise FrameError(ErrorCode.BAD_MESSAGE, message) from None
    tag = head.type
    if tag is None:
        if not first:
            raise FrameError(ErrorCode.BAD_MESSAGE, "the message has no `type`")
        tag = "hello"
        data = _with_type(data)
    decoder = _DECODERS.get(tag)
    if decoder is None:
        raise FrameError(ErrorCode.UNKNOWN_TYPE, f"unknown message type {tag[:64]!r}")
    try:
        return decoder.decode(data)  # type: ignore[return-value]
    except msgspec.DecodeError as error:
        if b"null" in data and head.type is not None:
            with contextlib.suppress(msgspec.DecodeError):
                return decoder.decode(_without_nulls(data))  # type: ignore[return-value]
        raise _refusal(tag, data, str(error)) from None


def decode_server(frame: str | bytes) -> m.ServerMessage:
    """Decodes one frame from the server, for clients and for reading events back from a log.

    Raises:
        msgspec.ValidationError: on an unknown type or a wrong shape.
    """
    message: m.ServerMessage = _SERVER_DECODER.decode(frame)
    return message


def _refusal(tag: str, data: bytes, text: str) -> FrameError:
    """Turns msgspec's message, which ends in a JSON path, into an error that names the field."""
    path = _PATH.search(text)
    field = path.group(1).replace("[...]", "") if path else ""
    if missing := re.search(r"missing required field `(\w+)`", text):
        field = f"{field}.{missing.group(1)}".lstrip(".")
    try:
        request_id = _REQUEST_HEAD.decode(data).request_id
    except msgspec.DecodeError:
        request_id = None
    code = ErrorCode.BAD_MESSAGE if tag == "hello" else ErrorCode.BAD_REQUEST
    return FrameError(code, _PATH.sub("", text), field=field or None, request_id=request_id)


def _without_nulls(data: bytes) -> bytes:
    """The same with the fields left out that are null: both mean that they are absent. Raises DecodeError."""
    return msgspec.json.encode(_drop_nulls(msgspec.json.decode(data)))


def _drop_nulls(value: object) -> object:
    match value:
        case dict():
            return {key: _drop_nulls(each) for key, each in value.items() if each is not None}
        case list():
            return [_drop_nulls(each) for each in value]
        case _:
            return value


def _with_type(data: bytes) -> bytes:
    """An original client's hello has no `type`; the tagged decoder wants one."""
    body = data.lstrip()[1:]
    comma = b"" if body.lstrip().startswith(b"}") else b","
    return b'{"type":"hello"' + comma + body


# Possessive, and content with a string that never ends: anything else takes quadratic time on `"` and many `\\"`.
_STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_TO_SQUARE: Final = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))


def _too_deep(data: bytes) -> bool:
    """Whether brackets outside strings nest deeper than `MAX_DEPTH`; linear, and without recursion itself.

    Every round removes the innermost pairs, so what is left after `MAX_DEPTH` rounds is nested deeper, or was never
    closed. Of text that is not JSON it may miss some of the depth, up to twice `MAX_DEPTH` in all.
    """
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return False
    brackets = _STRING.sub(b"", data).translate(_TO_SQUARE, _NOT_BRACKETS)
    if b"[" * (MAX_DEPTH + 1) in brackets:
        return True  # the rounds below would find it too, but take longest on just this
    for _ in range(MAX_DEPTH):
        brackets = brackets.replace(b"[]", b"")
    return b"[]" in brackets or brackets.count(b"[") > MAX_DEPTH

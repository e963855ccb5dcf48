"""What the records of a session's logs say, as typed values.

Events are the exact frames of the wire and have no type of their own here. Field names are part of the on-disk format.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Literal

import msgspec

from llmws.protocol import messages as m


class Body(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of record bodies; unknown fields of a newer version are ignored."""


class RequestBody(Body, frozen=True, kw_only=True):
    """`request`: accepted. `body` is the client's message with its id; `sampling` is resolved, seed included.

    `body_hash` is what `request_digest` gave, hex: the same over versions that spell messages differently. `accepted_s`
    is Unix time.
    """

    request_id: str
    owner: str
    body: m.Inference
    body_hash: str
    sampling: m.Sampling
    accepted_s: float = 0.0


class PromptBody(Body, frozen=True, kw_only=True):
    """`prompt`: everything that continuing the generation needs beside the request and its tokens.

    `engine` names the engine and the version of its sampler. The last `images` of the context are in it: one id each.
    """

    request_id: str
    ids: list[int]
    images: int = 0
    max_tokens: int
    model: str
    model_digest: str
    tokenizer_digest: str
    engine: str
    device: str
    dtype: str


class AckBody(Body, frozen=True, kw_only=True):
    """`ack`: the owner's floor."""

    floor: int


class MessageBody(Body, frozen=True, kw_only=True):
    """`message`: one message of the conversation; `request_id` is empty where it was imported."""

    id: str
    parent_id: str | None
    role: Literal["user", "assistant"]
    content: str
    request_id: str
    created_s: float
    images: tuple[m.Image, ...] = ()
    model: str | None = None
    finish_reason: str | None = None


class SettingsBody(Body, frozen=True, kw_only=True):
    """`config`: the session's settings as a whole; the newest one counts."""

    sampling: m.Sampling = m.Sampling()
    system: str | None = None
    title: str | None = None


_ENCODER = msgspec.json.Encoder()
_SORTED_ENCODER = msgspec.json.Encoder(order="sorted")


def encode_body(body: Body) -> bytes:
    """The body as the record's value."""
    return _ENCODER.encode(body)


def request_digest(message: m.Inference) -> bytes:
    """SHA-256 that tells whether two messages with one `request_id` ask for the same, however they spell it."""
    return hashlib.sha256(_SORTED_ENCODER.encode(msgspec.structs.replace(message, request_id=None))).digest()


def ledger_mac(key: bytes, value: bytes) -> bytes:
    """HMAC-SHA-256, cut to 16 bytes: a plain hash in the ledger would confirm a guessed prompt."""
    return hmac.digest(key, value, "sha256")[:16]

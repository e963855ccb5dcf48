"""`meta.json`: what a session's folder says about itself, authenticated, and in part sealed.

Owns the file's format; knows neither where it lies nor when it is written. Invariant: a meta that opens was sealed
under a master key of the ring for exactly this session, and shows nothing that comes from a prompt.
"""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from llmws.store.keys import KeyRing
from llmws.store.record import Segment
from llmws.store_api import SessionMeta

MAX_ENDS: Final = 64
MAX_SEGMENTS: Final = 64
LEDGER_KEY_BYTES: Final = 32

_FILE: Final = b'{"kid":%d,"mac":"%b","body":%b}\n'
_FORM: Final = re.compile(rb'\{"kid":([1-9][0-9]{0,9}),"mac":"([A-Za-z0-9+/]{43}=)","body":(.*)\}\n', re.DOTALL)
_BOX_LABEL: Final = b"llmws/box/1"
_NONCE_BYTES: Final = 12
# Above the longest title that the protocol takes, so that every box has the same length.
_BOX_BLOCK_BYTES: Final = 2048


class MetaForgedError(Exception):
    """A `meta.json` that cannot be trusted: without it nobody knows whose session it is."""


class LogState(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one log.

    Attributes:
        first_n: records below this number were dropped and are ignored where they are still found.
        segments: those of `kept_segments`, oldest first. The last one may not be in the file yet.
    """

    first_n: int
    segments: tuple[Segment, ...]

    @property
    def durable_n(self) -> int:
        """The number of the newest record that the file must still hold, or that was dropped."""
        return max((segment.end for segment in self.segments), default=self.first_n - 1)


class Meta(msgspec.Struct, frozen=True, kw_only=True):
    """The contents of `meta.json`.

    Attributes:
        epoch: of the newest opening.
        ends: (epoch, last seq) of the openings before it, oldest first, the newest 64.
        corrupt_epoch: the opening that found the buffer log damaged; 0 if none did.
        conversation_damaged: an opening found the conversation damaged, and the hub was not told yet.
        ledger_key: 32 bytes, drawn when the session was created, so that the ledger outlives every master key.
        session: what the hub keeps here.
    """

    epoch: int
    ends: tuple[tuple[int, int], ...] = ()
    corrupt_epoch: int = 0
    conversation_damaged: bool = False
    ledger_key: bytes
    buffer: LogState
    conversation: LogState
    session: SessionMeta


class _Body(msgspec.Struct, frozen=True, kw_only=True):
    """The body as it stands in the file.

    Attributes:
        ledger_kid: in files from before there was a box, the master key that the ledger key is derived from; else 0.
        box: the sealed `_Box`.
        session: without its title.
    """

    epoch: int
    ends: tuple[tuple[int, int], ...] = ()
    corrupt_epoch: int = 0
    conversation_damaged: bool = False
    ledger_kid: int = 0
    box: bytes = b""
    buffer: LogState
    conversation: LogState
    session: SessionMeta


class _Box(msgspec.Struct, frozen=True, kw_only=True):
    """What nobody may read without the master key."""

    ledger_key: bytes
    title: str | None


def seal_meta(meta: Meta, session: bytes, keys: KeyRing, random: Callable[[int], bytes]) -> bytes:
    """The bytes of `meta.json`, under the ring's current key. `random` gives so many random bytes."""
    kid = keys.current
    box = _Box(ledger_key=meta.ledger_key, title=meta.session.title)
    body = msgspec.json.encode(
        _Body(
            epoch=meta.epoch,
            ends=meta.ends,
            corrupt_epoch=meta.corrupt_epoch,
            conversation_damaged=meta.conversation_damaged,
            box=_seal_box(box, kid, session, keys, random(_NONCE_BYTES)),
            buffer=meta.buffer,
            conversation=meta.conversation,
            session=msgspec.structs.replace(meta.session, title=None),
        )
    )
    return _FILE % (kid, _mac(body, kid, session, keys), body)


def open_meta(data: bytes, session: bytes, keys: KeyRing) -> Meta:
    """The contents of a `meta.json`.

    Raises:
        MetaForgedError: these bytes were not made by `seal_meta` for this session.
        StorageError: they were sealed under a master key that is not in the ring.
    """
    form = _FORM.fullmatch(data)
    if form is None:
        raise MetaForgedError("meta.json is not in its form")
    kid = int(form[1])
    if not hmac.compare_digest(_mac(form[3], kid, session, keys), form[2]):
        raise MetaForgedError("meta.json is not authentic")
    try:
        body = _BODY.decode(form[3])
        if body.ledger_kid:
            box = _Box(ledger_key=keys.ledger_key(body.ledger_kid, session), title=None)
        else:
            box = _open_box(body.box, kid, session, keys)
    except (msgspec.DecodeError, InvalidTag):
        raise MetaForgedError("meta.json was written by another version") from None
    return Meta(
        epoch=body.epoch,
        ends=body.ends,
        corrupt_epoch=body.corrupt_epoch,
        conversation_damaged=body.conversation_damaged,
        ledger_key=box.ledger_key,
        buffer=body.buffer,
        conversation=body.conversation,
        session=msgspec.structs.replace(body.session, title=box.title),
    )


def sealing_kid(data: bytes) -> int | None:
    """The master key that a `meta.json` says it was sealed under, unchecked; None if it is not in its form."""
    form = _FORM.fullmatch(data)
    return None if form is None else int(form[1])


def named_kids(data: bytes) -> set[int]:
    """The master keys that a `meta.json` cannot do without, unchecked: nothing on disk is as wrong as a key too few."""
    form = _FORM.fullmatch(data)
    if form is None:
        return set()
    kids = {int(form[1])}
    try:
        body = _BODY.decode(form[3])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return kids
    kids.update(segment.kid for segment in (*body.buffer.segments, *body.conversation.segments))
    return kids | ({body.ledger_kid} if body.ledger_kid else set())


# Made at import, by one thread: msgspec builds what it knows of a type at its first use, and several threads that open
# sessions at once would build it together, which crashed the process (seen with msgspec 0.22).
_BODY: Final = msgspec.json.Decoder(_Body)
_BOX: Final = msgspec.json.Decoder(_Box)


def _mac(body: bytes, kid: int, session: bytes, keys: KeyRing) -> bytes:
    return base64.b64encode(hmac.digest(keys.meta_mac_key(kid, session), body, "sha256"))


def _seal_box(box: _Box, kid: int, session: bytes, keys: KeyRing, nonce: bytes) -> bytes:
    text = msgspec.json.encode(box)
    # Unpadded, the length would be the title's.
    text += b" " * (-len(text) % _BOX_BLOCK_BYTES)
    return nonce + AESGCM(keys.box_key(kid, session)).encrypt(nonce, text, _BOX_LABEL + session)


def _open_box(sealed: bytes, kid: int, session: bytes, keys: KeyRing) -> _Box:
    """Raises InvalidTag or msgspec.DecodeError."""
    nonce, text = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
    if len(nonce) < _NONCE_BYTES:
        raise InvalidTag
    return _BOX.decode(AESGCM(keys.box_key(kid, session)).decrypt(nonce, text, _BOX_LABEL + session))


def kept_segments(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """What is kept of a log's segments, oldest first: the newest 64, and one for each other master key in the file.

    A log is opened only with all its keys: without one it would look torn where the key's first segment begins.
    """
    newest = segments[-MAX_SEGMENTS:]
    named = {segment.kid for segment in newest}
    others = {segment.kid: segment for segment in segments[:-MAX_SEGMENTS] if segment.kid not in named}
    return (*others.values(), *newest)


def newest_ends(ends: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """The 64 that are kept of (epoch, last seq) pairs, oldest first.

    An epoch without an event goes first: a position is of the epoch of an event, and hardly ever of such a one.
    """
    kept = list(ends)
    while len(kept) > MAX_ENDS:
        empty = (at for at in range(1, len(kept)) if kept[at][1] == kept[at - 1][1])
        del kept[next(empty, 0)]
    return tuple(kept)

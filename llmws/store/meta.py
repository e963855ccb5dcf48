"""`meta.json`: what a session's folder says about itself, authenticated.

Owns the file's format; knows neither where it lies nor when it is written. Invariant: a meta that opens was sealed
under a master key of the ring for exactly this session.
"""

from __future__ import annotations

import base64
import hmac
import re
from typing import Final

import msgspec

from llmws.store.keys import KeyRing
from llmws.store.record import Segment
from llmws.store_api import SessionMeta

MAX_ENDS: Final = 64
MAX_SEGMENTS: Final = 64

_FILE: Final = b'{"kid":%d,"mac":"%b","body":%b}\n'
_FORM: Final = re.compile(rb'\{"kid":([1-9][0-9]{0,9}),"mac":"([A-Za-z0-9+/]{43}=)","body":(.*)\}\n', re.DOTALL)


class MetaForgedError(Exception):
    """A `meta.json` that cannot be trusted: without it nobody knows whose session it is."""


class LogState(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one log.

    Attributes:
        first_n: records below this number were dropped and are ignored where they are still found.
        segments: the newest 64, oldest first. The last one may not be in the file yet.
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
        ledger_kid: the master key that the session's ledger key comes from; fixed at creation, so that the ledger
            outlives a new master key.
        session: what the hub keeps here.
    """

    epoch: int
    ends: tuple[tuple[int, int], ...] = ()
    corrupt_epoch: int = 0
    ledger_kid: int
    buffer: LogState
    conversation: LogState
    session: SessionMeta


def seal_meta(meta: Meta, session: bytes, keys: KeyRing) -> bytes:
    """The bytes of `meta.json`, under the ring's current key."""
    body = msgspec.json.encode(meta)
    return _FILE % (keys.current, _mac(body, keys.current, session, keys), body)


def open_meta(data: bytes, session: bytes, keys: KeyRing) -> Meta:
    """The contents of a `meta.json`.

    Raises:
        MetaForgedError: these bytes were not made by `seal_meta` for this session.
        StorageError: they were sealed under a master key that is not in the ring.
    """
    form = _FORM.fullmatch(data)
    if form is None:
        raise MetaForgedError("meta.json is not in its form")
    if not hmac.compare_digest(_mac(form[3], int(form[1]), session, keys), form[2]):
        raise MetaForgedError("meta.json is not authentic")
    try:
        return _DECODER.decode(form[3])
    except msgspec.DecodeError:
        raise MetaForgedError("meta.json was written by another version") from None


# Made at import, by one thread: msgspec builds what it knows of a type at its first use, and several threads that open
# sessions at once would build it together, which crashed the process (seen with msgspec 0.22).
_DECODER: Final = msgspec.json.Decoder(Meta)


def _mac(body: bytes, kid: int, session: bytes, keys: KeyRing) -> bytes:
    return base64.b64encode(hmac.digest(keys.meta_mac_key(kid, session), body, "sha256"))

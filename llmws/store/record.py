"""Sealing and unsealing of the lines of a session log.

Owns the byte format of segment headers and records; knows no files. Invariant: a line that unseals was sealed for
exactly this session, log, epoch, segment and number, and there is exactly one spelling of it.
"""

from __future__ import annotations

import binascii
import hmac
import re
import struct
from collections.abc import Callable
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from llmws.store_api import LogName, Record, RecordKind

SALT_BYTES: Final = 32
HEADER_START: Final = b'{"h":'

_LABEL: Final = b"llmws/log/1"
_VERSION: Final = 1
_A256GCM: Final = 1
_ROLES: Final[dict[LogName, int]] = {"buffer": 1, "conversation": 2}
# Records use 4 zero bytes and n, so the header's nonce can never be a record's.
_HEADER_NONCE: Final = b"\xff" * 12
_RECORD_NONCE: Final = b"\0" * 4
_BLOCK_BYTES: Final = 32
_MAX_U32: Final = 2**32 - 1
_MAX_U64: Final = 2**64 - 1

_HEADER: Final = b'{"h":1,"alg":"A256GCM","kid":%d,"role":"%b","epoch":%d,"base":%d,"salt":"%b","tag":"%b"}\n'
_HEADER_FORM: Final = re.compile(
    rb'\{"h":1,"alg":"A256GCM","kid":([0-9]{1,10}),"role":"[a-z]+",'
    rb'"epoch":([0-9]{1,20}),"base":([0-9]{1,20}),"salt":"([^"\n]*)","tag":"[^"\n]*"\}\n'
)
_RECORD: Final = b'{"n":%d,"data":"%b"}\n'
_RECORD_FORM: Final = re.compile(rb'\{"n":([0-9]{1,20}),"data":"([^"\n]*)"\}\n')

_KINDS: Final[dict[LogName, tuple[RecordKind, ...]]] = {
    "buffer": ("request", "prompt", "event", "ack"),
    "conversation": ("message", "config"),
}
_OPENINGS: Final[dict[RecordKind, bytes]] = {
    kind: b'{"k":"%b","v":' % kind.encode() for kinds in _KINDS.values() for kind in kinds
}
_KIND_OF: Final[dict[bytes, RecordKind]] = {opening: kind for kind, opening in _OPENINGS.items()}
_VALUE_MARK: Final = b',"v":'


class _Sequenced(msgspec.Struct):
    seq: int


_SEQUENCED: Final = msgspec.json.Decoder(_Sequenced)


class BadLineError(Exception):
    """A line that is incomplete, not canonical or not authentic."""


class Segment(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of a log under one key.

    Attributes:
        kid: of the master key.
        epoch: the opening that wrote it.
        base: number of the record before its first one.
        salt: 32 random bytes, never used twice: after a failed write the same n is sealed again with other text, which
            under the old key would be one nonce for two plaintexts.
        end: the newest n known to be durable in it; neither in the header nor in the key.
    """

    kid: int
    epoch: int
    base: int
    salt: bytes
    end: int


class SegmentCipher:
    """Seals and unseals the records of one segment.

    Args:
        master: the 32-byte master key that `segment.kid` names.
        session: the 16 bytes of the session's UUID.
        log: which of the session's logs.
        segment: the segment.

    Attributes:
        header: the segment's first line.

    Source: HKDF-SHA256 is RFC 5869; AES-256-GCM with 96-bit nonces is NIST SP 800-38D.
    """

    def __init__(self, master: bytes, session: bytes, log: LogName, segment: Segment) -> None:
        assert len(session) == 16
        assert len(segment.salt) == SALT_BYTES
        self.log = log
        self.segment = segment
        self._place = (
            _LABEL + bytes([_ROLES[log], _A256GCM]) + session + struct.pack(">QQ", segment.epoch, segment.base)
        )
        key = HKDF(algorithm=hashes.SHA256(), length=32, salt=segment.salt, info=self._place).derive(master)
        gcm = AESGCM(key)
        self._encrypt = gcm.encrypt
        self._decrypt = gcm.decrypt
        about = self._place + struct.pack(">BI", _VERSION, segment.kid) + segment.salt
        self.header = _HEADER % (
            segment.kid,
            log.encode(),
            segment.epoch,
            segment.base,
            _base64(segment.salt),
            _base64(self._encrypt(_HEADER_NONCE, b"", about)),
        )

    def seal(self, record: Record) -> bytes:
        """The record as a line. A record number must be sealed once a segment."""
        text = _OPENINGS[record.kind] + record.value + b"}"
        # Unpadded, the lines' lengths would be those of the tokens, from which topics can be guessed.
        text += b" " * (-len(text) % _BLOCK_BYTES)
        number = record.n.to_bytes(8, "big")
        return _RECORD % (record.n, _base64(self._encrypt(_RECORD_NONCE + number, text, self._place + number)))

    def unseal(self, line: bytes) -> Record:
        """The record in a line.

        Raises:
            BadLineError: the line is not one that `seal` of this segment made.
        """
        form = _RECORD_FORM.fullmatch(line)
        if form is None:
            raise BadLineError
        n = int(form[1])
        sealed = _from_base64(form[2])
        if n > _MAX_U64 or _RECORD % (n, _base64(sealed)) != line:
            raise BadLineError
        number = n.to_bytes(8, "big")
        try:
            text = self._decrypt(_RECORD_NONCE + number, sealed, self._place + number)
        except InvalidTag:
            raise BadLineError from None
        return self._parse(n, text)

    def _parse(self, n: int, text: bytes) -> Record:
        start = text.find(_VALUE_MARK) + len(_VALUE_MARK)
        body = text.rstrip(b" ")
        kind = _KIND_OF.get(text[:start])
        if (
            kind not in _KINDS[self.log]
            or not body.endswith(b"}")
            or len(text) != len(body) + -len(body) % _BLOCK_BYTES
        ):
            raise BadLineError
        value = body[start:-1]
        if kind != "event":
            return Record(n=n, kind=kind, value=value)
        try:
            return Record(n=n, kind=kind, value=value, seq=_SEQUENCED.decode(value).seq)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise BadLineError from None


class LogKeys:
    """Makes the ciphers of one session's log.

    Args:
        session: the 16 bytes of the session's UUID.
        log: which of the session's logs.
        master_of: gives the master key of a kid, None if there is none.
    """

    def __init__(self, session: bytes, log: LogName, master_of: Callable[[int], bytes | None]) -> None:
        self.log = log
        self._session = session
        self._master_of = master_of

    def cipher(self, segment: Segment) -> SegmentCipher | None:
        """The cipher of a segment, None if its master key is unknown."""
        master = self._master_of(segment.kid)
        return None if master is None else SegmentCipher(master, self._session, self.log, segment)

    def read_header(self, line: bytes) -> SegmentCipher:
        """The cipher of the segment that a header line begins.

        Raises:
            BadLineError: the line is not the header of a segment of this log under a known master key.
        """
        form = _HEADER_FORM.fullmatch(line)
        if form is None:
            raise BadLineError
        kid, epoch, base, salt = int(form[1]), int(form[2]), int(form[3]), _from_base64(form[4])
        if kid > _MAX_U32 or epoch > _MAX_U64 or base > _MAX_U64 or len(salt) != SALT_BYTES:
            raise BadLineError
        cipher = self.cipher(Segment(kid=kid, epoch=epoch, base=base, salt=salt, end=base))
        # The header is a function of the segment: one comparison proves it authentic and canonical.
        if cipher is None or not hmac.compare_digest(cipher.header, line):
            raise BadLineError
        return cipher


def _base64(data: bytes) -> bytes:
    return binascii.b2a_base64(data, newline=False)


def _from_base64(text: bytes) -> bytes:
    try:
        return binascii.a2b_base64(text)
    except binascii.Error:
        raise BadLineError from None

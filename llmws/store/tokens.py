"""Access tokens: who a caller is.

Owns the token file and the form `llmws_<id>_<secret>`; knows no door. Invariant: no token stands in the file, only
SHA-256 hashes; a token carries 256 random bits, so a plain hash of it cannot be guessed back.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from llmws.access import LOCAL_PRINCIPAL, Identity, Role
from llmws.errors import ConfigError
from llmws.store.disk import OsDisk, write_atomically
from llmws.store.lock import alone_with

_logger = logging.getLogger(__name__)

_SECRET_BYTES: Final = 32
_ID_BYTES: Final = 6
_PREFIX: Final = "llmws_"
_BROWSER: Final = "browser"
# Compared with where no token has the id, so that an unknown id takes as long as a wrong secret.
_NO_HASH: Final = "0" * 64


class TokenEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A token as the file keeps it; `sha256` is hex, over the whole token; `note` says how it came about."""

    id: Annotated[str, Meta(pattern=r"^[0-9a-f]{12}\Z")]
    principal: Annotated[str, Meta(min_length=1, max_length=256)]
    role: Role
    created_s: float
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    note: Annotated[str, Meta(max_length=64)] = ""


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    tokens: tuple[TokenEntry, ...]


_Version = tuple[int, int, int, int]


class TokenFile:
    """The tokens of a state folder: `Credentials` where a token is required.

    Calls touch files, `identify` and `holds` only where the file has changed.

    Args:
        path: of the file; it may be missing.
        now_s: the wall clock, Unix time.
        random: gives so many random bytes.
    """

    def __init__(
        self, path: Path, *, now_s: Callable[[], float] = time.time, random: Callable[[int], bytes] = os.urandom
    ) -> None:
        self._path = path
        self._now_s = now_s
        self._random = random
        self._version: _Version | None = None
        self._failure = ""
        # They differ only while the file cannot be read: then nobody new comes in, and nobody who is in is thrown out.
        self._by_id: dict[str, TokenEntry] = {}
        self._held: frozenset[str] = frozenset()

    def create(self, name: str, role: Role, *, note: str = "") -> str:
        """Makes a token for a principal and returns it; it is shown only this once.

        Raises:
            ConfigError: the file cannot be read or written, or the name is empty, too long or not printable.
        """
        token, entry = self._new(name, role, note)
        self._add(entry)
        return token

    def issue(self, identity: Identity) -> str:
        """See `Credentials.issue`; it is for a browser."""
        return self.create(identity.principal, identity.role, note=_BROWSER)

    def ensure_first(self) -> Path | None:
        """Makes the first admin token if no admin has one but in a browser, and `admin.token`: it and a newline.

        Returns:
            The path of `admin.token`, beside the file; None where it holds no valid token and admins have others.

        Raises:
            ConfigError: the file cannot be read or written.
        """
        path = self._path.with_name("admin.token")
        entries = self.list()
        if path.exists() and self.identify(path.read_text("utf-8", "replace").strip()):
            return path
        # A browser keeps its token to itself: with no other, nobody on this account could come in again.
        if any(entry.role == "admin" and entry.note != _BROWSER for entry in entries):
            return None
        token, entry = self._new(LOCAL_PRINCIPAL, "admin", "first")
        # Before the hash: a crash between the two leaves a token that is worth nothing, not one that nobody knows.
        self._write(path, f"{token}\n".encode())
        self._add(entry)
        return path

    def list(self) -> tuple[TokenEntry, ...]:
        """All tokens, oldest first. Raises ConfigError where the file cannot be read."""
        return self._read().tokens

    def revoke(self, token_id: str) -> bool:
        """Makes a token invalid at once; False if there is none of that id. Raises ConfigError as `create`."""
        with alone_with(self._path):
            before = self._read().tokens
            after = tuple(entry for entry in before if entry.id != token_id)
            if len(after) < len(before):
                self._write(self._path, _encoded(after))
        return len(after) < len(before)

    def identify(self, token: str | None) -> Identity | None:
        """Whose token it is, None if it is nobody's. A file that cannot be read holds no token."""
        if token is None:
            return None
        self._refresh()
        prefix, _, rest = token.partition("_")
        entry = self._by_id.get(rest.partition("_")[0]) if prefix + "_" == _PREFIX else None
        expected = entry.sha256 if entry is not None else _NO_HASH
        same = hmac.compare_digest(_hash(token), expected)
        if entry is None or not same:
            return None
        return Identity(principal=entry.principal, role=entry.role, token_id=entry.id)

    def holds(self, token_id: str) -> bool:
        """Whether the token has not been revoked. A file that cannot be read revokes none."""
        self._refresh()
        return token_id in self._held

    def _new(self, principal: str, role: Role, note: str) -> tuple[str, TokenEntry]:
        if not principal.isprintable():
            raise ConfigError(f"a token cannot be made for {principal[:64]!r}: it holds control characters")
        token_id = self._random(_ID_BYTES).hex()
        secret = base64.urlsafe_b64encode(self._random(_SECRET_BYTES)).decode().rstrip("=")
        token = f"{_PREFIX}{token_id}_{secret}"
        fields = {
            "id": token_id,
            "principal": principal,
            "role": role,
            "created_s": self._now_s(),
            "sha256": _hash(token),
            "note": note,
        }
        try:
            return token, msgspec.convert(fields, TokenEntry)
        except msgspec.ValidationError as error:
            raise ConfigError(f"a token cannot be made for {principal[:64]!r}: {error}") from None

    def _add(self, entry: TokenEntry) -> None:
        with alone_with(self._path):
            self._write(self._path, _encoded((*self._read().tokens, entry)))

    def _refresh(self) -> None:
        """Reads the file again if it is not the one last read, so that new and revoked tokens count at once."""
        try:
            status = self._path.stat()
            # The last one changes with the owner and the mode too, which decide whether the file can be read.
            version: _Version | None = (status.st_mtime_ns, status.st_size, status.st_ino, status.st_ctime_ns)
        except OSError:
            version = None
        if version == self._version and version is not None:
            return
        try:
            self._by_id = {entry.id: entry for entry in self._read().tokens}
            self._held = frozenset(self._by_id)
        except ConfigError as error:
            self._by_id = {}
            # What failed may pass without a change of the file, as a lack of file handles does.
            version = None
            if self._failure != str(error):
                self._failure = str(error)
                _logger.error("nobody can authenticate: %s", error)
        else:
            self._failure = ""
        self._version = version

    def _read(self) -> _File:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=_File)
        except FileNotFoundError:
            return _File(tokens=())
        except OSError as error:
            raise ConfigError(f"{self._path}: cannot be read ({error.strerror})") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ConfigError(
                f"{self._path}: not a token file ({error}); restore it, or delete it to start anew"
            ) from None

    def _write(self, path: Path, data: bytes) -> None:
        try:
            write_atomically(OsDisk(), path, data)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written ({error.strerror or error})") from None


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _encoded(tokens: tuple[TokenEntry, ...]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(_File(tokens=tokens)), indent=2) + b"\n"

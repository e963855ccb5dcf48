"""The master keys and what is derived from them, other than the keys of segments.

Owns where keys come from and the key file's format: a line a key, `<kid> <base64 of 32 bytes>`; `#` begins a comment.
Invariant: a key never leaves this process except into a file that only its owner can read.
"""

from __future__ import annotations

import base64
import binascii
import logging
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from llmws.errors import ConfigError, StorageError
from llmws.store.disk import OsDisk, write_atomically

_logger = logging.getLogger(__name__)

KEY_BYTES: Final = 32
_CREDENTIAL: Final = "master.key"
_Version = tuple[int, ...]
_COMMENT: Final = "# llmws master keys. Without this file the sessions cannot be read; with it, anyone can read them.\n"


class _UnreadableError(ConfigError):
    """The system did not let the key file be read, which may pass."""


class KeyRing:
    """Master keys by kid; the highest kid seals what is new. Its repr shows no key.

    Args:
        keys: the keys.
        path: the file that they were read from, which `refresh` looks at; None: they stay as they are.
    """

    def __init__(self, keys: Mapping[int, bytes], path: Path | None = None) -> None:
        assert keys
        assert all(len(key) == KEY_BYTES for key in keys.values())
        self._keys = dict(keys)
        self._path = path
        # Not that of the file as it is now: it may have changed since the keys were read.
        self._version: _Version | None = None
        self._reported: _Version | None = None
        self._refreshing = threading.Lock()

    @property
    def current(self) -> int:
        """The kid that seals what is new."""
        return max(self._keys)

    @property
    def kids(self) -> list[int]:
        """All kids, oldest first."""
        return sorted(self._keys)

    def refresh(self) -> None:
        """Takes over what the key file says now, for one stat(2) if that is what it said before. From any thread.

        A file that cannot be used is reported, once, and changes nothing.
        """
        if self._path is None:
            return
        with self._refreshing:
            version = _version(self._path)
            if version == self._version:
                return
            try:
                keys = read_key_file(self._path)
            except ConfigError as error:
                if version != self._reported:
                    _logger.error("the master keys stay as they were: %s", error)
                    self._reported = version
                if isinstance(error, _UnreadableError):
                    return
            else:
                self._reported = None
                if keys != self._keys:
                    self._keys = keys
                    _logger.info("master key %d seals from now on; in the key file: %s", self.current, self.kids)
            self._version = version

    def __repr__(self) -> str:
        return f"KeyRing(kids={sorted(self._keys)})"

    def get(self, kid: int) -> bytes | None:
        """The master key of a kid, None if it is not in the ring."""
        return self._keys.get(kid)

    def require(self, kid: int) -> bytes:
        """The master key of a kid. Raises StorageError."""
        master = self._keys.get(kid)
        if master is None:
            raise missing_key(kid)
        return master

    def meta_mac_key(self, kid: int, session: bytes) -> bytes:
        """The key that authenticates a session's `meta.json`. Raises StorageError on an unknown kid."""
        return self._derive(kid, b"llmws/meta/1" + session)

    def box_key(self, kid: int, session: bytes) -> bytes:
        """The key that seals the secrets in a session's `meta.json`. Raises StorageError on an unknown kid."""
        return self._derive(kid, b"llmws/box/1" + session)

    def ledger_key(self, kid: int, session: bytes) -> bytes:
        """The ledger key of a session from before they were drawn. Raises StorageError on an unknown kid."""
        return self._derive(kid, b"llmws/ledger/1" + session)

    def _derive(self, kid: int, info: bytes) -> bytes:
        return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=info).derive(self.require(kid))


def load_keys(
    state: Path,
    *,
    key_file: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    random: Callable[[int], bytes] = os.urandom,
) -> KeyRing:
    """Reads the master keys; the caller holds the state folder.

    The first of `$CREDENTIALS_DIRECTORY/master.key`, `key_file` and `<state>/keys/master.key` that there is counts.
    The last one is made at the first start.

    Raises:
        ConfigError: names the file, what is wrong and the fix.
    """
    path, is_credential = find_key_file(state, key_file=key_file, environ=environ)
    if path.exists():
        # A credential never changes while the service runs, and systemd sees to who can read it.
        return KeyRing(read_key_file(path, modes=0o777 if is_credential else 0o700), None if is_credential else path)
    if key_file is not None:
        raise ConfigError(f"{path}: there is no key file; make one, or set storage.key_file to null")
    if any((state / "sessions").glob("*")):
        raise ConfigError(
            f"{path}: missing, but there are sessions that need it; restore it, or delete {state}/sessions"
        )
    return _make(path, random(KEY_BYTES))


def find_key_file(
    state: Path, *, key_file: Path | None = None, environ: Mapping[str, str] = os.environ
) -> tuple[Path, bool]:
    """Where the master keys are, or would be made, and whether that is a credential of the service manager's."""
    if folder := environ.get("CREDENTIALS_DIRECTORY"):
        credential = Path(folder) / _CREDENTIAL
        if credential.exists():
            return credential, True
    return key_file or state / "keys" / "master.key", False


def missing_key(kid: int) -> StorageError:
    """What to say of a session whose master key is not there."""
    return StorageError(f"master key {kid} is not in the key file; put it back")


def write_key_file(path: Path, keys: Mapping[int, bytes]) -> None:
    """Replaces the key file as a whole, readable by its owner only. Raises ConfigError."""
    lines = [f"{kid} {base64.b64encode(key).decode()}\n" for kid, key in sorted(keys.items())]
    try:
        write_atomically(OsDisk(), path, "".join([_COMMENT, *lines]).encode())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror or error})") from None


def read_key_file(path: Path, *, modes: int = 0o700) -> dict[int, bytes]:
    """The keys in a file, by kid.

    Args:
        path: the file.
        modes: the permissions that it may have.

    Raises:
        ConfigError: names the file, what is wrong and the fix.
    """
    try:
        mode = path.stat().st_mode & 0o777
        if mode & ~modes:
            raise ConfigError(f"{path}: others can read the master key (mode {mode:04o}); fix it: chmod 600 {path}")
        return _parse(path, path.read_text("ascii"))
    except OSError as error:
        raise _UnreadableError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a key file; restore it from a backup") from None


def _make(path: Path, key: bytes) -> KeyRing:
    disk = OsDisk()
    try:
        disk.make_folder(path.parent)
        disk.sync_folder(path.parent.parent)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror or error})") from None
    write_key_file(path, {1: key})
    return KeyRing({1: key}, path)


def _version(path: Path) -> _Version:
    """Something that differs between one version of a file and the next; empty if it is missing."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_mtime_ns, status.st_size


def _parse(path: Path, text: str) -> dict[int, bytes]:
    """The keys in a file's text. Messages name the line, never what stands in it."""
    keys: dict[int, bytes] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        kid, _, encoded = line.strip().partition(" ")
        try:
            key = base64.b64decode(encoded, validate=True)
        except binascii.Error:
            key = b""
        # The length comes first: Python refuses to read very long numbers, and says so with an error of its own.
        if not kid.isdecimal() or len(kid) > 10 or not 0 < int(kid) < 2**32 or len(key) != KEY_BYTES:
            raise ConfigError(f"{path}, line {number}: expected `<number> <base64 of 32 bytes>`")
        if int(kid) in keys:
            raise ConfigError(f"{path}, line {number}: key {int(kid)} is there twice")
        keys[int(kid)] = key
    if not keys:
        raise ConfigError(f"{path}: holds no key; restore it from a backup")
    return keys

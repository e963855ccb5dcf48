"""The master keys and what is derived from them, other than the keys of segments.

Owns where keys come from and the key file's format: a line a key, `<kid> <base64 of 32 bytes>`; `#` begins a comment.
Invariant: a key never leaves this process except into a file that only its owner can read.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from llmws.errors import ConfigError, StorageError
from llmws.store.disk import OsDisk, write_atomically

KEY_BYTES: Final = 32
_CREDENTIAL: Final = "master.key"
_COMMENT: Final = "# llmws master keys. Without this file the sessions cannot be read; with it, anyone can read them.\n"


class KeyRing:
    """Master keys by kid; the highest kid seals what is new. Its repr shows no key."""

    def __init__(self, keys: Mapping[int, bytes]) -> None:
        assert keys
        assert all(len(key) == KEY_BYTES for key in keys.values())
        self._keys = dict(keys)
        self.current = max(self._keys)

    def __repr__(self) -> str:
        return f"KeyRing(kids={sorted(self._keys)})"

    def get(self, kid: int) -> bytes | None:
        """The master key of a kid, None if it is not in the ring."""
        return self._keys.get(kid)

    def require(self, kid: int) -> bytes:
        """The master key of a kid. Raises StorageError."""
        master = self._keys.get(kid)
        if master is None:
            raise StorageError(f"master key {kid} is not in the key file; put it back")
        return master

    def meta_mac_key(self, kid: int, session: bytes) -> bytes:
        """The key that authenticates a session's `meta.json`. Raises StorageError on an unknown kid."""
        return self._derive(kid, b"llmws/meta/1" + session)

    def ledger_key(self, kid: int, session: bytes) -> bytes:
        """The key of a session's ledger of finished requests. Raises StorageError on an unknown kid."""
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
    if folder := environ.get("CREDENTIALS_DIRECTORY"):
        credential = Path(folder) / _CREDENTIAL
        if (text := _read(credential, modes=0o777)) is not None:
            return KeyRing(_parse(credential, text))
    path = key_file or state / "keys" / "master.key"
    if (text := _read(path, modes=0o700)) is not None:
        return KeyRing(_parse(path, text))
    if key_file is not None:
        raise ConfigError(f"{path}: there is no key file; make one, or set storage.key_file to null")
    if any((state / "sessions").glob("*")):
        raise ConfigError(
            f"{path}: missing, but there are sessions that need it; restore it, or delete {state}/sessions"
        )
    return _make(path, random(KEY_BYTES))


def _make(path: Path, key: bytes) -> KeyRing:
    disk = OsDisk()
    try:
        disk.make_folder(path.parent)
        write_atomically(disk, path, f"{_COMMENT}1 {base64.b64encode(key).decode()}\n".encode())
        disk.sync_folder(path.parent.parent)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror or error})") from None
    return KeyRing({1: key})


def _read(path: Path, *, modes: int) -> str | None:
    """The file's text, None if it is missing. `modes`: the permissions it may have (systemd's need not be checked)."""
    try:
        mode = path.stat().st_mode & 0o777
        if mode & ~modes:
            raise ConfigError(f"{path}: others can read the master key (mode {mode:04o}); fix it: chmod 600 {path}")
        return path.read_text("ascii")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a key file; restore it from a backup") from None


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
        if not kid.isdecimal() or not 0 < int(kid) < 2**32 or len(key) != KEY_BYTES:
            raise ConfigError(f"{path}, line {number}: expected `<number> <base64 of 32 bytes>`")
        if int(kid) in keys:
            raise ConfigError(f"{path}, line {number}: key {int(kid)} is there twice")
        keys[int(kid)] = key
    if not keys:
        raise ConfigError(f"{path}: holds no key; restore it from a backup")
    return keys

"""One process a state folder.

Invariant: whoever has a `StateLock` is the only one that writes in the folder. The kernel gives it up when the process
ends, however it ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from llmws.errors import ConfigError

_TURN_TIMEOUT_S: Final = 3.0
_TURN_RETRY_S: Final = 0.05


class StateLock:
    """The hold on a state folder, made by `hold_state_folder`."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def close(self) -> None:
        """Lets go."""
        os.close(self._handle)


def hold_state_folder(state: Path, *, account: int | None = None) -> StateLock:
    """Makes the state folder if it is missing, takes away what access others have, and takes it for this process.

    Args:
        state: the folder.
        account: whose it must be, or root's; None: who runs this process.

    Raises:
        ConfigError: another process has it, it is not this account's, or it cannot be made or written.
    """
    lock = try_hold_state_folder(state, account=account)
    if lock is None:
        raise ConfigError(
            f"{state}: in use by another llmws server (process {_holder(state)}); "
            "stop that one, or give this one its own paths.state_dir"
        )
    return lock


def try_hold_state_folder(state: Path, *, account: int | None = None) -> StateLock | None:
    """Likewise, but None where another process has it. Raises ConfigError."""
    prepare_state_folder(state, account=account)
    try:
        handle = os.open(state / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigError(f"{state}: cannot be used as the state folder ({error.strerror})") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError as error:
        os.close(handle)
        raise ConfigError(f"{state}: cannot be locked ({error.strerror}); it must be on a local disk") from None
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
    return StateLock(handle)


def prepare_state_folder(state: Path, *, account: int | None = None) -> None:
    """Makes the folder, or closes it to others: whoever can rename files in it can put tokens of their own there.

    A folder of root's may be open to this account by its group.

    Args:
        state: the folder.
        account: whose it must be, or root's; None: who runs this process.

    Raises:
        ConfigError: everybody may write there, it belongs to somebody else, or it cannot be made or changed.
    """
    account = os.geteuid() if account is None else account
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = state.stat()
        if status.st_mode & stat.S_IWOTH:
            fix = "name a folder of its own inside it" if status.st_mode & stat.S_ISVTX else "chmod o-w"
            raise ConfigError(f"{state}: everybody may write there; see what others have put there, then {fix}")
        if account != 0 and status.st_uid not in (0, account):
            raise ConfigError(f"{state}: belongs to another account; chown it, or name another folder")
        if status.st_uid == account and status.st_mode & 0o077:
            state.chmod(0o700)
    except OSError as error:
        raise ConfigError(f"{state}: cannot be used as the state folder ({error.strerror})") from None


def check_owner(path: Path) -> None:
    """Refuses to change a file, or to make it in a folder, of another account, which could not read it afterwards.

    Raises ConfigError.
    """
    owner = (path if path.exists() else path.parent).stat().st_uid
    if owner != os.geteuid():
        raise ConfigError(f"{path}: belongs to another account (uid {owner}); run this command as that one")


@contextmanager
def alone_with(path: Path, *, timeout_s: float = _TURN_TIMEOUT_S) -> Iterator[None]:
    """Keeps other processes, as `llmws token create` beside a server, from changing a file.

    Raises:
        ConfigError: another process has kept it for `timeout_s`, or it cannot be written.
    """
    lock = path.with_suffix(".lock")
    try:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror})") from None
    try:
        _take_turn(handle, lock, ends_s=time.monotonic() + timeout_s)
        yield
    finally:
        os.close(handle)


def _take_turn(handle: int, lock: Path, *, ends_s: float) -> None:
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno != errno.EWOULDBLOCK:
                raise ConfigError(f"{lock}: cannot be locked ({error.strerror}); it must be on a local disk") from None
            if time.monotonic() >= ends_s:
                raise ConfigError(
                    f"{lock}: kept by another process; end it (`fuser` names it), then try again"
                ) from None
            time.sleep(_TURN_RETRY_S)
        else:
            return


def _holder(state: Path) -> str:
    return (state / "lock").read_bytes()[:32].decode("ascii", "replace").strip() or "unknown"

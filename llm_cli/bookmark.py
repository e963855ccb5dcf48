"""What of a session was shown, on disk: `<state>/llm/sessions/<uuid>.json`, readable by its owner alone.

It holds places and counts, never text. Written by the scribe alone; invariant: it says that something was shown only if
it was.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path
from typing import Final
from uuid import UUID

import msgspec

from llmws.client.discovery import state_dir

RECORD_BYTES: Final = 512
"""Records are overwritten in place; padded to one size and within one disk sector, an old one never shows through. One
that is longer, for a long URL, loses no more than that.
"""
MOST_SESSIONS: Final = 200
"""Older bookmarks are deleted; their sessions can still be opened by id, from what is unacknowledged."""
_BUSY_S: Final = 0.2
_POLL_S: Final = 0.005


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A session, where it is, and how far it was shown.

    Attributes:
        is_discovered: whether the server was found on this account, and may be found elsewhere later.
        epoch, last_seq: the last event that was shown whole; no epoch before any.
        chars: characters of answer text after it that were shown too.
        fence: the Markdown code fence that was open there.
    """

    session_id: str
    url: str
    is_discovered: bool = False
    epoch: int | None = None
    last_seq: int = 0
    chars: int = 0
    fence: str = ""


class Bookmark:
    """The open file of one session; locked, so that a later reader waits for a scribe that is finishing."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        # Taken when another `llm` shows the same session; the server lets only one of them go on.
        with contextlib.suppress(OSError):
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._fd)

    def save(self, record: Record) -> None:
        """Records; once it returns, no kill of any process can undo it."""
        line = msgspec.json.encode(record).ljust(RECORD_BYTES - 1) + b"\n"
        os.pwrite(self._fd, line, 0)


class Bookmarks:
    """All bookmarks of this account."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or state_dir() / "llm" / "sessions"

    def read(self, session_id: str) -> Record | None:
        """A session's bookmark; None when there is none that can be read. May wait a moment for its writer."""
        try:
            with self._path(session_id).open("rb") as file:
                _await_writer(file.fileno())
                # One line: what is left of a longer record may follow.
                record = msgspec.json.decode(file.readline(), type=Record)
        except (OSError, ValueError):
            return None
        return record if record.session_id == session_id else None

    def open(self, session_id: str) -> Bookmark:
        """Opens a session's bookmark for writing, and forgets the oldest ones.

        Raises:
            OSError: the state folder cannot be written.
            ValueError: the id is not a UUID.
        """
        bookmark = Bookmark(self._path(session_id))
        for path in self._newest_first()[MOST_SESSIONS:]:
            _forget(path)
        return bookmark

    def delete(self, session_id: str) -> None:
        """Deletes a session's bookmark, if there is one: the session is gone."""
        with contextlib.suppress(OSError, ValueError):
            self._path(session_id).unlink()

    def last_used(self) -> str | None:
        """Id of the session that was shown last."""
        return next((path.stem for path in self._newest_first()), None)

    def _path(self, session_id: str) -> Path:
        # A server makes up the id; only a UUID is fit to be a file's name.
        return self._folder / f"{UUID(session_id)}.json"

    def _newest_first(self) -> list[Path]:
        ages: list[tuple[int, Path]] = []
        for path in self._folder.glob("*.json"):
            try:
                ages.append((path.stat().st_mtime_ns, path))
            except OSError:
                continue
        return [path for _, path in sorted(ages, reverse=True)]


def _forget(path: Path) -> None:
    """Deletes a bookmark, unless its session is open: what is saved later would go nowhere."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()


def _await_writer(fd: int) -> None:
    """Waits while a scribe finishes; not for one whose `llm` still runs."""
    deadline_s = time.monotonic() + _BUSY_S
    while time.monotonic() < deadline_s:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            time.sleep(_POLL_S)
        else:
            return

"""What of a session this terminal has shown, on disk, so that nothing is lost or shown twice when `llm` is killed.

One file a session, `<state>/llm/sessions/<uuid>.json`, readable by its owner alone. It holds places and counts, never
text.

The order is: write to the terminal, then record. No order gives more than one of "at most once" and "at least once",
because a terminal cannot be asked what it shows; this one loses nothing. What a kill between those two system calls can
repeat is the last piece written, at most `show.PIECE_CHARS` characters. Killed anywhere else, `llm` goes on with the
next character.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final
from uuid import UUID

import msgspec

from llmws.client.discovery import state_dir

RECORD_BYTES: Final = 512
"""Records are overwritten in place; padded to one size and within one disk sector, an old one never shows through."""
MOST_SESSIONS: Final = 200
"""Older bookmarks are deleted; their sessions can still be opened by id, from what is unacknowledged."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A session, where it is, and how far it was shown; the fields of `show.Shown`, flat."""

    session_id: str
    url: str
    epoch: int | None = None
    last_seq: int = 0
    chars: int = 0
    fence: str = ""


class Bookmark:
    """The open file of one session."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._fd)

    def save(self, record: Record) -> None:
        """Records; once it returns, a kill of this process cannot undo it."""
        line = msgspec.json.encode(record).ljust(RECORD_BYTES - 1) + b"\n"
        os.pwrite(self._fd, line, 0)


class Bookmarks:
    """All bookmarks of this account."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or state_dir() / "llm" / "sessions"

    def read(self, session_id: str) -> Record | None:
        """A session's bookmark; None when there is none that can be read."""
        try:
            record = msgspec.json.decode(self._path(session_id).read_bytes(), type=Record)
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
            path.unlink(missing_ok=True)
        return bookmark

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

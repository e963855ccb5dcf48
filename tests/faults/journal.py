"""What one user of a session has seen and done, entry by entry, kept in a file where it must survive its process.

Knows neither sockets nor what should have come. Invariant: an entry is in the file before anything follows from it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec


class Entry(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="entry"):
    """Base of what stands in a journal."""


class Opened(Entry, frozen=True, tag="opened"):
    """A session was attached to: its id, and how long it took since the last connection was lost."""

    session_id: str
    epoch: int
    waited_ms: float | None = None


class Seen(Entry, frozen=True, tag="seen", kw_only=True):
    """An event of the session's story; what the protocol says of each field."""

    type: str
    seq: int
    epoch: int
    request_id: str | None = None
    index: int = 0
    data: str = ""
    ids: tuple[int, ...] = ()
    finish_reason: str | None = None
    total_tokens: int = 0
    text_sha256: str = ""
    code: str | None = None

    @property
    def is_terminal(self) -> bool:
        """Whether it ends its request."""
        return self.type in ("done", "error")

    def message(self) -> dict[str, Any]:
        """As it came, but for what a journal leaves out."""
        return {"index": 0, "ids": [], "data": "", **msgspec.to_builtins(self)}


class Acknowledged(Entry, frozen=True, tag="acknowledged"):
    """An acknowledgement is about to be sent."""

    seq: int


class Lost(Entry, frozen=True, tag="lost"):
    """A connection was lost."""

    why: str


class Asked(Entry, frozen=True, tag="asked"):
    """A request is about to be made."""

    request_id: str


class Restarted(Entry, frozen=True, tag="restarted"):
    """A process goes on where an earlier one was killed."""


AnyEntry = Opened | Asked | Seen | Acknowledged | Lost | Restarted
_DECODER = msgspec.json.Decoder(AnyEntry)
_ENCODER = msgspec.json.Encoder()


class Journal:
    """A user's memory.

    Args:
        path: of the file that holds it across processes; None: it is held in memory.

    Attributes:
        session_id: of the session attached to last.
        last: the newest event.
        asked, ended: the requests that were made, and those that have come to their end.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.session_id: str | None = None
        self.last: Seen | None = None
        self.asked: set[str] = set()
        self.ended: set[str | None] = set()
        self._path = path
        self._held: list[AnyEntry] = []
        self._fd: int | None = None
        if path is not None:
            earlier = read(path)
            for entry in earlier:
                self._take(entry)
            whole_bytes = path.read_bytes().rfind(b"\n") + 1 if path.exists() else 0
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.ftruncate(self._fd, whole_bytes)
            if earlier:
                self.note(Restarted())

    @property
    def entries(self) -> list[AnyEntry]:
        """All of them, the oldest first."""
        return self._held if self._path is None else read(self._path)

    def note(self, entry: AnyEntry) -> None:
        """Keeps an entry; once it returns no kill of this process undoes it."""
        if self._fd is not None:
            os.write(self._fd, _ENCODER.encode(entry) + b"\n")
        else:
            self._held.append(entry)
        self._take(entry)

    def see(self, message: msgspec.Struct | dict[str, Any]) -> Seen:
        """Keeps an event."""
        data = message if isinstance(message, dict) else msgspec.to_builtins(message)
        seen = msgspec.convert({**data, "entry": "seen"}, Seen)
        self.note(seen)
        return seen

    def close(self) -> None:
        """Closes the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _take(self, entry: AnyEntry) -> None:
        match entry:
            case Opened(session_id):
                self.session_id = session_id
            case Asked(request_id):
                self.asked.add(request_id)
            case Seen():
                self.last = entry
                if entry.is_terminal:
                    self.ended.add(entry.request_id)


def read(path: Path) -> list[AnyEntry]:
    """A journal's whole entries: a kill may have cut the last one short."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [_DECODER.decode(line) for line in lines]

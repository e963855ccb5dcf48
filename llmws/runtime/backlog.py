"""How much was given to the store and is not written yet.

Invariant: never negative, and nothing of a session that failed or was closed is counted for ever.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from llmws.store_api import Append, Failed, Flushed, LogName, StoreEvent

MAX_BYTES: Final = 4 * 2**20
"""Above this the engine waits. Source: log-format, "The writer"."""

_Log = tuple[str, LogName]


class Backlog:
    """Counts the bytes of appended records until the store reports them written."""

    def __init__(self) -> None:
        self._bytes = 0
        self._logs: dict[_Log, deque[tuple[int, int]]] = {}

    @property
    def is_full(self) -> bool:
        """Whether nothing more should be generated for now."""
        return self._bytes > MAX_BYTES

    def appended(self, append: Append) -> None:
        """Records are on their way."""
        size = sum(len(record.value) for record in append.records)
        self._logs.setdefault((append.session_id, append.log), deque()).append((append.records[-1].n, size))
        self._bytes += size

    def answered(self, event: StoreEvent) -> None:
        """The store has written some, or has given a session up."""
        match event:
            case Flushed(session_id=session_id, log=log, written=written):
                self._drop((session_id, log), written)
            case Failed(session_id=session_id):
                for log in ("buffer", "conversation"):
                    self._drop((session_id, log), None)

    def _drop(self, log: _Log, up_to_n: int | None) -> None:
        waiting = self._logs.get(log)
        if waiting is None:
            return
        while waiting and (up_to_n is None or waiting[0][0] <= up_to_n):
            self._bytes -= waiting.popleft()[1]
        if not waiting:
            del self._logs[log]

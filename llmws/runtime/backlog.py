"""How much was given to the store and is not written yet, and for how long.

Invariant: never negative, and nothing of a session that failed or was closed is counted for ever.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from llmws.store_api import Append, Failed, Flushed, LogName

MAX_BYTES: Final = 4 * 2**20
MAX_AGE_S: Final = 0.25
"""Above either the engine waits. Source: log-format, "The writer"."""

_STRIDE_S: Final = 0.01

_Log = tuple[str, LogName]


class _Batch:
    """The appends of about one moment."""

    __slots__ = ("at_s", "unwritten")

    def __init__(self, at_s: float) -> None:
        self.at_s = at_s
        self.unwritten = 0


class Backlog:
    """Counts the bytes of appended records until the store reports them written.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._bytes = 0
        self._logs: dict[_Log, deque[tuple[int, int, _Batch]]] = {}
        self._batches: deque[_Batch] = deque()

    @property
    def is_full(self) -> bool:
        """Whether nothing more should be generated for now."""
        if self._bytes > MAX_BYTES:
            return True
        return bool(self._batches) and self._clock() - self._batches[0].at_s > MAX_AGE_S

    def appended(self, append: Append) -> None:
        """Records are on their way."""
        now_s = self._clock()
        if not self._batches or now_s - self._batches[-1].at_s > _STRIDE_S:
            self._batches.append(_Batch(now_s))
        batch = self._batches[-1]
        batch.unwritten += 1
        size = sum([len(record.value) for record in append.records])
        self._logs.setdefault((append.session_id, append.log), deque()).append((append.records[-1].n, size, batch))
        self._bytes += size

    def answered(self, event: object) -> None:
        """Of the store's events, some tell that records are written, or that a session is given up."""
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
            _, size, batch = waiting.popleft()
            self._bytes -= size
            batch.unwritten -= 1
        if not waiting:
            del self._logs[log]
        while self._batches and not self._batches[0].unwritten:
            self._batches.popleft()

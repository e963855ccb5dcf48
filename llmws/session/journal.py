"""Numbers of a session's logs: which record comes next, which records have settled, which events may be sent.

Knows neither files nor messages' meanings. Invariant: an event is sendable only when its record, and every record
before it, is written, and every record up to it that asked for an fdatasync has had it (log-format: "The writer").
"""

from __future__ import annotations

from collections import deque

import msgspec

from llmws.protocol import encode
from llmws.protocol import messages as m
from llmws.session.extent import Extent
from llmws.session.rules import Durability, Rules
from llmws.store_api import Append, LogName, Record, RecordKind


class Journal:
    """One log's record numbers. Records collect in `add` and leave as one `Append` in `take`.

    Args:
        durability: what a record must survive to be settled: the process's death, or (`disk`) a loss of power.
        next_n: the number of the next record.
    """

    def __init__(self, session_id: str, log: LogName, *, durability: Durability = "os", next_n: int = 1) -> None:
        self._session_id = session_id
        self._log: LogName = log
        self._is_on_disk = durability == "disk"
        self._next_n = next_n
        self._written = self._durable = next_n - 1
        self._syncs: deque[int] = deque()
        self._replies: deque[tuple[int, int, bytes]] = deque()
        self._fresh: list[Record] = []
        self._fresh_sync = False

    def add(self, kind: RecordKind, value: bytes, *, sync: bool, seq: int = 0) -> int:
        """Appends a record and returns its number."""
        n = self._next_n
        self._next_n += 1
        self._fresh.append(Record(n=n, kind=kind, value=value, seq=seq))
        if sync:
            self._syncs.append(n)
            self._fresh_sync = True
        return n

    def take(self) -> Append | None:
        """What was added since the last call, as one operation for the store."""
        if not self._fresh:
            return None
        append = Append(session_id=self._session_id, log=self._log, records=tuple(self._fresh), sync=self._fresh_sync)
        self._fresh.clear()
        self._fresh_sync = False
        return append

    def flushed(self, *, written: int, durable: int) -> None:
        """Takes the store's report."""
        self._written = max(self._written, written)
        self._durable = max(self._durable, durable)
        while self._syncs and self._syncs[0] <= self._durable:
            self._syncs.popleft()

    @property
    def settled(self) -> int:
        """The number up to which every record is as safe as it has to be."""
        if self._is_on_disk:
            return self._durable
        return min(self._written, self._syncs[0] - 1) if self._syncs else self._written

    @property
    def is_settled(self) -> bool:
        """Whether that holds of every record."""
        return self.settled == self._next_n - 1

    @property
    def last_n(self) -> int:
        """The number of the newest record."""
        return self._next_n - 1

    def reply_when_settled(self, n: int, connection: int, frame: bytes) -> None:
        """Keeps an un-sequenced reply back until record `n`, and so what it confirms, is settled."""
        self._replies.append((n, connection, frame))

    def take_replies(self) -> list[tuple[int, bytes]]:
        """The replies that may be sent now, as (connection, frame)."""
        due: list[tuple[int, bytes]] = []
        while self._replies and self._replies[0][0] <= self.settled:
            due.append(self._replies.popleft()[1:])
        return due


class EventLog:
    """The buffer log: a journal whose events also have a `seq`, and the newest frames in memory."""

    def __init__(self, session_id: str, *, epoch: int, rules: Rules, next_n: int = 1, last_seq: int = 0) -> None:
        self.journal = Journal(session_id, "buffer", durability=rules.durability, next_n=next_n)
        self.extent = Extent(stride_bytes=rules.compact_bytes // 4)
        self.epoch = epoch
        self.last_seq = last_seq
        self.sendable = last_seq
        self._unsettled: deque[tuple[int, int]] = deque()
        self._tail: list[bytes] = []
        self._tail_bytes = 0

    def record(self, kind: RecordKind, value: bytes, *, sync: bool) -> int:
        """Appends a record that is no event, and returns its number."""
        self.extent.add(len(value))
        return self.journal.add(kind, value, sync=sync)

    def emit(self, message: m.Event, *, sync: bool = False) -> int:
        """Makes the message the session's next event and returns its seq."""
        self.last_seq += 1
        frame = encode(msgspec.structs.replace(message, seq=self.last_seq, epoch=self.epoch))
        n = self.journal.add("event", frame, sync=sync, seq=self.last_seq)
        self.extent.add_event(seq=self.last_seq, n=n, size_bytes=len(frame))
        self._unsettled.append((n, self.last_seq))
        self._tail.append(frame)
        self._tail_bytes += len(frame)
        return self.last_seq

    def flushed(self, *, written: int, durable: int) -> None:
        """Takes the store's report and moves `sendable`."""
        self.journal.flushed(written=written, durable=durable)
        settled = self.journal.settled
        while self._unsettled and self._unsettled[0][0] <= settled:
            self.sendable = self._unsettled.popleft()[1]

    def frame(self, seq: int) -> bytes | None:
        """The event's frame, if it is still in memory."""
        index = seq - self._tail_first
        return self._tail[index] if 0 <= index < len(self._tail) else None

    def trim(self, *, keep_bytes: int) -> None:
        """Forgets the oldest sendable frames beyond `keep_bytes`; frames not yet sendable always stay."""
        if self._tail_bytes <= keep_bytes:
            return
        sendable = len(self._tail) - (self.last_seq - self.sendable)
        drop = 0
        while drop < sendable and self._tail_bytes > keep_bytes:
            self._tail_bytes -= len(self._tail[drop])
            drop += 1
        if drop:
            del self._tail[:drop]

    @property
    def _tail_first(self) -> int:
        return self.last_seq - len(self._tail) + 1

"""How much of a session's buffer log lies where, in strides.

Pure numbers; knows neither frames nor files. Invariant: what is said to lie beyond an event is never less than what
does, and more by at most a stride, or a 256th of the log.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from operator import attrgetter
from typing import NamedTuple


class Mark(NamedTuple):
    """A place between records: event `seq` is record `n`; so many bytes of events, and of all records, are before."""

    seq: int
    n: int
    event_bytes: int
    all_bytes: int


_seq = attrgetter("seq")
_n = attrgetter("n")


class Extent:
    """The sizes of the records in a buffer log.

    Args:
        stride_bytes: how exactly they are known.

    Attributes:
        all_bytes: the size of all records.
        event_bytes: the size of the events.
    """

    def __init__(self, *, stride_bytes: int) -> None:
        self._stride_bytes = stride_bytes
        self._marks: list[Mark] = []
        self.all_bytes = 0
        self.event_bytes = 0

    def add(self, size_bytes: int) -> None:
        """Notes the newest record, which is no event."""
        self.all_bytes += size_bytes

    def add_event(self, *, seq: int, n: int, size_bytes: int) -> None:
        """Notes the newest record, an event."""
        stride_bytes = max(self._stride_bytes, self.all_bytes >> 8)
        if not self._marks or self.all_bytes - self._marks[-1].all_bytes >= stride_bytes:
            self._marks.append(Mark(seq, n, self.event_bytes, self.all_bytes))
        self.event_bytes += size_bytes
        self.all_bytes += size_bytes

    def beyond_bytes(self, seq: int) -> int:
        """The size of the events after `seq`, rounded up."""
        index = bisect_right(self._marks, seq + 1, key=_seq)
        return self.event_bytes - self._marks[index - 1].event_bytes if index else self.event_bytes

    def cut(self, *, seq: int, n: int) -> Mark | None:
        """The last mark that is neither beyond event `seq` nor beyond record `n`; None if there is none."""
        index = min(bisect_right(self._marks, seq, key=_seq), bisect_right(self._marks, n, key=_n))
        return self._marks[index - 1] if index else None

    def begin_at(self, n: int) -> None:
        """The records below `n`, which is a mark's, are gone."""
        first = bisect_left(self._marks, n, key=_n)
        if first == len(self._marks):
            return
        _, _, event_bytes, all_bytes = self._marks[first]
        self.event_bytes -= event_bytes
        self.all_bytes -= all_bytes
        self._marks = [
            Mark(each.seq, each.n, each.event_bytes - event_bytes, each.all_bytes - all_bytes)
            for each in self._marks[first:]
        ]

    def clear(self) -> None:
        """All records are gone."""
        self._marks.clear()
        self.all_bytes = self.event_bytes = 0

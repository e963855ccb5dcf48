"""How much of a session's events lies where in its buffer log, in strides.

Pure numbers; knows neither frames nor files. Invariant: what is said to lie beyond an event is never less than what
does, and more by at most a stride, or a 256th of the log.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from operator import attrgetter
from typing import NamedTuple


class Mark(NamedTuple):
    """A place between records: event `seq` is record `n`, and `before_bytes` of events were before it."""

    seq: int
    n: int
    before_bytes: int


_seq = attrgetter("seq")
_n = attrgetter("n")


class Extent:
    """The sizes of the events in a buffer log.

    Args:
        stride_bytes: how exactly they are known.
    """

    def __init__(self, *, stride_bytes: int) -> None:
        self._stride_bytes = stride_bytes
        self._marks: list[Mark] = []
        self._end_bytes = 0

    def add(self, *, seq: int, n: int, size_bytes: int) -> None:
        """Notes the newest event."""
        stride_bytes = max(self._stride_bytes, self._end_bytes >> 8)
        if not self._marks or self._end_bytes - self._marks[-1].before_bytes >= stride_bytes:
            self._marks.append(Mark(seq, n, self._end_bytes))
        self._end_bytes += size_bytes

    @property
    def size_bytes(self) -> int:
        """The size of all events."""
        return self._end_bytes - self._marks[0].before_bytes if self._marks else 0

    def beyond_bytes(self, seq: int) -> int:
        """The size of the events after `seq`, rounded up."""
        index = bisect_right(self._marks, seq + 1, key=_seq)
        return self._end_bytes - self._marks[index - 1].before_bytes if index else self.size_bytes

    def before_bytes(self, mark: Mark) -> int:
        """The size of the events before a mark."""
        return mark.before_bytes - self._marks[0].before_bytes

    def cut(self, *, seq: int, n: int) -> Mark | None:
        """The last mark that is neither beyond event `seq` nor beyond record `n`; None if there is none."""
        index = min(bisect_right(self._marks, seq, key=_seq), bisect_right(self._marks, n, key=_n))
        return self._marks[index - 1] if index else None

    def begin_at(self, n: int) -> None:
        """The records below `n`, which is a mark's, are gone."""
        del self._marks[: bisect_left(self._marks, n, key=_n)]

    def clear(self) -> None:
        """All records are gone."""
        self._marks.clear()

"""When to acknowledge, and how much more to let the server send.

Two things travel in one `ack` and are kept apart here. The *floor* says what the server may forget: it moves when the
caller has consumed an answer to its end, so that a client killed in the middle of one can still get it whole by the
session's id alone. Only where the server pauses an answer until more is acknowledged must it move earlier. The *window*
says what the server may send: it moves as events arrive, because unread answers take no more memory than their text.

Invariant: nothing is acknowledged that the caller has not consumed.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from llmws.protocol import messages as m

LONGEST_UNACKNOWLEDGED: Final = 16_384
"""An answer with more events than this is acknowledged in parts, so that a server need not keep all of it."""
_PARTS: Final = 4
"""Once paused, so many acknowledgements for what the server was then found to keep: it goes on at the half of it."""


class Acknowledgements:
    """Counts what was consumed and what was granted.

    Args:
        window: how many events the server may send beyond those that have arrived.
    """

    def __init__(self, window: int) -> None:
        self._window = window
        self._marks: deque[int] = deque()  # events that the floor moves to as soon as they are consumed
        self._floor = 0
        self._folded = 0  # what a snapshot folded into one is consumed at this event, and no part of it earlier
        self._longest = LONGEST_UNACKNOWLEDGED
        self._acknowledged = 0
        self._base = 0
        self._granted = 0

    def attached(self, *, floor: int, position: int) -> None:
        """A connection was welcomed.

        Args:
            floor: what the server knows to be acknowledged; an `ack` may have been lost with the last connection.
            position: the seq from which the server counts the window.
        """
        self._floor = max(self._floor, floor)
        self._acknowledged = floor
        self._base = position
        self._granted = position + self._window

    def moved(self, position: int) -> None:
        """A snapshot set the position: numbers beyond it mean nothing any more."""
        self._marks = deque(seq for seq in self._marks if seq <= position)
        self._floor = min(self._floor, position)
        self._folded = position
        self._base = position
        self._granted = position + self._window

    def restarted(self) -> None:
        """The session is another one: its numbers begin again."""
        self._marks.clear()
        self._floor = self._folded = 0
        self._longest = LONGEST_UNACKNOWLEDGED

    def paused(self, seq: int) -> None:
        """The server generates nothing more before an acknowledgement; `seq` is the newest event that was applied.

        Until the next end of a request what is consumed is acknowledged in parts that keep it from pausing again.
        """
        self._marks.append(seq)
        self._longest = min(self._longest, max(0, seq - self._floor) // _PARTS)

    def ended(self, seq: int) -> None:
        """The event `seq`, just applied, ends a request."""
        self._marks.append(seq)
        self._longest = LONGEST_UNACKNOWLEDGED

    def due(self, *, applied: int, consumed: int) -> m.Ack | None:
        """The `ack` to send now, if any.

        Args:
            applied: seq of the newest event that arrived.
            consumed: every event up to this seq was consumed.
        """
        consumed = min(consumed, applied)
        while self._marks and self._marks[0] <= consumed:
            self._floor = max(self._floor, self._marks.popleft())
        if consumed >= self._folded and consumed - self._floor > self._longest:
            self._floor = consumed
        limit = applied + self._window
        if self._floor <= self._acknowledged and limit - self._granted < max(1, self._window // 2):
            return None
        self._acknowledged = max(self._acknowledged, self._floor)
        self._base = max(self._base, self._acknowledged)
        self._granted = limit
        return m.Ack(seq=self._acknowledged, window=limit - self._base)

"""When to acknowledge, and how much more to let the server send.

Two things travel in one `ack` and are kept apart here. The *floor* says what the server may forget: it moves when the
caller has consumed an answer to its end, so that a client killed in the middle of one can still get it whole by the
session's id alone. The *window* says what the server may send: it moves as events arrive, because unread answers take
no more memory than their text.

Invariant: nothing is acknowledged that the caller has not consumed.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from llmws.protocol import messages as m

LONGEST_UNACKNOWLEDGED: Final = 16_384
"""An answer with more events than this is acknowledged in parts, so that a server need not keep all of it."""


class Acknowledgements:
    """Counts what was consumed and what was granted.

    Args:
        window: how many events the server may send beyond those that have arrived.
    """

    def __init__(self, window: int) -> None:
        self._window = window
        self._terminals: deque[int] = deque()
        self._floor = 0
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
        self._terminals = deque(seq for seq in self._terminals if seq <= position)
        self._floor = min(self._floor, position)
        self._base = position
        self._granted = position + self._window

    def restarted(self) -> None:
        """The session is another one: its numbers begin again."""
        self._terminals.clear()
        self._floor = 0

    def ended(self, seq: int) -> None:
        """The event `seq`, just applied, ends a request."""
        self._terminals.append(seq)

    def due(self, *, applied: int, consumed: int) -> m.Ack | None:
        """The `ack` to send now, if any.

        Args:
            applied: seq of the newest event that arrived.
            consumed: every event up to this seq was consumed.
        """
        consumed = min(consumed, applied)
        while self._terminals and self._terminals[0] <= consumed:
            self._floor = max(self._floor, self._terminals.popleft())
        if consumed - self._floor > LONGEST_UNACKNOWLEDGED:
            self._floor = consumed
        limit = applied + self._window
        if self._floor <= self._acknowledged and limit - self._granted < max(1, self._window // 2):
            return None
        self._acknowledged = max(self._acknowledged, self._floor)
        self._base = max(self._base, self._acknowledged)
        self._granted = limit
        return m.Ack(seq=self._acknowledged, window=limit - self._base)

"""A client's place in its session's story.

Knows neither sockets nor requests. Invariant: the events that `take` accepts are a contiguous run of the session's log,
each once, from the position held at the start or at the last snapshot.
"""

from __future__ import annotations

import enum
from bisect import bisect_right

from msgspec import UnsetType

from llmws.protocol import messages as m


class StoryFaultError(Exception):
    """What arrived cannot follow what was applied. The cure is always the same: reconnect and resume."""


class Verdict(enum.Enum):
    """What to do with a message.

    `APPLY`: it is the next event. `DROP`: an event that was applied before. `ASIDE`: not an event; it belongs to the
    connection.
    """

    APPLY = enum.auto()
    DROP = enum.auto()
    ASIDE = enum.auto()


class Cursor:
    """Decides what each incoming message means for the position.

    Call `attach` with every welcome and `take` with every later message of that connection; after a `StoryFaultError`
    close the connection and attach again with `resume`.

    Attributes:
        resume: what the next hello should carry; None for a session without a position.
        is_caught_up: whether everything that existed at the last welcome has been applied.
    """

    def __init__(self, resume: m.Position | None = None) -> None:
        self.resume = resume
        self.is_caught_up = False
        self._awaits_snapshot = False
        # Where each epoch began, as (first seq, epoch), oldest first. A bare position's epoch is a guess until an event
        # confirms it: a replay may begin with events of an earlier epoch than the welcome's.
        self._first_seqs: list[int] = []
        self._epochs: list[int] = []

    @property
    def last_seq(self) -> int:
        """Seq of the last applied event; 0 before any."""
        return self.resume.last_seq if self.resume else 0

    def position(self, seq: int) -> m.Position | None:
        """The position after event `seq`, which was applied; None before any event or welcome."""
        if self.resume is None:
            return None
        place = bisect_right(self._first_seqs, seq) - 1
        return m.Position(epoch=self._epochs[place] if place >= 0 else self.resume.epoch, last_seq=seq)

    def attach(self, welcome: m.Welcome) -> None:
        """Takes the welcome of a new connection."""
        self.is_caught_up = welcome.status == "new"
        self._awaits_snapshot = welcome.status == "reset"
        if welcome.status == "new":
            self._restart(m.Position(epoch=welcome.epoch, last_seq=welcome.head_seq))
        elif welcome.status == "resumed" and self.resume is None:
            self._restart(m.Position(epoch=welcome.epoch, last_seq=welcome.floor_seq))

    def take(self, message: m.ServerMessage) -> Verdict:
        """Takes the next message of the connection.

        Raises:
            StoryFaultError: an event is missing, or the story contradicts itself.
        """
        match message:
            case m.Snapshot():
                self._awaits_snapshot = False
                self._restart(m.Position(epoch=message.epoch, last_seq=message.as_of))
                return Verdict.ASIDE
            case m.Event(seq=int(seq), epoch=int(epoch)):
                return self.take_event(seq, epoch)
            case m.Log(code="caught_up", head_seq=head_seq):
                if head_seq is not None and head_seq > self.last_seq:
                    raise StoryFaultError(f"the replay ended at {self.last_seq}, before {head_seq}")
                self.is_caught_up = True
                return Verdict.ASIDE
            case _:
                return Verdict.ASIDE

    def take_event(self, seq: int | UnsetType, epoch: int | UnsetType) -> Verdict:
        """Takes an event by its place alone, for one whose type this version does not know.

        Raises:
            StoryFaultError: as `take`.
        """
        if isinstance(seq, UnsetType) or isinstance(epoch, UnsetType):
            return Verdict.ASIDE
        if self._awaits_snapshot or self.resume is None:
            raise StoryFaultError("an event came before the snapshot that says where the story goes on")
        newest = self._epochs[-1] if self._epochs else None
        if seq <= self.last_seq:
            if newest is not None and epoch > newest:
                raise StoryFaultError(f"event {seq} came again in a later epoch")
            return Verdict.DROP
        if seq != self.last_seq + 1:
            raise StoryFaultError(f"event {seq} came after {self.last_seq}")
        if newest is not None and epoch < newest:
            raise StoryFaultError(f"event {seq} belongs to an earlier epoch than the one before it")
        if epoch != newest:
            self._first_seqs.append(seq)
            self._epochs.append(epoch)
        self.resume = m.Position(epoch=epoch, last_seq=seq)
        return Verdict.APPLY

    def _restart(self, position: m.Position) -> None:
        self.resume = position
        self._first_seqs.clear()
        self._epochs.clear()

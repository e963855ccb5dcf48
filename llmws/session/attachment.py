"""One connection's place in a session: what it has been sent, what it may be sent, what it is still owed.

Knows nothing of requests. Invariant: frames leave in seq order without a gap from `cursor`, never beyond the window
or `sendable`.
"""

from __future__ import annotations

from typing import Final, Literal

from llmws.protocol import encode
from llmws.protocol import messages as m
from llmws.session.journal import EventLog
from llmws.session.rules import Rules
from llmws.session.snapshot import SnapshotBuilder
from llmws.store_api import Read, ReadResult

ACK_INTERVAL_S: Final = 0.25

_TERMINALS: Final = (b'{"type":"done",', b'{"type":"error",')


class Attachment:
    """A connection attached to a session.

    Attributes:
        cursor: seq of the newest event sent.
        seen: seq of the newest event that the client can know of.
        last_terminal: seq of the newest `done` or `error` sent on this connection, 0 before any.
        is_congested: its socket buffer is above the high-water mark.
        hold_until_n: an acknowledgement is confirmed when this record is settled, before what it makes room for.
    """

    def __init__(
        self,
        connection: int,
        session_id: str,
        *,
        role: Literal["user", "admin"],
        mode: Literal["takeover", "observe"],
        window: int | None,
        position: int,
        rules: Rules,
    ) -> None:
        self.connection = connection
        self.role = role
        self.mode = mode
        self.window = window
        self.cursor = self.seen = self._window_base = position
        self.last_terminal = 0
        self.is_congested = False
        self.hold_until_n = 0
        self._session_id = session_id
        self._burst_bytes = rules.burst_bytes
        self._caught_up_at: int | None = None
        self._snapshot: SnapshotBuilder | None = None
        self._ticket: int | None = None
        self._ack_sent_s = float("-inf")
        self._ack_due: int | None = None

    def announce_caught_up(self, head_seq: int) -> None:
        """Asks for a `caught_up` notice once everything up to `head_seq` is sent."""
        self._caught_up_at = head_seq

    def begin_snapshot(self, builder: SnapshotBuilder) -> None:
        """The position could not be continued: sends a snapshot of `builder.as_of` first."""
        self._snapshot = builder
        self.cursor = builder.after_seq
        self._caught_up_at = builder.as_of

    def acked(self, seq: int) -> None:
        """The client has applied events up to `seq`; an `ack_received` is due."""
        self._window_base = max(self._window_base, seq)
        self._ack_due = seq

    def pump(self, log: EventLog) -> tuple[list[bytes], Read | None]:
        """What can be sent now, and what must be read from the file to go on."""
        frames: list[bytes] = []
        if self.is_congested or self._ticket is not None or log.journal.settled < self.hold_until_n:
            return frames, None
        if self._snapshot is not None:
            return self._pump_snapshot(log)
        limit = self._limit(log)
        size_bytes = 0
        while self.cursor < limit:
            frame = log.frame(self.cursor + 1)
            # After a stall of the disk megabytes may become sendable at once; how full the socket is shows only later.
            if frame is None or size_bytes >= self._burst_bytes:
                return self._with_caught_up(frames), self._read()
            self._sent(frame, self.cursor + 1)
            frames.append(frame)
            size_bytes += len(frame)
        return self._with_caught_up(frames), None

    def read_done(self, result: ReadResult, log: EventLog) -> list[bytes] | None:
        """Takes what was read.

        Returns:
            Frames to send, or None when the log no longer holds what this connection is owed (it must resynchronise).
        """
        if result.ticket != self._ticket:
            return []
        self._ticket = None
        if self._snapshot is not None:
            return self._read_for_snapshot(self._snapshot, result)
        frames: list[bytes] = []
        limit = self._limit(log)
        if not result.events or result.events[0][0] != self.cursor + 1:
            return None
        for seq, frame in result.events:
            if seq > limit:
                break
            self._sent(frame, seq)
            frames.append(frame)
        return self._with_caught_up(frames)

    def ack_reply(self, floor_seq: int, *, now_s: float) -> m.AckReceived | None:
        """The `ack_received` that is due, if the last one is at least 250 ms ago."""
        if self._ack_due is None or now_s - self._ack_sent_s < ACK_INTERVAL_S:
            return None
        reply = m.AckReceived(seq=self._ack_due, floor_seq=floor_seq)
        self._ack_due, self._ack_sent_s = None, now_s
        return reply

    def _limit(self, log: EventLog) -> int:
        """The newest event that may be in flight now."""
        return log.sendable if self.window is None else min(log.sendable, self._window_base + self.window)

    def _sent(self, frame: bytes, seq: int) -> None:
        self.cursor = seq
        self.seen = max(self.seen, seq)
        if frame.startswith(_TERMINALS):
            self.last_terminal = seq

    def _read(self) -> Read:
        # One read at a time: the cursor is ticket enough.
        self._ticket = self.cursor
        return Read(
            session_id=self._session_id, ticket=self._ticket, after_seq=self.cursor, limit_bytes=self._burst_bytes
        )

    def _pump_snapshot(self, log: EventLog) -> tuple[list[bytes], Read | None]:
        assert self._snapshot is not None
        if self.cursor < self._snapshot.as_of:
            return [], self._read()
        snapshot = self._snapshot.finish(epoch=log.epoch)
        self._snapshot = None
        self.seen = self._window_base = snapshot.as_of
        frames, read = self.pump(log)
        return [encode(snapshot), *frames], read

    def _read_for_snapshot(self, snapshot: SnapshotBuilder, result: ReadResult) -> list[bytes] | None:
        """Takes what was read into the snapshot; None when a part of it was dropped meanwhile."""
        events = [(seq, frame) for seq, frame in result.events if seq <= snapshot.as_of]
        next_seq = events[0][0] if events else snapshot.as_of + 1
        # What a damaged log has lost is missing for good; what it has is the state.
        if next_seq > self.cursor + 1 and next_seq - 1 > snapshot.hole_seq:
            return None
        for _, frame in events:
            snapshot.add(frame)
        self.cursor = events[-1][0] if events else snapshot.as_of
        return []

    def _with_caught_up(self, frames: list[bytes]) -> list[bytes]:
        """Puts the notice in its place behind the last replayed frame."""
        if self._caught_up_at is None or self.cursor < self._caught_up_at:
            return frames
        notice = m.Log(code="caught_up", message="You have seen everything so far.", head_seq=self._caught_up_at)
        live = self.cursor - self._caught_up_at
        self._caught_up_at = None
        place = max(0, len(frames) - live)
        return [*frames[:place], encode(notice), *frames[place:]]

"""One session: its log, its queue, its conversation and who is attached.

Knows nothing of other sessions, of the model or of when its requests get their turn (the hub does). Commands are put
into the hub's outbox. Invariants: every accepted request reaches exactly one terminal event; requests start in the
order accepted; the floor never passes the owner's ack.
"""

from __future__ import annotations

import math
from collections import deque

from llmws.protocol import CloseCode, encode
from llmws.protocol import messages as m
from llmws.session.attachment import ACK_INTERVAL_S, Attachment
from llmws.session.conversation import Conversation
from llmws.session.events import Disconnect, HubCommand, Send
from llmws.session.finished import FinishedRequests, Unacknowledged
from llmws.session.journal import EventLog, Journal
from llmws.session.records import AckBody, RequestBody, encode_body
from llmws.session.request import Request
from llmws.session.rules import Rules
from llmws.session.snapshot import SnapshotBuilder
from llmws.store_api import Close, Compact, Create, DropBuffer, Keep, ReadResult, SessionMeta


class Session:
    """A session in memory. `outbox` takes the commands; `now_s` arguments are monotonic, `*_unix_s` wall clock.

    Attributes:
        ends: (epoch, last seq) of the epochs before this opening.
        corrupt_epoch: positions from epochs before this one cannot be trusted.
        hole_seq: the newest event that is missing in the log though nobody acknowledged it; 0 if none is.
        floor: events up to here are acknowledged by the owner, or have expired.
        queue: the accepted requests without a terminal event, in order; the first is the one that runs.
        finished: the ones that have one.
        idle_since_s: when the last client left, in the server's uptime.
        is_archived: it does not count as a live session.
    """

    def __init__(
        self,
        session_id: str,
        owner: str,
        *,
        epoch: int,
        outbox: list[HubCommand],
        now_unix_s: float,
        rules: Rules,
    ) -> None:
        self.id = session_id
        self.owner = owner
        self.created_unix_s = self.last_activity_unix_s = now_unix_s
        self.rules = rules
        self.log = EventLog(session_id, epoch=epoch, rules=rules)
        self.conversation = Conversation(session_id, durability=rules.durability)
        self.finished = FinishedRequests()
        self.ends: tuple[tuple[int, int], ...] = ()
        self.corrupt_epoch = 0
        self.hole_seq = 0
        self.floor = 0
        self.queue: deque[Request] = deque()
        self.attachment: Attachment | None = None
        self.observers: dict[int, Attachment] = {}
        self.is_stored = False
        self.is_archived = False
        self.idle_since_s = 0.0
        self._outbox = outbox
        self._has_buffer = False
        self._is_dropping = False
        self._is_compacting = False
        self._is_over_quota = False
        self._floor_recorded = 0
        self._floor_recorded_s = float("-inf")
        self._floor_record_n = 0

    # --- attachments -----------------------------------------------------------------------------------------------

    def attachments(self) -> list[Attachment]:
        """Everyone attached, the owner first."""
        return [*([self.attachment] if self.attachment else []), *self.observers.values()]

    def find(self, connection: int) -> Attachment | None:
        """The connection's attachment, if it is still attached."""
        if self.attachment and self.attachment.connection == connection:
            return self.attachment
        return self.observers.get(connection)

    def attach(self, attachment: Attachment) -> None:
        """Takes a new connection; the newest owner closes the older one."""
        if attachment.mode == "observe":
            self.observers[attachment.connection] = attachment
            return
        if self.attachment is not None:
            self._outbox.append(Disconnect(self.attachment.connection, CloseCode.TAKEN_OVER, "taken over"))
        self.attachment = attachment

    def detach(self, connection: int) -> None:
        """Forgets a connection; a late death of one that was taken over changes nothing."""
        self.observers.pop(connection, None)
        if self.attachment and self.attachment.connection == connection:
            self.attachment = None

    def reset_reason(self, position: m.Position | None) -> str | None:
        """Why a position cannot be continued, or None when it can. Source: log-format, "Epochs and positions"."""
        if (self.floor if position is None else position.last_seq) < self.hole_seq:
            return "log_corrupt"
        if position is None:
            return None
        ends = dict(self.ends) | {self.log.epoch: self.log.sendable}
        if position.epoch not in ends:
            return "unknown_epoch"
        if position.epoch < self.corrupt_epoch:
            return "log_corrupt"
        if position.last_seq > ends[position.epoch]:
            return "client_ahead"
        return "below_floor" if position.last_seq < self.floor else None

    def snapshot_builder(self) -> SnapshotBuilder:
        """Gathers the state of the requests that are open or still in the log, as of now."""
        ended = [each for each in self.finished.unacknowledged.values() if each.seq > self.floor]
        kept: list[Request | Unacknowledged] = [*self.queue, *ended]
        starts = [each.start_seq - 1 for each in kept if each.start_seq > 0]
        as_of = self.log.sendable
        return SnapshotBuilder(
            after_seq=min([self.floor, as_of, *starts]),
            as_of=as_of,
            floor=self.floor,
            hole_seq=self.hole_seq,
            queued=[each.id for each in self._safe_queue()],
        )

    def open_requests(self) -> list[m.RequestState]:
        """The requests without a terminal event, in order."""
        return [
            m.RequestState(request_id=each.id, state="running" if each.is_started else "queued")
            for each in self._safe_queue()
        ]

    def _safe_queue(self) -> list[Request]:
        """The open requests that a kill would not take; of the others nobody is told."""
        return [each for each in self.queue if each.record_n <= self.log.journal.settled]

    # --- writing ---------------------------------------------------------------------------------------------------

    def emit(self, message: m.Event, *, sync: bool = False) -> int:
        """Makes the message the session's next event."""
        self.ensure_stored()
        return self.log.emit(message, sync=sync)

    def ensure_stored(self) -> None:
        """Makes the session's files, if it lived in memory only."""
        if not self.is_stored:
            self.is_stored = True
            self._outbox.append(Create(session_id=self.id, epoch=self.log.epoch, meta=self.meta()))

    def accept(self, request: Request) -> None:
        """Queues a new request; its record is durable before anybody is told."""
        self.ensure_stored()
        body = RequestBody(
            request_id=request.id,
            owner=self.owner,
            body=request.message,
            body_hash=request.digest.hex(),
            sampling=request.sampling,
            accepted_s=request.accepted_unix_s,
        )
        request.record_n = self.log.record("request", encode_body(body), sync=True)
        self.queue.append(request)

    def end(self, request: Request, event: m.Done | m.Error) -> None:
        """The request's terminal event. It leaves the queue."""
        self.queue.remove(request)
        self.finished.add(request, event, self.emit(event, sync=True))

    def restored(self, *, has_buffer: bool) -> None:
        """The session was opened from its files."""
        self._has_buffer = has_buffer
        self._floor_recorded = self.floor

    def flush(self) -> None:
        """Hands what was added to the store; the log first, since what the conversation lacks is taken from it."""
        for journal in (self.log.journal, self.conversation.journal):
            append = journal.take()
            if append is not None:
                self._has_buffer = self._has_buffer or append.log == "buffer"
                self._outbox.append(append)

    # --- progress --------------------------------------------------------------------------------------------------

    def flushed(self, *, written: int, durable: int) -> None:
        """Takes the store's report on the buffer log and sends what it frees."""
        self.log.flushed(written=written, durable=durable)
        self.release_replies()
        self.pump_all()
        self.drop_if_done()

    def reply_when_settled(self, attachment: Attachment, journal: Journal, n: int, message: m.Message) -> None:
        """Sends an un-sequenced reply once record `n` of one of the session's logs is as safe as it has to be."""
        journal.reply_when_settled(n, attachment.connection, encode(message))
        self.release_replies()

    def release_replies(self) -> None:
        """Sends the replies that what was written frees."""
        for journal in (self.conversation.journal, self.log.journal):
            for connection, frame in journal.take_replies():
                if self.find(connection) is not None:
                    self._outbox.append(Send(connection, (frame,)))

    def pump_all(self) -> None:
        """Sends everyone what they may have."""
        if self.attachment is not None:
            self.pump(self.attachment)
        for observer in self.observers.values():
            self.pump(observer)
        self.log.trim(keep_bytes=self.rules.tail_bytes if self.attachment or self.observers else 0)

    def pump(self, attachment: Attachment) -> None:
        """Sends one connection what it may have."""
        frames, read = attachment.pump(self.log)
        self.send(attachment, frames)
        if read is not None:
            self._outbox.append(read)

    def read_done(self, result: ReadResult) -> list[int]:
        """Passes what was read to the attachment that asked; returns who must resume again (detached already)."""
        lost = []
        for attachment in self.attachments():
            frames = attachment.read_done(result, self.log)
            if frames is None:
                self.detach(attachment.connection)
                lost.append(attachment.connection)
                self._outbox.append(
                    Disconnect(attachment.connection, CloseCode.RESYNC, "the log moved on; resume again")
                )
            else:
                self.send(attachment, frames)
                self.pump(attachment)
        return lost

    def send(self, attachment: Attachment, frames: list[bytes]) -> None:
        """Sends frames to one connection."""
        if frames:
            self._outbox.append(Send(attachment.connection, tuple(frames)))

    # --- acknowledgement -------------------------------------------------------------------------------------------

    def ack(self, attachment: Attachment, seq: int, *, now_s: float) -> None:
        """Takes an acknowledgement that was checked against what the client can have seen."""
        attachment.acked(seq)
        if attachment.mode == "takeover" and seq > self.floor:
            self.floor = seq
            self.finished.age(self.floor)
        self.drop_if_done()
        self.send_due(now_s=now_s)
        self.pump(attachment)

    def record_floor(self, *, now_s: float) -> None:
        """Logs the floor, at most four times a second; at once with `now_s` infinite."""
        if self.floor == self._floor_recorded or now_s - self._floor_recorded_s < ACK_INTERVAL_S:
            return
        if self._has_buffer:
            self._floor_recorded = self.floor
            self._floor_recorded_s = now_s if math.isfinite(now_s) else -math.inf
            self._floor_record_n = self.log.record("ack", encode_body(AckBody(floor=self.floor)), sync=False)
            self._compact_if_due()

    def drop_if_done(self) -> None:
        """Deletes the buffer file when everything is acknowledged, nothing is open and all is safely written."""
        if (
            self._has_buffer
            and not self._is_dropping
            and not self.queue
            and self.floor == self.log.last_seq
            and self.log.journal.is_settled
            and self.conversation.journal.is_settled
        ):
            self._is_dropping, self._has_buffer = True, False
            self._floor_recorded = self.floor
            self.log.extent.clear()
            self._outbox.append(DropBuffer(session_id=self.id, meta=self.meta()))

    def dropped(self, *, now_s: float) -> None:
        """The buffer file is gone: now the acknowledgement can be confirmed."""
        self._is_dropping = False
        self.send_due(now_s=now_s)

    def send_due(self, *, now_s: float) -> None:
        """Logs the floor, and confirms the acknowledgements that are due; the drop of the buffer does so by itself."""
        if self._is_dropping:
            return
        self.record_floor(now_s=now_s)
        if self._has_buffer and self._floor_recorded != self.floor:
            return
        for attachment in self.attachments():
            reply = attachment.ack_reply(self.floor, now_s=now_s)
            if reply is not None:
                attachment.hold_until_n = self._floor_record_n
                self.reply_when_settled(attachment, self.log.journal, self._floor_record_n, reply)

    def _compact_if_due(self) -> None:
        """Drops what is acknowledged once it is half of the log. Source: log-format, "Compaction".

        Kept is everything from the `request` record of the oldest request on that is not wholly acknowledged: to go on,
        and to know its id again, takes all of it.
        """
        needed = [each.record_n for each in self.queue]
        needed += [each.record_n for each in self.finished.unacknowledged.values()]
        extent = self.log.extent
        mark = extent.cut(seq=self.floor, n=min(needed, default=self.log.journal.last_n))
        if mark is None or self._is_compacting or self._is_dropping:
            return
        if mark.all_bytes >= max(self.rules.compact_bytes, extent.all_bytes // 2):
            self._is_compacting = True
            self._outbox.append(Compact(session_id=self.id, first_n=mark.n, meta=self.meta()))

    def compacted(self, first_n: int) -> None:
        """The log begins with record `first_n` now."""
        self._is_compacting = False
        self.log.extent.begin_at(first_n)

    def expire(self) -> None:
        """Lets go of what nobody came back for; the conversation stays."""
        self.floor = self.log.last_seq
        self.finished.age(self.floor)
        self.is_archived = True
        self.drop_if_done()

    @property
    def is_log_full(self) -> bool:
        """Whether the log holds so much, requests included, that it takes no more of them."""
        return self.log.extent.all_bytes > 2 * self.rules.max_unacknowledged_bytes

    def is_over_quota(self) -> bool:
        """Whether so much is unacknowledged that nothing more may be generated; once over, until half is free again."""
        share = 2 if self._is_over_quota else 1
        max_bytes = self.rules.max_unacknowledged_bytes
        extent = self.log.extent
        self._is_over_quota = (self.log.last_seq - self.floor) * share > self.rules.max_unacknowledged_events or (
            # All events together are mostly far below it, which is seen at once.
            extent.event_bytes * share > max_bytes and extent.beyond_bytes(self.floor) * share > max_bytes
        )
        return self._is_over_quota

    # --- meta ------------------------------------------------------------------------------------------------------

    def meta(self) -> SessionMeta:
        """What the store keeps beside the logs."""
        return SessionMeta(
            owner=self.owner,
            created_s=self.created_unix_s,
            last_activity_s=self.last_activity_unix_s,
            last_seq=self.log.sendable,
            floor=self.floor,
            finished=self.finished.ledger(),
            title=self.conversation.title,
            messages=len(self.conversation.messages),
            idle_since_s=self.idle_since_s,
            archived=self.is_archived,
        )

    def keep(self) -> None:
        """Writes meta, for what the logs do not tell."""
        if self.is_stored:
            self._outbox.append(Keep(session_id=self.id, meta=self.meta()))

    @property
    def is_acknowledged(self) -> bool:
        """Whether nothing runs and nobody is owed anything."""
        return not self.queue and self.floor == self.log.last_seq

    def is_idle(self) -> bool:
        """Whether nothing is attached, queued or on its way to the disk, so that the session can leave memory."""
        return not (
            self.attachment
            or self.observers
            or self.queue
            or self._is_dropping
            or self._is_compacting
            or not self.log.journal.is_settled
            or not self.conversation.journal.is_settled
        )

    def close(self) -> None:
        """Closes the session's files, if it has any."""
        self.flush()
        if self.is_stored:
            self._outbox.append(Close(session_id=self.id, meta=self.meta()))

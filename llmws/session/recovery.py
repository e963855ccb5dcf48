"""Folds what the store found of a session back into a `Session`.

Pure. Invariant: what comes out is what the process that wrote the log would have said at its last settled record:
every request with a terminal event is ended, every other accepted one is queued again with all its tokens, in the
order accepted.
"""

from __future__ import annotations

import msgspec

from llmws.protocol import decode_server
from llmws.protocol import messages as m
from llmws.session.conversation import Conversation
from llmws.session.events import HubCommand
from llmws.session.finished import FinishedRequests
from llmws.session.journal import EventLog
from llmws.session.records import AckBody, PromptBody, RequestBody
from llmws.session.request import Request
from llmws.session.rules import Rules
from llmws.session.session import Session
from llmws.store_api import Opened, Record

_REQUEST = msgspec.json.Decoder(RequestBody)
_PROMPT = msgspec.json.Decoder(PromptBody)
_ACK = msgspec.json.Decoder(AckBody)


class RestoredTurn(msgspec.Struct, frozen=True):
    """A request that ended; its turn may still be missing in the conversation."""

    request: Request
    terminal: m.Done | m.Error


def restore(
    opened: Opened, *, outbox: list[HubCommand], now_s: float, rules: Rules
) -> tuple[Session, list[RestoredTurn]]:
    """The session, and the requests that ended within the log (a crash may have come before their turns were kept)."""
    meta = opened.meta
    session = Session(
        opened.session_id, meta.owner, epoch=opened.epoch, outbox=outbox, now_unix_s=meta.created_s, rules=rules
    )
    session.ends = opened.ends
    session.is_stored = True
    session.is_archived = meta.archived
    session.idle_since_s = meta.idle_since_s
    session.finished = FinishedRequests(key=opened.ledger_key, ledger=meta.finished)
    session.conversation = Conversation(
        opened.session_id, durability=rules.durability, records=opened.conversation, next_n=opened.next_conversation_n
    )
    newest_s = max((each.created_s for each in session.conversation.messages.values()), default=0.0)
    session.last_activity_unix_s = max(meta.last_activity_s, newest_s)
    fold = _Fold(floor=meta.floor, now_s=now_s)
    for record in opened.records:
        fold.add(record)
    session.floor = fold.floor
    reached = max(fold.last_seq, session.floor)
    last_seq = max(reached, meta.last_seq)
    session.corrupt_epoch = opened.corrupt_epoch
    # A meta that has seen more events than the log holds: the log's end was lost, though no line of it is damaged.
    session.hole_seq = last_seq if last_seq > reached else fold.hole_seq
    session.log = EventLog(opened.session_id, epoch=opened.epoch, rules=rules, next_n=opened.next_n, last_seq=last_seq)
    for record in opened.records:
        if record.kind == "event":
            session.log.extent.add_event(seq=record.seq, n=record.n, size_bytes=len(record.value))
        else:
            session.log.extent.add(len(record.value))
    for request in fold.open.values():
        if not request.is_started:
            request.prompt = None  # nobody saw a start: its turn comes as if for the first time
        session.queue.append(request)
    for turn in fold.ended:
        assert isinstance(turn.terminal.seq, int)
        session.finished.add(turn.request, turn.terminal, turn.terminal.seq)
    session.finished.age(session.floor)
    session.restored(has_buffer=bool(opened.records))
    return session, fold.ended


class _Fold:
    """The open and ended requests, the floor, and the newest event that is missing though nobody acknowledged it."""

    def __init__(self, *, floor: int, now_s: float) -> None:
        self._now_s = now_s
        self.open: dict[str, Request] = {}
        self.ended: list[RestoredTurn] = []
        self.last_seq = 0
        self.floor = floor
        self.hole_seq = 0

    def add(self, record: Record) -> None:
        match record.kind:
            case "request":
                self._request(_REQUEST.decode(record.value), record.n)
            case "prompt":
                prompt = _PROMPT.decode(record.value)
                if prompt.request_id in self.open:
                    self.open[prompt.request_id].prompt = prompt
            case "event":
                if record.seq > max(self.last_seq, self.floor) + 1:
                    self.hole_seq = record.seq - 1
                self.last_seq = record.seq
                self._event(decode_server(record.value), record.seq)
            case "ack":
                self.floor = max(self.floor, _ACK.decode(record.value).floor)

    def _request(self, body: RequestBody, n: int) -> None:
        request = Request(
            message=body.body,
            request_id=body.request_id,
            digest=bytes.fromhex(body.body_hash),
            sampling=body.sampling,
            accepted_s=self._now_s,
            accepted_unix_s=body.accepted_s,
        )
        request.record_n = n
        self.open[request.id] = request

    def _event(self, event: m.ServerMessage, seq: int) -> None:
        request = self.open.get(getattr(event, "request_id", None) or "")
        if request is None:
            return
        match event:
            case m.Start():
                request.start_seq = seq
            case m.Token():
                request.add(event.ids, event.data, now_s=self._now_s)
            case m.Log(code="resumed_after_restart"):
                request.fruitless_resumes += 1
            case m.Done() | m.Error():
                del self.open[request.id]
                self.ended.append(RestoredTurn(request, event))

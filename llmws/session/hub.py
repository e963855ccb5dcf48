"""The hub: takes an event, returns commands.

Owns who is attached to what; turns, models, messages and where sessions are have files of their own. It
is synchronous and imports neither asyncio, sockets, files nor torch. Invariants: a connection belongs to at most one
session; nothing is sent to a connection that is not attached.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, Literal

from llmws import protocol
from llmws.engine_api import (
    Chunk,
    ModelFailed,
    ModelInfo,
    ModelLoaded,
    ModelProgress,
    ModelRef,
    ModelUnloaded,
    PromptFailed,
    PromptReady,
)
from llmws.protocol import CloseCode, ErrorCode
from llmws.protocol import messages as m
from llmws.session import events as e
from llmws.session.attachment import Attachment
from llmws.session.desk import Desk
from llmws.session.models import Models
from llmws.session.notices import Notices
from llmws.session.session import Session
from llmws.session.shelf import Shelf
from llmws.session.state import HubSettings, HubState
from llmws.session.turns import Turns
from llmws.store_api import (
    Compacted,
    Created,
    Deleted,
    Dropped,
    Failed,
    Flushed,
    Opened,
    ReadResult,
    Surveyed,
    Unknown,
)

UPTIME_EVERY_S: Final = 60.0


class Hub:
    """All decisions of the server."""

    def __init__(self, settings: HubSettings, *, clock: e.Clock, entropy: e.Entropy) -> None:
        self._state = HubState(settings, clock=clock, entropy=entropy)
        self._models = Models(self._state)
        self._turns = Turns(self._state, self._models)
        self._notices = Notices(self._state, self._turns)
        self._shelf = Shelf(self._state, self._turns, again=self._take)
        self._desk = Desk(self._state, self._models, self._turns, self._notices, self._shelf)
        self._uptime_due_s = 0.0
        self._takers: dict[type, Callable[[Any], None]] = {
            e.Attach: self._attach,
            e.Receive: self._receive,
            e.Detach: self._detach,
            e.Congested: self._congested,
            e.Drained: self._drained,
            e.Answer: self._answer,
            e.ModelsScanned: self._models.scanned,
            e.ScanFailed: self._models.scan_failed,
            e.MemoryRead: self._memory_read,
            e.SelectModel: self._models.select,
            e.UnfinishedFound: self._shelf.unfinished_found,
            e.Tick: self._tick,
            e.Drain: self._drain,
            e.Shutdown: self._shutdown,
            Chunk: self._turns.chunk,
            ModelProgress: self._models.progress,
            ModelLoaded: self._model_loaded,
            ModelUnloaded: self._models.unloaded,
            ModelFailed: self._model_failed,
            PromptReady: self._turns.prompt_ready,
            PromptFailed: self._turns.prompt_failed,
            Created: self._created,
            Opened: self._shelf.opened,
            Unknown: self._unknown,
            Flushed: self._flushed,
            ReadResult: self._read_result,
            Dropped: self._dropped,
            Compacted: self._compacted,
            Surveyed: self._shelf.surveyed,
            Deleted: lambda event: self._shelf.deleted(event.session_id),
            Failed: self._shelf.failed,
        }

    def handle(self, *events: e.HubEvent) -> list[e.HubCommand]:
        """What is to be done about events that came together, in order.

        Turns are given and logs handed over once for all of them, so a busy server pays for that once a tick.
        """
        state = self._state
        for event in events:
            self._take(event)
        self._turns.admit()
        self._notices.turns_given()
        for session in state.dirty.values():
            session.flush()
        state.dirty.clear()
        commands, state.out[:] = state.out[:], ()
        return commands

    def _take(self, event: e.HubEvent) -> None:
        self._takers[type(event)](event)

    @property
    def default(self) -> ModelInfo | None:
        """The model for requests that name none, as it was when it was last loaded."""
        return self._models.default

    @property
    def resident(self) -> frozenset[str]:
        """The names of the loaded models."""
        return frozenset(self._models.resident)

    @property
    def available(self) -> tuple[ModelRef, ...]:
        """The models found by the last scan."""
        return self._models.available

    @property
    def is_quiet(self) -> bool:
        """Whether no request is being rendered or generated."""
        return not self._turns.active

    # --- connections -----------------------------------------------------------------------------------------------

    def _attach(self, event: e.Attach) -> None:
        session_id = event.hello.session_id
        if session_id is None:
            self._attach_new(event, reason=None)
        elif (session := self._state.sessions.get(session_id)) is not None:
            self._attach_known(session, event)
        else:
            self._shelf.open_for(session_id, event)

    def _attach_new(self, event: e.Attach, *, reason: str | None) -> None:
        state = self._state
        now_unix_s = state.clock.time()
        session = Session(
            state.entropy.new_id(),
            event.principal,
            epoch=int(now_unix_s * 1000),
            outbox=state.out,
            now_unix_s=now_unix_s,
            rules=state.settings.rules,
        )
        state.sessions[session.id] = session
        attachment = self._attachment(session, event, mode="takeover", position=0)
        self._welcome(session, attachment, status="new", reason=reason)

    def _attach_known(self, session: Session, event: e.Attach) -> None:
        hello = event.hello
        if session.owner != event.principal:
            # For anyone else the id is as good as unknown: it must not tell that the session exists.
            self._attach_new(event, reason="session_unknown")
            return
        if hello.mode == "observe" and len(session.observers) >= self._state.settings.max_observers:
            text = "this session has as many observers as it may have"
            self._state.reject(event.connection, ErrorCode.RATE_LIMITED, text)
            self._state.out.append(e.Disconnect(event.connection, CloseCode.TRY_LATER, "too many observers"))
            return
        reason = session.reset_reason(hello.resume)
        position = hello.resume.last_seq if hello.resume and reason is None else session.floor
        attachment = self._attachment(session, event, mode=hello.mode, position=position)
        if reason is None:
            self._welcome(session, attachment, status="resumed", reason=None)
            attachment.announce_caught_up(session.log.sendable)
        else:
            self._welcome(session, attachment, status="reset", reason=reason)
            attachment.begin_snapshot(session.snapshot_builder())
        session.pump(attachment)

    def _attachment(
        self, session: Session, event: e.Attach, *, mode: Literal["takeover", "observe"], position: int
    ) -> Attachment:
        attachment = Attachment(
            event.connection,
            session.id,
            role=event.role,
            mode=mode,
            window=event.hello.window,
            position=position,
            rules=self._state.settings.rules,
        )
        state = self._state
        if mode == "takeover" and session.attachment is not None:
            state.connections.pop(session.attachment.connection, None)
        state.connections[event.connection] = session
        state.detached_s.pop(session.id, None)
        session.last_activity_unix_s = state.clock.time()
        session.idle_since_s = state.uptime_s()
        session.attach(attachment)
        return attachment

    def _welcome(
        self,
        session: Session,
        attachment: Attachment,
        *,
        status: Literal["new", "resumed", "reset"],
        reason: str | None,
    ) -> None:
        settings = self._state.settings
        welcome = m.Welcome(
            protocol=protocol.VERSION,
            session_id=session.id,
            status=status,
            reason=reason,
            epoch=session.log.epoch,
            head_seq=session.log.sendable,
            floor_seq=session.floor,
            requests=session.open_requests(),
            model=self._models.name,
            capabilities=self._models.capabilities(),
            resources=self._state.device,
            limits=settings.limits,
            heartbeat=settings.heartbeat,
            durability=settings.rules.durability,
            server=settings.server,
            role=attachment.role,
        )
        session.send(attachment, [protocol.encode(welcome)])

    def _detach(self, event: e.Detach) -> None:
        self._shelf.withdraw(event.connection)
        session = self._state.connections.pop(event.connection, None)
        if session is None:
            return  # taken over before
        was_owner = session.attachment is not None and session.attachment.connection == event.connection
        session.detach(event.connection)
        self._note_detached(session)
        session.record_floor(now_s=math.inf)
        self._state.dirty[session.id] = session
        if was_owner:
            self._turns.cancel_abandoned(session)

    def _note_detached(self, session: Session) -> None:
        if not session.attachments():
            self._state.detached_s[session.id] = self._state.clock.monotonic()
            session.idle_since_s = self._state.uptime_s()
            session.log.trim(keep_bytes=0)

    def _receive(self, event: e.Receive) -> None:
        session = self._state.connections.get(event.connection)
        attachment = self._state.attachment(event.connection)
        if session is not None and attachment is not None:
            self._desk.take(session, attachment, event.message)
        else:
            self._shelf.wait(event)

    def _congested(self, event: e.Congested) -> None:
        if attachment := self._state.attachment(event.connection):
            attachment.is_congested = True

    def _drained(self, event: e.Drained) -> None:
        if attachment := self._state.attachment(event.connection):
            attachment.is_congested = False
            self._state.connections[event.connection].pump(attachment)

    def _answer(self, event: e.Answer) -> None:
        if self._state.attachment(event.connection):
            self._state.send(event.connection, event.message)

    # --- storage ---------------------------------------------------------------------------------------------------

    def _unknown(self, event: Unknown) -> None:
        for each in self._shelf.unknown(event.session_id):
            if isinstance(each, e.Attach):
                self._attach_new(each, reason="session_unknown")
            elif isinstance(each.message, m.EndSession) and each.message.session_id == event.session_id:
                self._desk.no_such_session(each.connection)
            else:
                self._receive(each)

    def _created(self, event: Created) -> None:
        if session := self._state.sessions.get(event.session_id):
            session.finished.key = event.ledger_key

    def _flushed(self, event: Flushed) -> None:
        session = self._state.sessions.get(event.session_id)
        if session is None:
            return
        if event.log == "buffer":
            session.flushed(written=event.written, durable=event.durable)
        else:
            session.conversation.journal.flushed(written=event.written, durable=event.durable)
            session.release_replies()
            session.drop_if_done()

    def _read_result(self, event: ReadResult) -> None:
        if session := self._state.sessions.get(event.session_id):
            for connection in session.read_done(event):
                self._state.connections.pop(connection, None)
                self._note_detached(session)

    def _dropped(self, event: Dropped) -> None:
        if session := self._state.sessions.get(event.session_id):
            session.dropped(now_s=self._state.clock.monotonic())

    def _compacted(self, event: Compacted) -> None:
        if session := self._state.sessions.get(event.session_id):
            session.compacted(event.first_n)

    # --- the server ------------------------------------------------------------------------------------------------

    def _model_loaded(self, event: ModelLoaded) -> None:
        self._models.loaded(event)
        self._turns.model_loaded(event)

    def _model_failed(self, event: ModelFailed) -> None:
        self._models.failed(event)
        self._turns.load_failed(event)

    def _memory_read(self, event: e.MemoryRead) -> None:
        self._state.device = event.device

    def _tick(self, _event: e.Tick) -> None:
        state = self._state
        now_s = state.clock.monotonic()
        for session in state.attached():
            session.send_due(now_s=now_s)
            state.dirty[session.id] = session
        self._turns.expire(now_s)
        self._notices.tick(now_s)
        self._shelf.tick(now_s)
        if now_s >= self._uptime_due_s:
            self._uptime_due_s = now_s + UPTIME_EVERY_S
            state.out.append(e.SaveUptime(state.uptime_s()))

    def _drain(self, _event: e.Drain) -> None:
        self._state.is_draining = True

    def _shutdown(self, _event: e.Shutdown) -> None:
        self._state.is_draining = True
        self._shelf.shut()
        self._state.out.append(e.SaveUptime(self._state.uptime_s()))

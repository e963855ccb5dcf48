"""The desk: what an attached client's messages do.

Owns validation beyond types and ranges, and who may say what; `hello` and `ping` never get past the door. Invariant:
a message that is refused changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import msgspec

from llmws.access import MESSAGES, permits
from llmws.engine_api import NO_IMAGES
from llmws.protocol import CloseCode, ErrorCode, encode
from llmws.protocol import messages as m
from llmws.session import events as e
from llmws.session.allowance import Allowance
from llmws.session.attachment import Attachment
from llmws.session.finished import Past
from llmws.session.images import wrong_images
from llmws.session.models import Models
from llmws.session.notices import Notices
from llmws.session.records import request_digest
from llmws.session.request import Request, merge, resolve
from llmws.session.session import Session
from llmws.session.shelf import Shelf
from llmws.session.state import HubState, rejection
from llmws.session.turns import Turns

_OBSERVER_MAY: Final = (m.Ack, m.GetResources, m.GetStatus, m.ListModels, m.ListSessions, m.History, m.Cancel)

_KEPT: Final = (m.Config, m.UpdateSession, m.Import, m.SwitchModel)
"""What makes the session take disk, beside requests."""

_FULL: Final = "this session's conversation is full; begin another session"

_LATER: Final = (m.DownloadModel, m.CancelDownload, m.ListPeers)
"""Part of the protocol, but not of this version."""


class Desk:
    """Takes the messages of attached clients."""

    def __init__(self, state: HubState, models: Models, turns: Turns, notices: Notices, shelf: Shelf) -> None:
        self._state = state
        self._models = models
        self._turns = turns
        self._notices = notices
        self._shelf = shelf
        self._allowance = Allowance(per_minute=state.settings.requests_per_minute)
        self._takers: dict[type, Callable[[Session, Attachment, Any], None]] = {
            m.Inference: self._inference,
            m.Cancel: self._cancel,
            m.Ack: self._ack,
            m.Config: self._config,
            m.GetResources: self._inspect,
            m.GetStatus: self._get_status,
            m.ListModels: self._inspect,
            m.SwitchModel: self._switch_model,
            m.DeleteModel: self._delete_model,
            m.History: self._history,
            m.UpdateSession: self._update_session,
            m.Import: self._import,
            m.ListSessions: self._list_sessions,
            m.EndSession: self._end_session,
            **dict.fromkeys(_LATER, self._refuse),
        }

    def take(self, session: Session, attachment: Attachment, message: m.ClientMessage) -> None:
        """Does what the message asks, or says why not."""
        kind = message.__struct_config__.tag
        refuse = self._state.reject
        if attachment.mode == "observe" and not isinstance(message, _OBSERVER_MAY):
            text = f"an observer may not send {kind}; attach again to take over"
            refuse(attachment.connection, ErrorCode.FORBIDDEN, text, message)
        elif not permits(attachment.role, needed := MESSAGES.get(type(message))):
            refuse(attachment.connection, ErrorCode.FORBIDDEN, f"{kind} needs a token of role {needed}", message)
        elif isinstance(message, _KEPT) and (refusal := self._no_room(session, None)) is not None:
            session.send(attachment, [encode(refusal)])
        else:
            self._state.dirty[session.id] = session
            if isinstance(message, (m.Inference, *_KEPT)):
                session.last_activity_unix_s = self._state.clock.time()
            self._takers[type(message)](session, attachment, message)

    def _no_room(self, session: Session, request_id: str | None) -> m.Error | None:
        """Why nothing more is kept for this owner just now, or None."""
        if not self._shelf.make_room(session):
            text = "as many sessions as allowed are in use; leave or end one, or acknowledge what it holds"
            return rejection(request_id, ErrorCode.RATE_LIMITED, text)
        wait_s = self._allowance.take(session.owner, now_s=self._state.clock.monotonic())
        if wait_s > 0:
            error = rejection(request_id, ErrorCode.RATE_LIMITED, "too many requests; send it again a little later")
            return msgspec.structs.replace(error, retry_after_ms=math.ceil(wait_s * 1e3))
        return None

    # --- requests --------------------------------------------------------------------------------------------------

    def _inference(self, session: Session, attachment: Attachment, message: m.Inference) -> None:
        request_id = message.request_id or self._state.entropy.new_id()
        message = msgspec.structs.replace(message, request_id=request_id)
        # First of all: to look at each of the messages that a full session is sent would take long.
        if session.conversation.is_full and self._would_add(session, message, request_id):
            session.send(attachment, [encode(rejection(request_id, ErrorCode.BAD_REQUEST, _FULL, field="prompt"))])
            return
        digest = request_digest(message)
        if self._is_known(session, attachment, request_id, digest):
            return
        if self._state.is_draining:
            # The client comes back by itself and sends it again; nothing was taken, so nothing is lost.
            self._state.out.append(e.Disconnect(attachment.connection, CloseCode.DRAINING, "the server is stopping"))
            return
        refusal = self._refusal(session, message)
        if refusal is not None:
            session.send(attachment, [encode(refusal)])
            return
        request = Request(
            message=message,
            request_id=request_id,
            digest=digest,
            sampling=resolve(
                message.config,
                session.conversation.settings.sampling,
                self._state.settings.generation_defaults,
                seed=self._state.entropy.new_seed(),
            ),
            accepted_s=self._state.clock.monotonic(),
            accepted_unix_s=self._state.clock.time(),
        )
        session.accept(request)
        self._turns.enqueue(session)
        self._notices.tell(session, attachment, request)

    def _would_add(self, session: Session, message: m.Inference, request_id: str) -> bool:
        """Whether the message asks for a new turn of the session's conversation."""
        is_known = (
            any(each.id == request_id for each in session.queue)
            or request_id in session.finished
            or session.conversation.how_ended(request_id) is not None
        )
        return message.messages is None and message.input_ids is None and not is_known

    def _is_known(self, session: Session, attachment: Attachment, request_id: str, digest: bytes) -> bool:
        """Whether the id was used before; the client is then told what became of that request."""
        waiting = next((each for each in session.queue if each.id == request_id), None)
        if waiting is not None:
            if waiting.digest == digest:
                self._notices.tell(session, attachment, waiting, even_first=True)
                return True
            past = None
        elif (past := session.finished.find(request_id, digest, floor=session.floor)) is None:
            ended = session.conversation.how_ended(request_id)
            if ended is None:
                return False
            past = Past(is_same=True, terminal=ended)  # so long ago that its body is not remembered
        if past is None or not past.is_same:
            text = "this request_id was used for another request in this session"
            session.send(attachment, [encode(rejection(request_id, ErrorCode.CONFLICT, text))])
        elif past.record_n is not None:
            answer = m.Queue(request_id=request_id, position=0)
            session.reply_when_settled(attachment, session.log.journal, past.record_n, answer)
        else:
            text = "this request ran already; its events were acknowledged and dropped"
            error = rejection(request_id, ErrorCode.DUPLICATE, text)
            session.send(attachment, [encode(msgspec.structs.replace(error, terminal=past.terminal))])
        return True

    def _refusal(self, session: Session, message: m.Inference) -> m.Error | None:
        """Why a new request is not accepted, or None."""
        request_id = message.request_id
        if message.model is not None:
            ref = self._models.find(message.model)
            if ref is None:
                text = "no such model here; list_models lists them"
                return rejection(request_id, ErrorCode.MODEL_NOT_FOUND, text, field="model")
            if not self._models.may_serve(ref):
                text = "this model is not loaded; an admin must switch to it"
                return rejection(request_id, ErrorCode.MODEL_NOT_FOUND, text, field="model")
        elif self._models.name is None and self._models.is_settled:
            return rejection(request_id, ErrorCode.NO_MODEL, self._models.no_default())
        wrong = _wrong_context(message) or self._wrong_for_model(message)
        if wrong is None and (misplaced := session.conversation.wrong_parent(message)) is not None:
            wrong = "parent_id", misplaced
        if wrong is not None:
            field, text = wrong
            return rejection(request_id, ErrorCode.BAD_REQUEST, text, field=field)
        if len(session.queue) >= self._state.settings.limits.max_queue:
            return rejection(request_id, ErrorCode.QUEUE_FULL, "this session's queue is full")
        if session.is_log_full:
            text = "too much of this session is not acknowledged"
            return rejection(request_id, ErrorCode.RATE_LIMITED, text)
        return self._no_room(session, request_id)

    def _wrong_for_model(self, message: m.Inference) -> tuple[str, str] | None:
        """What the model that will serve cannot take, as (field, text); of one that is not loaded it is seen later."""
        ref = self._models.serving(message.model)
        info = self._models.resident.get(ref.name) if ref is not None else None
        if info is None:
            return None
        if isinstance(message.prompt, m.Prompt) and message.prompt.images and not info.vision:
            return "prompt.images", NO_IMAGES
        for index, token in enumerate(message.input_ids or () if info.vocab_size else ()):
            if token >= info.vocab_size:
                return f"input_ids[{index}]", f"the model's vocabulary has {info.vocab_size} ids"
        return None

    def _cancel(self, session: Session, attachment: Attachment, message: m.Cancel) -> None:
        request = next((each for each in session.queue if each.id == message.request_id), None)
        if request is not None:
            self._turns.end(session, request, "cancelled")
        elif message.request_id not in session.finished:
            self._state.reject(attachment.connection, ErrorCode.BAD_REQUEST, "no such request", message)

    def _ack(self, session: Session, attachment: Attachment, message: m.Ack) -> None:
        seq = message.seq if message.seq is not None else max(attachment.last_terminal, session.floor)
        if seq > max(attachment.seen, session.floor):
            text = "acknowledges events that this connection was not sent"
            self._state.reject(attachment.connection, ErrorCode.BAD_REQUEST, text, field="seq")
        else:
            if message.window is not None:
                attachment.window = message.window
            session.ack(attachment, seq, now_s=self._state.clock.monotonic())
            self._turns.acknowledged(session)

    # --- the session -----------------------------------------------------------------------------------------------

    def _config(self, session: Session, attachment: Attachment, message: m.Config) -> None:
        session.ensure_stored()
        conversation = session.conversation
        conversation.configure(merge(message.data, conversation.settings.sampling))
        merged = merge(conversation.settings.sampling, self._state.settings.generation_defaults)
        self._confirm(session, attachment, m.ConfigAck(config=merged))

    def _confirm(self, session: Session, attachment: Attachment, reply: m.Message) -> None:
        """Answers a change of the conversation's log once it is safe."""
        journal = session.conversation.journal
        session.reply_when_settled(attachment, journal, journal.last_n, reply)

    def _update_session(self, session: Session, attachment: Attachment, message: m.UpdateSession) -> None:
        session.ensure_stored()
        session.conversation.rename(message.title or None)
        session.keep()
        self._confirm_update(session, attachment)

    def _import(self, session: Session, attachment: Attachment, message: m.Import) -> None:
        late = next((index for index, each in enumerate(message.messages) if index and each.role == "system"), None)
        if late is not None:
            text, field = "a system message can only come first", f"messages[{late}]"
            self._state.reject(attachment.connection, ErrorCode.BAD_REQUEST, text, field=field)
        elif session.conversation.is_full:
            self._state.reject(attachment.connection, ErrorCode.BAD_REQUEST, _FULL, field="messages")
        elif session.queue:
            text = "an answer is on its way; import when it has ended"
            self._state.reject(attachment.connection, ErrorCode.CONFLICT, text)
        else:
            session.ensure_stored()
            state = self._state
            session.conversation.add(message.messages, now_s=state.clock.time(), new_id=state.entropy.new_id)
            session.keep()
            self._confirm_update(session, attachment)

    def _confirm_update(self, session: Session, attachment: Attachment) -> None:
        reply = m.SessionUpdated(session_id=session.id, title=session.conversation.title)
        self._confirm(session, attachment, reply)

    def _list_sessions(self, session: Session, attachment: Attachment, _message: m.ListSessions) -> None:
        self._shelf.list_for(attachment.connection, session.owner)

    def _history(self, session: Session, attachment: Attachment, message: m.History) -> None:
        page = session.conversation.page(before_id=message.before_id, limit=message.limit)
        if page is None:
            text = "no such message in this session"
            self._state.reject(attachment.connection, ErrorCode.BAD_REQUEST, text, field="before_id")
        else:
            session.send(attachment, [encode(page)])

    def _end_session(self, session: Session, attachment: Attachment, message: m.EndSession) -> None:
        ended = self._state.sessions.get(message.session_id)
        if ended is None:
            self._shelf.open_for(message.session_id, e.Receive(attachment.connection, message))
        elif ended.owner != session.owner:
            self.no_such_session(attachment.connection)
        else:
            self._shelf.end(ended, asker=attachment.connection)

    def no_such_session(self, connection: int) -> None:
        """Answers whoever wants to end a session that is not there, or not theirs."""
        self._state.reject(connection, ErrorCode.BAD_REQUEST, "no such session", field="session_id")

    def _refuse(self, _session: Session, attachment: Attachment, message: m.Message) -> None:
        text = f"{message.__struct_config__.tag} is not part of this version"
        self._state.reject(attachment.connection, ErrorCode.UNKNOWN_TYPE, text)

    # --- the server ------------------------------------------------------------------------------------------------

    def _get_status(self, session: Session, attachment: Attachment, _message: m.GetStatus) -> None:
        waiting = sum(len(each.queue) for each in self._state.sessions.values()) - len(self._turns.active)
        status = m.Status(
            model=self._models.name,
            memory=self._state.device,
            sessions=len(self._state.sessions),
            queue=waiting,
            uptime_s=round(self._state.clock.monotonic() - self._state.started_s, 1),
        )
        session.send(attachment, [encode(status)])

    def _inspect(self, _session: Session, attachment: Attachment, message: m.GetResources | m.ListModels) -> None:
        self._state.out.append(e.Inspect(attachment.connection, message))

    def _switch_model(self, session: Session, attachment: Attachment, message: m.SwitchModel) -> None:
        wanted = message.name or message.model_path
        if wanted is None:
            text = "give a name or a model_path"
            self._state.reject(attachment.connection, ErrorCode.BAD_REQUEST, text, field="name")
        else:
            self._models.ask_switch(session.id, wanted)

    def _delete_model(self, _session: Session, attachment: Attachment, message: m.DeleteModel) -> None:
        if self._models.is_wanted(message.model_name) or self._turns.uses(message.model_name):
            text = "this model is needed, or still in memory; it can be deleted once another one has taken its place"
            self._state.reject(attachment.connection, ErrorCode.CONFLICT, text)
        else:
            self._state.out.append(e.Inspect(attachment.connection, message))


def _wrong_context(message: m.Inference) -> tuple[str, str] | None:
    """What is wrong with where the request's context is to come from, as (field, text), or None."""
    given = 3 - [message.prompt, message.messages, message.input_ids].count(None)
    if message.parent_id is not None and message.prompt is None and given:
        return "parent_id", "only a prompt has a place in the conversation"
    if given != 1 and not (given == 0 and message.parent_id):
        return "prompt", "give exactly one of prompt, messages and input_ids"
    prompt = message.prompt
    if isinstance(prompt, m.Prompt) and prompt.images:
        return wrong_images(prompt.images)
    if prompt is not None and not (prompt.user if isinstance(prompt, m.Prompt) else prompt):
        return "prompt", "the prompt is empty"
    return None

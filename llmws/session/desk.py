"""The desk: what an attached client's messages do.

Owns validation beyond types and ranges, and who may say what; `hello` and `ping` never get past the door. Invariant:
a message that is refused changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from llmws.protocol import CloseCode, ErrorCode, encode
from llmws.protocol import messages as m
from llmws.session import events as e
from llmws.session.attachment import Attachment
from llmws.session.models import Models
from llmws.session.records import request_digest
from llmws.session.request import Request, merge, resolve
from llmws.session.session import Session, rejection
from llmws.session.state import HubState
from llmws.session.turns import Turns

_ADMIN_ONLY: Final = (m.SwitchModel, m.DeleteModel, m.DownloadModel, m.CancelDownload)
_OBSERVER_MAY: Final = (m.Ack, m.GetResources, m.GetStatus, m.ListModels, m.History, m.Cancel)


_LATER: Final = (m.DownloadModel, m.CancelDownload, m.ListPeers, m.UpdateSession, m.Import, m.ListSessions)
"""Part of the protocol, but not of this version."""


class Desk:
    """Takes the messages of attached clients.

    Args:
        open_first: opens a session from its files and then handles the event again.
    """

    def __init__(
        self,
        state: HubState,
        models: Models,
        turns: Turns,
        *,
        open_first: Callable[[str, e.Receive], None],
    ) -> None:
        self._open_first = open_first
        self._state = state
        self._models = models
        self._turns = turns
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
        elif attachment.role != "admin" and isinstance(message, _ADMIN_ONLY):
            refuse(attachment.connection, ErrorCode.FORBIDDEN, f"{kind} needs an admin token", message)
        else:
            self._state.dirty[session.id] = session
            self._takers[type(message)](session, attachment, message)

    # --- requests --------------------------------------------------------------------------------------------------

    def _inference(self, session: Session, attachment: Attachment, message: m.Inference) -> None:
        request_id = message.request_id or self._state.entropy.new_id()
        message = msgspec.structs.replace(message, request_id=request_id)
        digest = request_digest(message)
        known = session.known(request_id, digest)
        if known is not None:
            record_n = next((each.record_n for each in session.queue if each.id == request_id), 0)
            session.reply_when_durable(attachment, record_n, known)
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
        )
        session.accept(request)
        self._turns.enqueue(session)
        position = len(session.queue) - 1
        if position > 0:
            session.reply_when_durable(attachment, request.record_n, m.Queue(request_id=request_id, position=position))

    def _refusal(self, session: Session, message: m.Inference) -> m.Error | None:
        """Why a new request is not accepted, or None."""
        request_id = message.request_id
        if message.model is not None:
            ref = self._models.find(message.model)
            if ref is None:
                text = "no such model here; list_models lists them"
                return rejection(request_id, ErrorCode.MODEL_NOT_FOUND, text, field="model")
            if not self._state.settings.load_on_demand and ref.name != self._models.name:
                text = "this model is not loaded; an admin must switch to it"
                return rejection(request_id, ErrorCode.MODEL_NOT_FOUND, text, field="model")
        elif self._models.current is None and self._models.is_settled:
            return rejection(request_id, ErrorCode.NO_MODEL, "no model is loaded; an admin can switch to one")
        wrong = _wrong_context(message) or self._wrong_ids(message)
        if wrong is not None:
            field, text = wrong
            return rejection(request_id, ErrorCode.BAD_REQUEST, text, field=field)
        if len(session.queue) >= self._state.settings.limits.max_queue:
            return rejection(request_id, ErrorCode.QUEUE_FULL, "this session's queue is full")
        return None

    def _wrong_ids(self, message: m.Inference) -> tuple[str, str] | None:
        vocab_size = self._models.current.vocab_size if self._models.current else 0
        for index, token in enumerate(message.input_ids or () if vocab_size else ()):
            if token >= vocab_size:
                return f"input_ids[{index}]", f"the model's vocabulary has {vocab_size} ids"
        return None

    def _cancel(self, session: Session, attachment: Attachment, message: m.Cancel) -> None:
        request = next((each for each in session.queue if each.id == message.request_id), None)
        if request is not None:
            self._turns.end(session, request, "cancelled")
        elif not session.has_ended(message.request_id):
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

    # --- the session -----------------------------------------------------------------------------------------------

    def _config(self, session: Session, attachment: Attachment, message: m.Config) -> None:
        session.store()
        conversation = session.conversation
        conversation.configure(merge(message.data, conversation.settings.sampling))
        merged = merge(conversation.settings.sampling, self._state.settings.generation_defaults)
        session.send(attachment, [encode(m.ConfigAck(config=merged))])

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
            self._open_first(message.session_id, e.Receive(attachment.connection, message))
        elif ended.owner != session.owner:
            self.no_such_session(attachment.connection)
        else:
            self._state.delete(ended, asker=attachment.connection)
            self._turns.forget(ended)

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
        if self._models.is_wanted(message.model_name):
            text = "this model is loaded or about to be; switch to another one first"
            self._state.reject(attachment.connection, ErrorCode.CONFLICT, text)
        else:
            self._state.out.append(e.Inspect(attachment.connection, message))


def _wrong_context(message: m.Inference) -> tuple[str, str] | None:
    """What is wrong with where the request's context is to come from, as (field, text), or None."""
    if message.parent_id is not None:
        return "parent_id", "branches are not part of this version"
    if [message.prompt, message.messages, message.input_ids].count(None) != 2:
        return "prompt", "give exactly one of prompt, messages and input_ids"
    prompt = message.prompt
    if isinstance(prompt, m.Prompt) and prompt.images:
        return "prompt.images", "this model takes no images"
    if prompt is not None and not (prompt.user if isinstance(prompt, m.Prompt) else prompt):
        return "prompt", "the prompt is empty"
    return None

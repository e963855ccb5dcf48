"""Whose turn it is: gives waiting requests to the engine in a fair order, and turns what comes back into events.

Knows no connections. Invariants: a session runs one request at a time; sessions that wait for the same model get their
turns in the order they came, and none waits for a model that others wait for; nothing starts while the default model is
being switched, or while too much of its session is not acknowledged.
"""

from __future__ import annotations

from collections import Counter
from typing import Final, NamedTuple

from llmws.engine_api import NO_IMAGES, Chunk, ModelFailed, ModelInfo, ModelLoaded, PromptFailed, PromptJob, PromptReady
from llmws.protocol import ErrorCode
from llmws.protocol import messages as m
from llmws.session import events as e
from llmws.session.images import decoded
from llmws.session.line import Line
from llmws.session.models import Models
from llmws.session.records import PromptBody, encode_body
from llmws.session.request import MAX_RESUMES, Request
from llmws.session.session import Session
from llmws.session.state import HubState

MEAN_SHARE: Final = 0.2
"""Share of the newest request in the mean duration."""

_CHANGED: Final = "the model that began this answer has changed"


class _Active(NamedTuple):
    """A request whose turn it is, and the model as it was when its turn came."""

    session: Session
    request: Request
    info: ModelInfo


class Turns:
    """The line of waiting sessions, and the requests that are being rendered or generated."""

    def __init__(self, state: HubState, models: Models) -> None:
        self._state = state
        self._models = models
        self._line = Line()
        self._held: dict[str, float] = {}
        self._active: dict[str, _Active] = {}
        self._attempts = 0
        self._mean_s = 0.0

    @property
    def active(self) -> list[tuple[Session, Request]]:
        """The requests that are being rendered or generated."""
        return [(session, request) for session, request, _ in self._active.values()]

    def uses(self, model: str) -> bool:
        """Whether a request is being rendered or generated for the model of this name."""
        return any(each.info.ref.name == model for each in self._active.values())

    def enqueue(self, session: Session) -> None:
        """Puts the session in line for its next request, if it has one that waits; or holds it, over its quota."""
        self._state.dirty[session.id] = session
        if not session.queue or session.queue[0].state not in ("queued", "paused"):
            self._held.pop(session.id, None)
        elif session.is_over_quota():
            self._hold(session)
        else:
            self._held.pop(session.id, None)
            self._line.join(session.id, session.queue[0].model)

    def _hold(self, session: Session) -> None:
        """Keeps a session from going on until its client acknowledges; its request is told why."""
        self._line.leave(session.id)
        request = session.queue[0]
        if session.id not in self._held and (request.state == "paused" or not request.is_started):
            text = "Too much is not acknowledged; this goes on when half of it is."
            session.emit(m.Log(code="paused", request_id=request.id, message=text))
        self._held.setdefault(session.id, self._state.clock.monotonic())

    def acknowledged(self, session: Session) -> None:
        """A client has acknowledged something: a session that was held for that may go on."""
        if session.id in self._held:
            self.enqueue(session)

    def forget(self, session: Session) -> None:
        """The session leaves memory; nothing of it may go on."""
        self._line.leave(session.id)
        self._held.pop(session.id, None)
        for request in session.queue:
            self._stop(request)
        self._state.forget(session)

    def places(self) -> dict[str, int]:
        """How many requests of other sessions go before the first of each session in line, once its model is there."""
        if not self._models.is_settled:
            return {}
        places = {}
        before: Counter[str] = Counter()
        for session_id in self._line:
            ref = self._models.serving(self._state.sessions[session_id].queue[0].model)
            if ref is not None and ref.name in self._models.resident:
                before[ref.name] += 1
                places[session_id] = before[ref.name]
        return places

    def eta_ms(self, session: Session, *, ahead: int, place: int) -> int | None:
        """A guess at when a request starts, from how long others took.

        Args:
            session: whose request it is.
            ahead: requests of its own session, one after another.
            place: of its session in line; several run side by side.
        """
        ref = self._models.serving(session.queue[0].model)
        info = self._models.resident.get(ref.name) if ref is not None else None
        if not self._mean_s or info is None:
            return None
        return round(1e3 * self._mean_s * (ahead + place / info.max_running))

    def admit(self) -> None:
        """Gives requests their turn, in the order their sessions came, as far as their models allow."""
        if self._state.is_draining:
            return
        if not self._active:
            self._models.begin_switch()
        while self._models.is_settled and any(self._give_turn(each) for each in self._line.heads()):
            pass  # there are new heads
        self._ask_for_models()

    def _ask_for_models(self) -> None:
        """Tells which models the heads of the line wait for, after all turns that could be given."""
        models = self._models
        heads = (models.serving(self._state.sessions[each].queue[0].model) for each in self._line.heads())
        rendering = {
            key
            for key, (_, request, info) in self._active.items()
            if request.state == "rendering" and info.ref.name in models.resident
        }
        models.wait_for({ref.name: ref for ref in heads if ref is not None}, rendering=rendering)

    def _give_turn(self, session_id: str) -> bool:
        """Starts, or ends, the next request of a session in line. False where it has to wait."""
        models = self._models
        session = self._state.sessions[session_id]
        request = session.queue[0]
        ref = models.serving(request.model)
        if ref is None and request.model is None:
            self.end(session, request, ErrorCode.NO_MODEL, models.no_default())
        elif ref is None:
            gone = f"the model {request.model} is not on this machine any more"
            self.end(session, request, ErrorCode.MODEL_NOT_FOUND, gone)
        elif not (request.is_started or models.may_serve(ref)):
            text = f"the model {request.model} is not loaded any more"
            self.end(session, request, ErrorCode.MODEL_NOT_FOUND, text)
        elif not request.is_started and session.conversation.wrong_parent(request.message) is not None:
            # It was there at acceptance: the conversation's log was damaged since.
            self.end(session, request, ErrorCode.STORAGE_FAILED, "the message that this one follows is lost")
        elif (info := models.resident.get(ref.name)) is None:
            return False  # its load is asked for after all turns
        elif sum(each.info.ref.name == ref.name for each in self._active.values()) >= info.max_running:
            return False
        else:
            self._line.leave(session_id)
            self._activate(session, request, info)
        return True

    def model_loaded(self, event: ModelLoaded) -> None:
        """Gives those their turn who waited for the model; its `ModelUnloaded` may come together with this.

        What has begun is not continued by other weights, should the model's folder have changed since it was loaded.
        """
        for key, active in list(self._active.items()):
            if active.info.ref.name == event.info.ref.name:
                self._active[key] = active._replace(info=event.info)
                if active.info.digest != event.info.digest:
                    self.end(active.session, active.request, ErrorCode.MODEL_FAILED, _CHANGED)
        self.admit()

    def prompt_ready(self, event: PromptReady) -> None:
        """A prompt is tokenised: the request starts."""
        if (active := self._active.get(event.key)) is None:
            return
        session, request, info = active
        self._state.dirty[session.id] = session
        if len(event.ids) >= info.max_context:
            # It fitted when it was given to be rendered; the model came back smaller.
            self.end(session, request, ErrorCode.MODEL_OOM, _no_room(len(event.ids), info))
            return
        request.prompt = PromptBody(
            request_id=request.id,
            ids=list(event.ids),
            images=event.images,
            max_tokens=min(request.sampling.max_new_tokens or 1, info.max_context - len(event.ids)),
            model=info.ref.name,
            model_digest=info.digest,
            tokenizer_digest=info.tokenizer_digest,
            engine=info.engine,
            device=info.device,
            dtype=info.dtype,
        )
        session.log.record("prompt", encode_body(request.prompt), sync=True)
        if event.dropped_turns:
            text = (
                f"The conversation is longer than the context: its oldest {event.dropped_turns} messages were left out."
            )
            session.emit(m.Log(code="context_trimmed", message=text, request_id=request.id))
        request.start_seq = session.emit(
            m.Start(
                request_id=request.id,
                model=info.ref.name,
                tokens_in=len(event.ids),
                max_tokens=request.prompt.max_tokens,
                seed=request.sampling.seed or 0,
            )
        )
        self._submit(session, request, info)

    def prompt_failed(self, event: PromptFailed) -> None:
        """A prompt cannot be served."""
        if active := self._active.get(event.key):
            self.end(active.session, active.request, event.code, event.message)

    def chunk(self, chunk: Chunk) -> None:
        """The engine brings tokens, or an end."""
        if (active := self._active.get(chunk.key)) is None:
            return  # cancelled meanwhile
        session, request, _ = active
        self._state.dirty[session.id] = session
        request.cached_tokens = request.cached_tokens or chunk.cached_tokens
        if chunk.index != len(request.ids):
            self.end(session, request, ErrorCode.INTERNAL, "the engine skipped or repeated a token")
            return
        if chunk.ids or chunk.text:
            session.emit(
                m.Token(
                    request_id=request.id,
                    index=chunk.index,
                    data=chunk.text,
                    ids=list(chunk.ids),
                    logprobs=None if chunk.logprobs is None else list(chunk.logprobs),
                )
            )
            request.add(chunk.ids, chunk.text, now_s=self._state.clock.monotonic())
        outcome = chunk.error_code or chunk.finish
        if outcome is not None:
            del self._active[chunk.key]
            self.end(session, request, outcome, chunk.error_message)
        elif session.is_over_quota():
            self._pause(session, request)

    def _pause(self, session: Session, request: Request) -> None:
        """Nobody acknowledges what is generated: the engine's memory goes to others until somebody does."""
        self._stop(request)
        request.paused(now_s=self._state.clock.monotonic())
        self.enqueue(session)

    def load_failed(self, event: ModelFailed) -> None:
        """Ends the requests whose turn can't come because of it; those that the engine has, it ends itself.

        A model that could not be read anew serves on as it was read before.
        """
        if event.name in self._models.resident:
            return
        for session, request, info in list(self._active.values()):
            if request.state == "rendering" and info.ref.name == event.name:
                self.end(session, request, event.code, event.message)
        for session in [self._state.sessions[each] for each in self._line]:
            while session.queue and self._is_hopeless(session.queue[0], event):
                self.end(session, session.queue[0], event.code, event.message)

    def end(self, session: Session, request: Request, outcome: m.FinishReason | ErrorCode, message: str = "") -> None:
        """Gives a request its terminal event, keeps its turn, and lets the session's next one come."""
        self._stop(request)
        was_next = session.queue[0] is request
        if (ran_s := request.ran_s(self._state.clock.monotonic())) > 0:
            self._mean_s += (ran_s - self._mean_s) * (MEAN_SHARE if self._mean_s else 1)
        event: m.Done | m.Error
        if isinstance(outcome, ErrorCode):
            event = m.Error(request_id=request.id, code=outcome, message=message, retryable=outcome.retryable)
        else:
            event = request.done(outcome, now_s=self._state.clock.monotonic())
        session.end(request, event)
        if not session.attachments():
            session.idle_since_s = self._state.uptime_s()  # its result has just begun to wait for somebody
        self.keep_turn(session, request, event)
        if was_next:
            self._line.leave(session.id)
            self._held.pop(session.id, None)
        self.enqueue(session)

    def keep_turn(self, session: Session, request: Request, event: m.Done | m.Error) -> None:
        """Adds a finished request to the conversation, unless that is done."""
        session.conversation.finish(
            request,
            finish_reason=event.finish_reason if isinstance(event, m.Done) else None,
            model=request.prompt.model if request.prompt else None,
            now_s=self._state.clock.time(),
        )

    def cancel_abandoned(self, session: Session) -> None:
        """The session's owner is gone: ends what nobody wants to be finished."""
        for request in list(session.queue):
            if request.message.on_disconnect == "cancel":
                self.end(session, request, "cancelled")

    def expire(self, now_s: float) -> None:
        """Ends generations that nobody has come back for within their `ttl_s`, and requests held for too long."""
        held = [(session, session.queue[0]) for session in map(self._state.sessions.__getitem__, self._held)]
        for session, request in [*self.active, *(each for each in held if each[1].is_started)]:
            ttl_s, detached_s = request.message.ttl_s, self._state.detached_s.get(session.id)
            if ttl_s is not None and detached_s is not None and now_s - detached_s >= ttl_s:
                self.end(session, request, "interrupted")
        for session_id, since_s in list(self._held.items()):
            if now_s - since_s >= self._state.settings.max_pause_s:
                session = self._state.sessions[session_id]
                text = "too much was not acknowledged for too long"
                self.end(session, session.queue[0], ErrorCode.BUFFER_FULL, text)

    def _activate(self, session: Session, request: Request, info: ModelInfo) -> None:
        self._state.dirty[session.id] = session
        self._attempts += 1
        request.key = f"{session.id}/{request.id}/{self._attempts}"
        self._active[request.key] = _Active(session, request, info)
        if request.is_started:
            self._resume(session, request, info)
            return
        input_ids = request.message.input_ids
        turns = session.conversation.context(request) if input_ids is None else ()
        if not info.vision and any(each.images for each in turns):
            self.end(session, request, ErrorCode.BAD_REQUEST, NO_IMAGES)
            return
        request.state = "rendering"
        reserve = min(request.sampling.max_new_tokens or 1, info.max_context // 4)
        self._state.out.append(
            PromptJob(
                key=request.key,
                model=info.ref,
                turns=turns,
                input_ids=None if input_ids is None else tuple(input_ids),
                droppable=request.uses_conversation,
                image_tokens=info.image_tokens,
                max_context=info.max_context,
                reserve=max(1, reserve),
            )
        )

    def _resume(self, session: Session, request: Request, info: ModelInfo) -> None:
        """A request that was paused, or that an earlier process began, goes on from its logged tokens."""
        prompt = request.prompt
        if prompt is None:
            self.end(session, request, ErrorCode.INTERNAL, "the log holds a start without its prompt")
        elif request.fruitless_resumes >= MAX_RESUMES:
            self.end(session, request, ErrorCode.MODEL_FAILED, "resumed several times without a new token")
        elif prompt.model_digest != info.digest:
            self.end(session, request, ErrorCode.MODEL_FAILED, _CHANGED)
        elif (taken := len(prompt.ids) + len(request.ids)) > info.max_context:
            self.end(session, request, ErrorCode.MODEL_OOM, _no_room(taken, info))
        elif len(session.conversation.images(request)) < prompt.images:
            self.end(session, request, ErrorCode.STORAGE_FAILED, "an image that the prompt shows is lost")
        else:
            exact = request.is_exact_on(info)
            was_paused = request.state == "paused"
            text = "The answer goes on." if was_paused else "The server was interrupted; the answer goes on."
            notice = m.Log(
                code="continued" if was_paused else "resumed_after_restart",
                request_id=request.id,
                from_index=len(request.ids),
                exact=exact,
                message=text if exact else f"{text} The rest may differ from what would have come.",
            )
            session.emit(notice, sync=not was_paused)
            self._submit(session, request, info)

    def _submit(self, session: Session, request: Request, info: ModelInfo) -> None:
        assert request.prompt is not None
        shown = session.conversation.images(request)
        # What does not fit into the context was left out from its front.
        images = decoded(
            shown[len(shown) - request.prompt.images :], asked=len(session.conversation.shown(request.message))
        )
        request.submitted(now_s=self._state.clock.monotonic())
        generation = request.generation(info, owner=session.owner, images=images)
        if generation.max_new_tokens < request.prompt.max_tokens:
            text = f"{info.ref.name} holds only {info.max_context} tokens of context now; an answer ends there"
            self._state.out.append(e.Warn(text))
        self._state.out.append(e.Submit(generation))

    def _stop(self, request: Request) -> None:
        """Takes a request from the engine, if it is there."""
        if self._active.pop(request.key, None) is not None and request.state == "running":
            self._state.out.append(e.CancelGeneration(request.key))

    def _is_hopeless(self, request: Request, event: ModelFailed) -> bool:
        if (ref := self._models.serving(request.model)) is not None:
            return ref.name == event.name
        return request.model is None and self._models.name is None


def _no_room(tokens: int, info: ModelInfo) -> str:
    return f"memory for this context is missing now: it has {tokens} tokens, and {info.max_context} can be held"

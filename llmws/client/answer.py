"""One request as its caller sees it: what arrived, what was taken, and how it ended.

Knows neither sockets nor other requests. Invariant: the texts taken, joined (from the last `Reset` on, if there was
one), are a prefix of the answer; `Done` is handed out only after all of it, and only if its SHA-256 is the server's.
"""

from __future__ import annotations

import hashlib
from collections import deque
from typing import Final

import msgspec
from msgspec import UnsetType

from llmws.client.errors import ClientError, GenerationError, IntegrityError, RequestRejectedError, SessionLostError
from llmws.protocol import messages as m


class Reset(m.Event, frozen=True, kw_only=True):
    """What was delivered of this answer cannot be continued: forget it, the text so far is `text`."""

    request_id: str
    text: str


class Completion(m.Value, frozen=True, kw_only=True):
    """A whole answer.

    Attributes:
        text: the answer; only its rest when `is_whole` is false.
        node_id: the server that the client was connected to at the end; after a restart elsewhere, not the first one.
        model: the model's name.
        tokens_generated: completion tokens, those of the end included.
        is_whole: false when the client attached in the middle, from a saved position.
    """

    text: str
    node_id: str
    model: str
    tokens_generated: int
    finish_reason: m.FinishReason
    usage: m.Usage
    timing: m.Timing
    request_id: str
    session_id: str
    is_whole: bool = True


AnswerEvent = m.Start | m.Token | m.Log | m.Queue | Reset | m.Done
"""What iterating over an answer gives."""

_TERMINAL: Final = m.Done | m.Error


class Answer:
    """Receives a request's events in order and hands them out one by one.

    Attributes:
        inference: the request, to be sent again until it is accepted; None for one that an earlier client made.
        is_accepted: the server has it; it will end in exactly one terminal event.
        is_over: nothing more will arrive.
        is_whole: whether the text is known from its first token.
        is_released: nobody takes what arrives.
        cancel_requested: the caller asked to end it.
        model: which model answers; None before the start.
    """

    def __init__(self, request_id: str, *, inference: m.Inference | None, merge_above: int) -> None:
        self.request_id = request_id
        self.inference = inference
        self.is_accepted = inference is None
        self.is_over = False
        self.is_whole = inference is not None
        self.cancel_requested = False
        self.model: str | None = None
        self._has_begun = False
        self._next_index = 0
        self._parts: list[str] = []
        self._digest = hashlib.sha256()
        # (seq of the first event in it, event or failure); seq 0 for what is not part of the session's story.
        self._waiting: deque[tuple[int, AnswerEvent | ClientError]] = deque()
        self._merge_above = max(1, merge_above)
        self._held_seq = 0
        self.is_released = False

    @property
    def text(self) -> str:
        """Everything that arrived, joined; taken or not."""
        return "".join(self._parts)

    @property
    def has_begun(self) -> bool:
        """Whether anything of the answer itself has arrived."""
        return self._has_begun

    @property
    def is_exhausted(self) -> bool:
        """Whether it is over and everything has been taken."""
        return self.is_over and not self._waiting

    @property
    def unconsumed_seq(self) -> int | None:
        """Seq of the oldest event that the caller has not finished with; None if there is none."""
        if self._held_seq:
            return self._held_seq
        return next((seq for seq, _ in self._waiting if seq), None)

    def take(self) -> AnswerEvent | None:
        """The next event, or None when there is none now. Asking again says that the last one was dealt with.

        Raises:
            ClientError: the answer failed; everything before was taken.
        """
        self._held_seq = 0
        if not self._waiting:
            return None
        seq, event = self._waiting.popleft()
        if isinstance(event, ClientError):
            raise event
        self._held_seq = seq
        return event

    def release(self) -> None:
        """Nobody will take anything more."""
        self.is_released = True
        self._held_seq = 0
        self._waiting.clear()

    # --- what arrives ----------------------------------------------------------------------------------------------

    def receive(self, event: m.Start | m.Token | m.Log | m.Done | m.Error) -> None:
        """Takes the request's next event of the session's story; whatever follows a terminal one is ignored."""
        if self.is_over:
            return
        seq = _seq(event)
        match event:
            case m.Start():
                self.is_whole = True
                self.model = event.model
                self._put(seq, event)
            case m.Token():
                self._begin_with(event.index)
                self._add_text(event.data)
                self._next_index = event.index + len(event.ids)
                self._put_token(seq, event)
            case m.Log():
                self._put(seq, event)
            case m.Done():
                self._begin_with(event.total_tokens)
                self._end(seq, self._verified(event))
            case m.Error():
                self._end(seq, GenerationError(event, self.text))
        self.is_accepted = True
        self._has_begun = True

    def queued(self, notice: m.Queue) -> None:
        """Takes a notice of its place in the queue."""
        self.is_accepted = True
        if self.is_over:
            return
        if self._waiting and isinstance(self._waiting[-1][1], m.Queue):
            self._waiting.pop()  # nobody has read it, and it is out of date
        self._put(0, notice)

    def reject(self, error: m.Error) -> None:
        """Takes a refusal. A request that was accepted before is not ended by it."""
        if not self.is_accepted and not self.is_over:
            self.fail(RequestRejectedError(error))

    def fail(self, error: ClientError) -> None:
        """Nothing more can arrive, because of `error`."""
        if not self.is_over:
            self._end(0, error)

    def reconcile(self, state: m.RequestSnapshot, *, as_of: int, epoch: int) -> None:
        """Goes on from a snapshot: silently when it continues the text so far, with a `Reset` when it does not."""
        if self.is_over:
            return
        self.is_accepted = True
        text = self.text
        if not self.is_whole or not state.text.startswith(text):
            self._parts.clear()
            self._digest = hashlib.sha256()
            self._add_text(state.text)
            self._put(as_of, Reset(request_id=self.request_id, text=state.text, seq=as_of, epoch=epoch))
        elif len(state.text) > len(text):
            rest = state.text[len(text) :]
            self._add_text(rest)
            self._put_token(
                as_of,
                m.Token(request_id=self.request_id, index=self._next_index, data=rest, ids=[], seq=as_of, epoch=epoch),
            )
        self.is_whole = True
        self._has_begun = self._has_begun or state.state == "running" or state.terminal is not None
        self._next_index = state.next_index
        if state.terminal is not None:
            terminal = msgspec.convert(state.terminal, _TERMINAL)
            self.receive(msgspec.structs.replace(terminal, seq=as_of, epoch=epoch))

    def vanish(self) -> None:
        """The server's snapshot does not have it."""
        if self._has_begun or self.inference is None:
            self.fail(SessionLostError("the server has lost the rest of this answer"))
        else:
            self.is_accepted = False

    # --- inside ----------------------------------------------------------------------------------------------------

    def _begin_with(self, index: int) -> None:
        """Notes whether what arrives first, where no start came, is the first token.

        It is not where a client that knows its position asks by the same id again: the rest follows, and no more.
        """
        if self.model is None and self._next_index == 0 and not self._parts:
            self.is_whole = index == 0

    def _verified(self, done: m.Done) -> m.Done | IntegrityError:
        if self.is_whole and done.text_sha256 != self._digest.hexdigest():
            return IntegrityError(f"the text of {self.request_id} does not have the server's SHA-256")
        return done

    def _add_text(self, text: str) -> None:
        self._parts.append(text)
        self._digest.update(text.encode())

    def _end(self, seq: int, last: m.Done | ClientError) -> None:
        self._put(seq, last)
        self.is_over = True

    def _put(self, seq: int, event: AnswerEvent | ClientError) -> None:
        if not self.is_released:
            self._waiting.append((seq, event))

    def _put_token(self, seq: int, token: m.Token) -> None:
        """Unread tokens beyond the bound become one, so that a slow reader costs the text's memory and no more."""
        if len(self._waiting) >= self._merge_above:
            first_seq, last = self._waiting[-1]
            if isinstance(last, m.Token):
                self._waiting[-1] = (first_seq, _merged(last, token))
                return
        self._put(seq, token)


def completion(answer: Answer, done: m.Done, welcome: m.Welcome) -> Completion:
    """The whole answer as one value, from its end and the server's newest welcome."""
    return Completion(
        text=answer.text,
        node_id=welcome.server.node_id,
        model=answer.model or welcome.model or "",
        tokens_generated=done.total_tokens,
        finish_reason=done.finish_reason,
        usage=done.usage,
        timing=done.timing,
        request_id=done.request_id,
        session_id=welcome.session_id,
        is_whole=answer.is_whole,
    )


def _seq(event: m.Event) -> int:
    return 0 if isinstance(event.seq, UnsetType) else event.seq


def _merged(first: m.Token, second: m.Token) -> m.Token:
    logprobs = None if first.logprobs is None else [*first.logprobs, *(second.logprobs or [])]
    return msgspec.structs.replace(
        second, index=first.index, data=first.data + second.data, ids=first.ids + second.ids, logprobs=logprobs
    )

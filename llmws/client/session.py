"""A session as its client holds it: position, answers and what must be said to the server.

Knows no socket and no clock: messages go in, messages to send come out in `outbox`. Invariant: after any sequence of
losses every request is answered exactly once, or has failed for a reason that its caller is told.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Literal

import llmws
from llmws.client.acks import Acknowledgements
from llmws.client.answer import Answer
from llmws.client.cursor import Cursor, Verdict
from llmws.client.errors import (
    ClientError,
    RequestRejectedError,
    SessionLostError,
    TakenOverError,
    WithdrawnError,
)
from llmws.protocol import VERSION, ErrorCode
from llmws.protocol import messages as m

MOST_UNCOLLECTED: Final = 64
"""Answers to requests of an earlier client that are kept for `collect`; beyond, the oldest is given up."""

MOST_FINISHED: Final = 4096
"""Finished requests whose ids are remembered, so that a snapshot does not deliver them again."""


class Session:
    """The client's side of a session.

    A connection goes `hello`, `welcomed`, then `receive` for every message; a new connection starts over at `hello`.
    Everything in `outbox` is to be sent on the present connection, in order; losing the connection voids it.

    Attributes:
        session_id: None until the first welcome of a new session.
        outbox: messages to send, oldest first.
        uncollected: answers to requests that another client made, oldest first.
        mode: whether the next hello takes the session over or observes it.
    """

    def __init__(
        self,
        *,
        session_id: str | None,
        position: m.Position | None,
        window: int,
        mode: Literal["takeover", "observe"],
        client_name: str,
    ) -> None:
        self.session_id = session_id
        self.outbox: deque[m.ClientMessage] = deque()
        self.uncollected: deque[Answer] = deque()
        self.mode = mode
        self._window = window
        self._client = m.ClientInfo(name=client_name, version=llmws.__version__)
        self._cursor = Cursor(position if session_id is not None else None)
        self._acks = Acknowledgements(window)
        self._answers: dict[str, Answer] = {}
        self._finished: dict[str, None] = {}
        self._listed: list[str] = []

    @property
    def applied_seq(self) -> int:
        """Seq of the newest event that arrived."""
        return self._cursor.last_seq

    @property
    def is_caught_up(self) -> bool:
        """Whether everything that existed at the last welcome has arrived."""
        return self._cursor.is_caught_up

    @property
    def position(self) -> m.Position | None:
        """The position up to which the caller has dealt with everything; a later client resumes from it."""
        return self._cursor.position(self._consumed())

    def open_answers(self) -> list[Answer]:
        """Answers that are not over, oldest first."""
        return [answer for answer in self._answers.values() if not answer.is_over]

    def attach_as(self, mode: Literal["takeover", "observe"]) -> None:
        """The next hello is of this mode; until its welcome there may be more to arrive than is known."""
        self.mode = mode
        self._cursor.is_caught_up = False

    # --- the connection --------------------------------------------------------------------------------------------

    def hello(self, token: str | None) -> m.Hello:
        """The first message of a new connection."""
        return m.Hello(
            protocol=[VERSION],
            auth=token,
            session_id=self.session_id,
            resume=self._cursor.resume if self.session_id is not None else None,
            mode=self.mode,
            window=self._window,
            client=self._client,
        )

    def welcomed(self, welcome: m.Welcome) -> None:
        """Takes the answer to the hello; fills `outbox` with what must be said again."""
        self.outbox.clear()
        if welcome.session_id != self.session_id:
            self._begin_again()
            self.mode = "takeover"  # there is nobody else in a new session
        self.session_id = welcome.session_id
        self._cursor.attach(welcome)
        self._acks.attached(floor=welcome.floor_seq, position=self._cursor.last_seq)
        is_anothers = any(each.request_id not in self._answers for each in welcome.requests)
        if is_anothers and 0 < welcome.head_seq == self._cursor.last_seq:
            # It may be paused, and that was said to an earlier client alone: nothing more comes that could tell.
            self._acks.paused(welcome.head_seq)
        self._listed = [each.request_id for each in welcome.requests]
        for request_id in self._listed:
            if request_id in self._answers:
                self._answers[request_id].is_accepted = True
        for answer in self.open_answers():
            self._say_again(answer)

    def receive(self, message: m.ServerMessage) -> m.ServerMessage | None:
        """Takes the connection's next message.

        Returns:
            The message, if it is not about a request: a reply, or something for the caller to know.

        Raises:
            StoryFaultError: reconnect.
        """
        if self._cursor.take(message) is Verdict.DROP:
            return None
        match message:
            case m.Snapshot():
                self._reconcile(message)
            case m.Queue():
                if message.request_id in self._answers:
                    self._answers[message.request_id].queued(message)
            case m.Error(seq=int(seq), request_id=str(request_id)) | m.Done(seq=int(seq), request_id=str(request_id)):
                self._answer(request_id).receive(message)
                self._acks.ended(seq)
            case m.Log(code="paused", seq=int(seq), request_id=str(request_id)):
                self._answer(request_id).receive(message)
                self._acks.paused(seq)
            case m.Start() | m.Token() | m.Log(seq=int(), request_id=str()):
                assert message.request_id is not None
                self._answer(message.request_id).receive(message)
            case m.Error(request_id=str(request_id)) if request_id in self._answers:
                self._answers[request_id].reject(message)
            case m.Log(code="caught_up"):
                self._give_up_unheard()
                self._take_up_listed()
            case m.AckReceived():
                pass
            case _:
                return message
        return None

    def receive_unknown(self, event: m.Event) -> None:
        """Takes an event of a type that this version does not know: it counts, and means nothing here.

        Raises:
            StoryFaultError: reconnect.
        """
        self._cursor.take_event(event.seq, event.epoch)

    def too_large(self, message: str) -> None:
        """The connection was closed over a frame that was too large: what was not accepted is never sent again."""
        error = m.Error(code=ErrorCode.TOO_LARGE, message=message, retryable=False)
        for answer in self.open_answers():
            if not answer.is_accepted:
                answer.fail(RequestRejectedError(error))

    # --- the caller ------------------------------------------------------------------------------------------------

    def ask(self, inference: m.Inference) -> Answer:
        """Makes a request; its `request_id` is set.

        What has come already of an answer to it, which an earlier client asked for, is part of the answer.

        Raises:
            ValueError: this client has asked so and not read the answer to its end.
        """
        assert inference.request_id is not None
        answer = self._answers.get(inference.request_id)
        if answer is not None and answer in self.uncollected:
            self.uncollected.remove(answer)
            answer.inference, answer.is_accepted = inference, False
        elif answer is not None and (answer.inference is not None or not answer.is_released):
            raise ValueError(f"a request {inference.request_id} is still open here")
        else:
            answer = Answer(inference.request_id, inference=inference, merge_above=self._window)
            self._answers[inference.request_id] = answer
        self.outbox.append(inference)
        return answer

    def withdraw(self, request_id: str) -> None:
        """Forgets a request that is not accepted. Only while there is no connection: the server may have it else."""
        answer = self._answers.get(request_id)
        if answer is not None and not answer.is_accepted:
            answer.fail(WithdrawnError("the request was taken back before the server was known to have it"))

    def cancel(self, request_id: str) -> None:
        """Asks to end a request, now and after every reconnect until it has ended."""
        if request_id in self._answers:
            self._answers[request_id].cancel_requested = True
        self.outbox.append(m.Cancel(request_id=request_id))

    def settle(self) -> None:
        """Acknowledges what is due. To be called after anything arrived or was taken."""
        consumed = self._consumed()
        for request_id in [key for key, answer in self._answers.items() if answer.is_exhausted]:
            if self._answers[request_id].unconsumed_seq is None:
                del self._answers[request_id]
                self._finished[request_id] = None
                if len(self._finished) > MOST_FINISHED:
                    del self._finished[next(iter(self._finished))]
        if ack := self._acks.due(applied=self._cursor.last_seq, consumed=consumed):
            self.outbox.append(ack)

    def fail(self, error: ClientError) -> None:
        """The client gives up."""
        for answer in self._answers.values():
            answer.fail(error)

    # --- inside ----------------------------------------------------------------------------------------------------

    def _consumed(self) -> int:
        unconsumed = [seq for answer in self._answers.values() if (seq := answer.unconsumed_seq) is not None]
        return min(unconsumed) - 1 if unconsumed else self._cursor.last_seq

    def _answer(self, request_id: str) -> Answer:
        """The request's answer; one that nobody here asked for is kept for `collect`."""
        if (answer := self._answers.get(request_id)) is None:
            answer = self._answers[request_id] = Answer(request_id, inference=None, merge_above=self._window)
            self.uncollected.append(answer)
            if len(self.uncollected) > MOST_UNCOLLECTED:
                self.uncollected.popleft().release()
        return answer

    def _say_again(self, answer: Answer) -> None:
        if not answer.is_accepted and self.mode == "takeover":
            assert answer.inference is not None
            self.outbox.append(answer.inference)
        if answer.cancel_requested:
            self.outbox.append(m.Cancel(request_id=answer.request_id))

    def _give_up_unheard(self) -> None:
        """An observer knows now which requests of its own came too late, and may not make them."""
        if self.mode == "observe":
            for answer in self.open_answers():
                if not answer.is_accepted:
                    answer.fail(TakenOverError("another client took the session over before it had this request"))

    def _take_up_listed(self) -> None:
        """What is open comes after what has ended and was replayed, which is older and must be collected first."""
        for request_id in self._listed:
            if request_id not in self._finished:
                self._answer(request_id)

    def _begin_again(self) -> None:
        """The session is a new one: what had begun in the old one is lost, the rest is asked again."""
        self._acks.restarted()
        self._finished.clear()
        for answer in self.open_answers():
            if answer.has_begun or answer.inference is None:
                answer.fail(SessionLostError("the server no longer has this session"))
            else:
                answer.is_accepted = False

    def _reconcile(self, snapshot: m.Snapshot) -> None:
        self._acks.moved(snapshot.as_of)
        listed = {state.request_id for state in snapshot.requests}
        for answer in self.open_answers():
            if answer.request_id not in listed and answer.is_accepted:
                answer.vanish()
                if not answer.is_over:
                    self._say_again(answer)
        for state in snapshot.requests:
            if state.request_id in self._finished:
                continue
            answer = self._answer(state.request_id)
            answer.reconcile(state, as_of=snapshot.as_of, epoch=snapshot.epoch)
            if state.terminal is not None:
                self._acks.ended(snapshot.as_of)
        if any(state.terminal is None for state in snapshot.requests):
            self._acks.paused(snapshot.as_of)  # it may be: what the server said of that is folded in

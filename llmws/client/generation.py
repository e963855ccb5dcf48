"""An answer that its caller iterates over or awaits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator

from llmws.client.answer import Answer, AnswerEvent, Completion
from llmws.protocol import messages as m


class Generation:
    """A request and its answer; `async for` gives its events, `await` the whole answer. One of the two, once.

    Leaving the loop early only means that nobody reads on: as with a lost connection the answer goes on to its end in
    the session's conversation. `cancel` ends it.
    """

    def __init__(
        self,
        answer: Answer,
        *,
        taken: Callable[[], None],
        cancel: Callable[[str], None],
        complete: Callable[[Answer, m.Done], Completion],
    ) -> None:
        self._answer = answer
        self._taken = taken
        self._cancel = cancel
        self._complete = complete
        self._changed = asyncio.Event()
        self._is_read = False

    @property
    def request_id(self) -> str:
        """Names the request; to cancel it from elsewhere, or to send the same again without running it twice."""
        return self._answer.request_id

    @property
    def text(self) -> str:
        """What has arrived so far."""
        return self._answer.text

    @property
    def is_whole(self) -> bool:
        """False when the client attached in the middle: then only the rest arrives here."""
        return self._answer.is_whole

    @property
    def is_cancel_requested(self) -> bool:
        """Whether this client has asked to end it; another one may have done so too."""
        return self._answer.cancel_requested

    def cancel(self) -> None:
        """Asks the server to end it; it still ends in `Done`, with `finish_reason` `cancelled`."""
        self._cancel(self._answer.request_id)

    def wake(self) -> None:
        """Something may have arrived."""
        self._changed.set()

    async def __aiter__(self) -> AsyncIterator[AnswerEvent]:
        """Gives every event once, in order: `Start`, `Token`…, `Done`; `Queue`, `Log` and `Reset` where they happen.

        Raises:
            GenerationError: the request ended in an error.
            RequestRejectedError: the server did not accept it.
            IntegrityError: the text is not what the server generated.
            ClientError: the client gave up.
        """
        if self._is_read:
            raise RuntimeError("a generation is read once")
        self._is_read = True
        try:
            while (event := await self._next()) is not None:
                yield event
        finally:
            self._answer.release()
            self._taken()

    def __await__(self) -> Generator[None, None, Completion]:
        return self._whole().__await__()

    async def _whole(self) -> Completion:
        done: m.Done | None = None
        async for event in self:
            if isinstance(event, m.Done):
                done = event
        assert done is not None, "an answer that ends without Done raises"
        return self._complete(self._answer, done)

    async def _next(self) -> AnswerEvent | None:
        # No timeout of its own: the connection's end, or giving up on it, is an event too.
        while True:
            self._changed.clear()
            event = self._answer.take()
            self._taken()
            if event is not None or self._answer.is_exhausted:
                return event
            await self._changed.wait()

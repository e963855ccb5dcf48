"""Questions that have one reply: resources, models, configuration.

Knows no socket. The protocol does not number them; hence the invariant: one at a time is out, and a refusal without
`request_id` belongs to it. A question is asked again on a new connection; all of them may be. One that its asker gave
up stays out until its reply or the connection's end: the next asker must not be given that reply.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from msgspec import UnsetType

from llmws.client.errors import ClientError, NoReplyError, RequestRejectedError
from llmws.protocol import messages as m

Reply = TypeVar("Reply", bound=m.Message)


class _Call:
    """A question that is out."""

    def __init__(
        self, question: m.ClientMessage, reply_type: type[m.Message], on_log: Callable[[m.Log], None] | None
    ) -> None:
        self.question = question
        self.reply_type = reply_type
        self.on_log = on_log
        self.reply: asyncio.Future[m.Message] = asyncio.get_running_loop().create_future()
        self.is_given_up = False

    def is_answered_by(self, message: m.ServerMessage) -> bool:
        """Whether the message is its reply; another session's switch of the model is told here too."""
        match self.question, message:
            case m.SwitchModel(name=name), m.ModelSwitched():
                return name in (message.name, message.path)
            case m.EndSession(session_id=session_id), m.SessionEnded():
                return message.session_id == session_id
            case _:
                return isinstance(message, self.reply_type)


class Calls:
    """The question that is out, and those that wait for it.

    Args:
        send: queues a message on the present connection.
    """

    def __init__(self, send: Callable[[m.ClientMessage], None]) -> None:
        self._send = send
        self._turn = asyncio.Lock()
        self._out: _Call | None = None
        self._failure: ClientError | None = None

    async def ask(
        self,
        question: m.ClientMessage,
        reply_type: type[Reply],
        *,
        timeout_s: float,
        on_log: Callable[[m.Log], None] | None = None,
    ) -> Reply:
        """Asks, and waits for a reply of the given type.

        Raises:
            RequestRejectedError: the server refused.
            ClientError: the client gave up.
            NoReplyError: no reply came within `timeout_s`, waiting for earlier questions included.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._turn.acquire()
                self._out = call = _Call(question, reply_type, on_log)
                call.reply.add_done_callback(self._over)
                if self._failure is None:
                    self._send(question)
                else:
                    call.reply.set_exception(self._failure)
                try:
                    reply = await asyncio.shield(call.reply)
                finally:
                    call.is_given_up, call.on_log = True, None
        except TimeoutError:
            raise NoReplyError(f"the server did not answer within {timeout_s:g} s") from None
        assert isinstance(reply, reply_type)
        return reply

    def repeat(self) -> None:
        """There is a new connection; the replies due on the old one never come."""
        if self._out is None:
            return
        if self._out.is_given_up:
            self._out.reply.cancel()
        else:
            self._send(self._out.question)

    def receive(self, message: m.ServerMessage) -> bool:
        """Whether the message belongs to the question that is out."""
        if (call := self._out) is None or call.reply.done():
            return False
        match message:
            case m.Error(request_id=None, seq=UnsetType()):
                call.reply.set_exception(RequestRejectedError(message))
            case m.Log(seq=UnsetType()) if call.on_log is not None:
                call.on_log(message)
            case _ if call.is_answered_by(message):
                call.reply.set_result(message)
            case _:
                return False
        return True

    def fail(self, error: ClientError) -> None:
        """No reply can come any more, to anybody."""
        self._failure = error
        if self._out is not None and not self._out.reply.done():
            self._out.reply.set_exception(error)

    def _over(self, reply: asyncio.Future[m.Message]) -> None:
        """The turn is the next asker's."""
        if not reply.cancelled():
            reply.exception()  # that of a question that was given up is nobody's to hear
        self._out = None
        self._turn.release()

"""Questions that have one reply: resources, models, configuration.

Knows no socket. The protocol does not number them; hence the invariant: one at a time is out, and a refusal without
`request_id` belongs to it. A question is asked again on a new connection; all of them may be.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from msgspec import UnsetType

from llmws.client.errors import ClientError, NoReplyError, RequestRejectedError
from llmws.protocol import messages as m

Reply = TypeVar("Reply", bound=m.Message)


class Calls:
    """The question that is out, and those that wait for it.

    Args:
        send: queues a message on the present connection.
    """

    def __init__(self, send: Callable[[m.ClientMessage], None]) -> None:
        self._send = send
        self._turn = asyncio.Lock()
        self._question: m.ClientMessage | None = None
        self._reply_type: type[m.Message] = m.Message
        self._reply: asyncio.Future[m.Message] | None = None
        self._on_log: Callable[[m.Log], None] | None = None

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
            NoReplyError: no reply came within `timeout_s`, waiting for earlier questions included.
        """
        try:
            async with asyncio.timeout(timeout_s), self._turn:
                self._question, self._reply_type, self._on_log = question, reply_type, on_log
                self._reply = asyncio.get_running_loop().create_future()
                self._send(question)
                try:
                    reply = await self._reply
                finally:
                    self._question = self._reply = self._on_log = None
        except TimeoutError:
            raise NoReplyError(f"the server did not answer within {timeout_s:g} s") from None
        assert isinstance(reply, reply_type)
        return reply

    def repeat(self) -> None:
        """There is a new connection."""
        if self._question is not None:
            self._send(self._question)

    def receive(self, message: m.ServerMessage) -> bool:
        """Whether the message belongs to the question that is out."""
        if self._reply is None or self._reply.done():
            return False
        match message:
            case m.Error(request_id=None, seq=UnsetType()):
                self._reply.set_exception(RequestRejectedError(message))
            case m.Log(seq=UnsetType()) if self._on_log is not None:
                self._on_log(message)
            case _ if isinstance(message, self._reply_type):
                self._reply.set_result(message)
            case _:
                return False
        return True

    def fail(self, error: ClientError) -> None:
        """No reply can come any more."""
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(error)

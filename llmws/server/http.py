"""uvicorn's HTTP/1.1 protocol with what it lacks: limits of a head's time, of connections, and of one read.

Invariant: a connection on which no request is being answered, or whose client does not read the answer, is cut after at
most two timeouts, and nothing that comes holds the loop up or raises.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Any, Final

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

from llmws.server.entrance import Entrance
from llmws.server.websocket import STOP_TIMEOUT_S

READ_BYTES: Final = 4096
"""So much is read before other connections have their turn: 256 KiB, which asyncio reads else, are half a second of
work where they are chunks of one byte."""


class HttpProtocol(H11Protocol, asyncio.BufferedProtocol):
    """One connection until its loss, or until an upgrade hands the socket to `WebSocketProtocol`."""

    def __init__(
        self,
        entrance: Entrance,
        *,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._entrance = entrance
        self._cycle_before: RequestResponseCycle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._read = bytearray()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Counts the connection and gives it its time; under TLS its handshake has just begun."""
        super().connection_made(transport)
        self._arm(self._entrance.server.hello_timeout_s, self._cut_if_idle)
        self._entrance.admit(transport)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  (asyncio's signature)
        """Where the next read goes; one for each, as idle connections are to keep none.

        A view, because under TLS asyncio reads every record but the first into a slice of it: a bytearray's is a copy.
        """
        self._read = bytearray(READ_BYTES)
        return memoryview(self._read)

    def buffer_updated(self, nbytes: int) -> None:
        """Parses what was read."""
        data, self._read = bytes(memoryview(self._read)[:nbytes]), bytearray()
        self.data_received(data)

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP, or just ends the connection where an answer has been begun."""
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None:
            # The application may not answer as well: uvicorn would log a traceback for every such request.
            cycle.disconnected = True
            cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Lets go of the socket; a timer would keep this object, and its parser, for as long as it waits."""
        assert self._timer is not None
        if self.cycle is None:
            # A handshake, a head and a hello that drip are to have one time between them, from the connection on.
            self.ws_protocol_class = functools.partial(self.ws_protocol_class, hello_due_s=self._timer.when())
        self._timer.cancel()
        super().handle_websocket_upgrade(event)
        if self.flow.write_paused:
            # The transport says so once, and has said it here: answers to earlier requests have not been read yet.
            self.transport.get_protocol().pause_writing()

    def shutdown(self) -> None:
        """The server stops: who does not read the answer that is being sent does not hold it up."""
        super().shutdown()
        self._arm(STOP_TIMEOUT_S, self.cut)

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone without an upgrade."""
        super().connection_lost(exc)
        self._entrance.left(self.transport)
        assert self._timer is not None
        self._timer.cancel()

    def cut(self) -> None:
        """Ends the connection at once."""
        self.transport.abort()

    def _arm(self, delay_s: float, callback: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(delay_s, callback)

    def _cut_if_idle(self) -> None:
        """Cuts a connection that has not begun a request since the last time and is not being answered, or is deaf."""
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is self._cycle_before and (cycle is None or cycle.response_complete or self.flow.write_paused):
            self.cut()
            return
        self._cycle_before = cycle
        self._arm(self._entrance.server.hello_timeout_s, self._cut_if_idle)

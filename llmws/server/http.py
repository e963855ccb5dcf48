"""uvicorn's HTTP/1.1 protocol with what it lacks: a time limit for a request's head, and a limit of connections.

Invariant: a connection on which no request is being answered is cut after at most two timeouts.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

from llmws.server.entrance import Entrance


class HttpProtocol(H11Protocol):
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
        self._watched: RequestResponseCycle | None = None
        self._watch: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Counts the connection and begins to watch it."""
        super().connection_made(transport)
        self._arm()
        self._entrance.admit(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone without an upgrade."""
        super().connection_lost(exc)
        self._entrance.left(self.transport)
        if self._watch is not None:
            self._watch.cancel()

    def cut(self) -> None:
        """Ends the connection at once."""
        self.transport.abort()

    def _arm(self) -> None:
        self._watch = self.loop.call_later(self._entrance.server.hello_timeout_s, self._check)

    def _check(self) -> None:
        """Cuts a connection that has not begun a request since the last check and is not being answered."""
        if self.transport.get_protocol() is not self:
            return
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is self._watched and (cycle is None or cycle.response_complete):
            self.cut()
            return
        self._watched = cycle
        self._arm()

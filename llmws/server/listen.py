"""The listening socket, and the server on it from start to stop.

Owns the order of stopping: refuse what is new, tell every client to come back, cut who does not leave. Installs no
signal handlers: the composition root owns the process. Invariant: when `Server.run` has returned, however it did, no
socket is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import uvicorn
from uvicorn.server import ServerState

from llmws.access import Identity
from llmws.config import LimitsSection, ServerSection
from llmws.errors import ConfigError
from llmws.server.asgi import MAX_HEAD_BYTES, create_app
from llmws.server.entrance import Entrance
from llmws.server.http import HttpProtocol
from llmws.server.ports import Credentials, Sessions
from llmws.server.tls import TlsProtocol
from llmws.server.websocket import STOP_TIMEOUT_S, WebSocketProtocol

BACKLOG: Final = 2048
"""With 100 a good client waited a second beside 200 slow ones."""

ACCEPTED_AT_ONCE: Final = 32
"""New connections that are taken before those that are there have their turn: some milliseconds' work. A thousand that
came at once kept everybody waiting for half a second."""

REVOCATION_INTERVAL_S: Final = 0.5
"""How long a connection outlives its token, at most."""

NOTSENT_LOWAT_BYTES: Final = 16 * 1024
"""How much unsent data the kernel takes; without a bound, megabytes before a client counts as congested."""


def bind(host: str, port: int) -> socket.socket:
    """Makes the listening socket; it does not listen yet.

    Args:
        host: an address or a name; of a name's addresses one is bound, an IPv4 one where there is one.
        port: 0 for any free one.

    Raises:
        ConfigError: the port is taken or the address is not this machine's; names the key and the fix.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(f"server.host: {host!r} does not resolve ({error.strerror})") from None
    family, kind, _, _, address = min(found, key=lambda info: info[0] is not socket.AF_INET)
    # asyncio switches Nagle's algorithm off only where the protocol number is explicit.
    listener = socket.socket(family, kind, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOTSENT_LOWAT_BYTES)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise ConfigError(_why(error, host, port)) from None
    return listener


def _why(error: OSError, host: str, port: int) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"server.port: {port} on {host} is in use; stop the other server or choose another with --port"
        case errno.EACCES:
            return f"server.port: {port} needs privileges; choose one above 1023 with --port"
        case errno.EADDRNOTAVAIL:
            return f"server.host: {host} is not an address of this machine; choose another with --host"
        case _:
            return f"server.host: cannot listen on {host} port {port} ({os.strerror(error.errno or 0)})"


class Server:
    """Serves HTTP and WebSocket on one socket.

    `run` in a task; wait for `started`; then `drain` and, when the work is done, `stop`, which lets `run` return.

    Args:
        listener: from `bind`; closed when `run` ends.
        sessions: where authenticated connections lead.
        credentials: a token to its identity.
        server: names, heartbeat and timeouts.
        limits: sizes and numbers of connections.
        tls: the certificate, where the server itself speaks TLS.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        *,
        listener: socket.socket,
        sessions: Sessions,
        credentials: Credentials,
        server: ServerSection,
        limits: LimitsSection,
        tls: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._listener = listener
        self.port: int = listener.getsockname()[1]
        self.started = asyncio.Event()
        self._entrance = Entrance(
            sessions=sessions, credentials=credentials, server=server, limits=limits, port=self.port, clock=clock
        )
        self._uvicorn = _Uvicorn(configure(self._entrance, tls), self.started)

    @property
    def connections(self) -> int:
        """How many connections are open, HTTP and WebSocket, signed in or not."""
        return self._entrance.connections

    async def run(self) -> None:
        """Listens and serves until `stop`, or until it is cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                revocations = tasks.create_task(self._close_revoked())
                await self._uvicorn.serve(sockets=[self._listener])
                revocations.cancel()
        finally:
            self._uvicorn.cut()
            self._listener.close()
            await asyncio.sleep(0)  # in which asyncio tells the connections just cut that they are lost

    async def _close_revoked(self) -> None:
        while True:
            await asyncio.sleep(REVOCATION_INTERVAL_S)
            self._entrance.close_revoked()

    def mint_code(self, identity: Identity) -> str:
        """A code that lets a browser in as `identity`, once, within ten minutes."""
        return self._entrance.codes.mint(identity)

    def drain(self) -> None:
        """Refuses new connections, 4503 or status 503, and those that have not said hello. The others go on."""
        self._entrance.draining = True
        for connection in list(self._uvicorn.server_state.connections):
            if isinstance(connection, WebSocketProtocol):
                connection.drain()

    def stop(self) -> None:
        """Closes every WebSocket with 1012 and ends `run` within about three seconds."""
        self._entrance.draining = True
        self._uvicorn.should_exit = True


def configure(entrance: Entrance, tls: ssl.SSLContext | None) -> uvicorn.Config:
    """What uvicorn is told: our two protocols, the application, and to be silent."""
    return uvicorn.Config(
        create_app(entrance),
        http=functools.partial(accept, entrance, tls),  # type: ignore[arg-type]
        ws=functools.partial(WebSocketProtocol, entrance),  # type: ignore[arg-type]
        interface="asgi3",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=ACCEPTED_AT_ONCE,  # asyncio accepts as many in a row as it was told to let wait: see `startup`
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        timeout_graceful_shutdown=int(STOP_TIMEOUT_S) + 1,
    )


def accept(
    entrance: Entrance,
    tls: ssl.SSLContext | None,
    *,
    config: uvicorn.Config,
    server_state: ServerState,
    app_state: dict[str, Any],
    _loop: asyncio.AbstractEventLoop | None = None,
) -> asyncio.BufferedProtocol:
    """The protocol of a new connection; uvicorn calls this as if it were a class."""
    http = HttpProtocol(entrance, config=config, server_state=server_state, app_state=app_state, _loop=_loop)
    return TlsProtocol(http, tls) if tls else http


class _Uvicorn(uvicorn.Server):
    """uvicorn's server in somebody else's process: it says when it listens, and leaves the signals alone."""

    def __init__(self, config: uvicorn.Config, started: asyncio.Event) -> None:
        super().__init__(config)
        self._listening = started
        self.servers: list[asyncio.Server] = []

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(BACKLOG)
        self._listening.set()

    def cut(self) -> None:
        """Ends at once what a bounded shutdown has left."""
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            assert isinstance(connection, WebSocketProtocol | HttpProtocol)
            connection.cut()

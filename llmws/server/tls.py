"""TLS: the server's certificate, and the handshake in front of the HTTP protocol.

asyncio could do the handshake by itself, but then a connection is not seen before it has ended: those that never end
theirs would be counted and limited by nobody. Invariant: a connection is counted from its first moment to its last, and
ends its handshake in time or is cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from pathlib import Path

from uvicorn.server import ServerState

from llmws.errors import ConfigError
from llmws.server.entrance import Entrance
from llmws.server.http import HttpProtocol

SHUTDOWN_TIMEOUT_S = 2.0
"""How long a client may take to say goodbye in TLS too."""


def tls_context(cert: Path, key: Path) -> ssl.SSLContext:
    """The server's side of TLS 1.2 and newer, with this certificate.

    Raises:
        ConfigError: names the file that cannot be used, or is no secret, and why.
    """
    for name, path in (("tls_cert", cert), ("tls_key", key)):
        try:
            path.read_bytes()
        except OSError as error:
            raise ConfigError(f"server.{name}: {path} cannot be read ({error.strerror})") from None
    # A group may: packages of certificates have one for the services that use them.
    if key.stat().st_mode & 0o007:
        raise ConfigError(f"server.tls_key: every account of this machine can read {key}; fix it: chmod o= {key}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    try:
        # An empty password instead of a question on the terminal, which a service does not have.
        context.load_cert_chain(cert, key, password="")
    except (ssl.SSLError, ValueError) as error:
        why = getattr(error, "reason", None) or error
        raise ConfigError(
            f"server.tls_cert: {cert} and {key} are not a certificate and its unencrypted key, in PEM ({why})"
        ) from None
    return context


class TlsProtocol(asyncio.Protocol):
    """One connection during its handshake; then the HTTP protocol takes it over."""

    def __init__(
        self,
        entrance: Entrance,
        *,
        context: ssl.SSLContext,
        server_state: ServerState,
        next_protocol: Callable[[], HttpProtocol],
    ) -> None:
        self._entrance = entrance
        self._context = context
        self._connections: set[object] = server_state.connections  # type: ignore[assignment]
        self._next_protocol = next_protocol
        self._early = bytearray()
        self._transport: asyncio.Transport
        self._handshake: asyncio.Task[None]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Counts the connection and begins the handshake."""
        assert isinstance(transport, asyncio.Transport)
        transport.pause_reading()  # nothing may be read but by the handshake
        self._transport = transport
        self._connections.add(self)
        self._entrance.admit(transport)
        self._handshake = asyncio.get_running_loop().create_task(self._shake_hands())

    def data_received(self, data: bytes) -> None:
        """Keeps what came encrypted together with the end of the handshake."""
        self._early += data

    def cut(self) -> None:
        """Ends the connection at once."""
        self._transport.abort()

    def shutdown(self) -> None:
        """The server stops; a client that has not been let in yet is told nothing."""
        self.cut()

    async def _shake_hands(self) -> None:
        secured: asyncio.Transport | None = None
        with contextlib.suppress(OSError):  # what came was no TLS, came too slowly, or nothing comes any more
            secured = await asyncio.get_running_loop().start_tls(
                self._transport,
                self,
                self._context,
                server_side=True,
                ssl_handshake_timeout=self._entrance.server.hello_timeout_s,
                ssl_shutdown_timeout=SHUTDOWN_TIMEOUT_S,
            )
        self._connections.discard(self)
        self._entrance.left(self._transport)
        if secured is None or secured.is_closing():
            self.cut()
            return
        protocol = self._next_protocol()
        secured.set_protocol(protocol)
        protocol.connection_made(secured)
        if self._early:
            protocol.data_received(bytes(self._early))

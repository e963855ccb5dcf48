"""TLS: the server's certificate, and the encryption between the socket and the HTTP protocol.

asyncio's own, changed where it does not suit a server of strangers: a connection is shown to the HTTP protocol when its
handshake begins and not when it has ended, and keeps a small buffer. Invariant: a connection is counted from its first
moment to its last, and the HTTP protocol hears of its loss, whenever that is.
"""

from __future__ import annotations

import asyncio
import ssl
from asyncio import sslproto
from pathlib import Path
from typing import Final

from llmws.errors import ConfigError
from llmws.server.http import HttpProtocol

BUFFER_BYTES: Final = 16 * 1024
"""What is read of the socket at once: a TLS record. asyncio's 256 KiB, for each, are ten times the rest of one."""

_CERTIFICATE: Final = b"-----BEGIN CERTIFICATE-----"

SHUTDOWN_TIMEOUT_S: Final = 2.0
"""How long a client may take to say goodbye in TLS too."""


def tls_context(cert: Path, key: Path) -> ssl.SSLContext:
    """The server's side of TLS 1.2 and newer, with this certificate.

    Raises:
        ConfigError: names the file that cannot be used, or is no secret, and why.
    """
    found = {}
    for name, path in (("tls_cert", cert), ("tls_key", key)):
        try:
            found[path] = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"server.{name}: {path} cannot be read ({error.strerror})") from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # the default is OpenSSL's as this system configures it
    context.set_alpn_protocols(["http/1.1"])
    try:
        # An empty password instead of a question on the terminal, which a service does not have.
        context.load_cert_chain(cert, key, password="")
    except (ssl.SSLError, ValueError) as error:
        if _CERTIFICATE in found[key] and _CERTIFICATE not in found[cert]:
            raise ConfigError(f"server.tls_cert: {key} is the certificate, and not {cert}; swap them") from None
        if b"ENCRYPTED" in found[key]:
            fix = f"openssl pkey -in {key} -out FILE"
            raise ConfigError(f"server.tls_key: {key} is encrypted; write it without a password: {fix}") from None
        why = getattr(error, "reason", None) or error
        raise ConfigError(
            f"server.tls_cert: {cert} and {key} are not a certificate and its key, in PEM ({why})"
        ) from None
    # A group may: packages of certificates have one for the services that use them.
    if key.stat().st_mode & 0o007:
        raise ConfigError(f"server.tls_key: every account of this machine can read {key}; fix it: chmod o= {key}")
    return context


class TlsProtocol(sslproto.SSLProtocol):
    """One connection's encryption, between the socket and the HTTP protocol, later the WebSocket.

    Args:
        http: is told of the connection at once, and so counts it and bounds its handshake as it bounds its head.
        context: from `tls_context`.
    """

    max_size = BUFFER_BYTES

    def __init__(self, http: HttpProtocol, context: ssl.SSLContext) -> None:
        super().__init__(
            asyncio.get_running_loop(),
            http,
            context,
            None,  # type: ignore[arg-type]  # nobody waits for the handshake
            server_side=True,
            call_connection_made=False,
            ssl_shutdown_timeout=SHUTDOWN_TIMEOUT_S,
        )
        self._drop_buffer()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins the handshake."""
        super().connection_made(transport)
        self._app_protocol.connection_made(self._app_transport)

    def buffer_updated(self, nbytes: int) -> None:
        """Decrypts what was read, into a buffer for this one read: an idle connection is to keep none."""
        super().buffer_updated(nbytes)
        self._drop_buffer()

    def eof_received(self) -> None:
        """Passes on what has come, and then the end, also to who has paused reading.

        asyncio would wait until it reads on, and meanwhile let it write what nobody gets.
        """
        self._app_reading_paused = False
        self._start_shutdown()
        super().eof_received()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Passes it on in the handshake too, of which asyncio assumes that nobody has heard yet."""
        self._state = sslproto.SSLProtocolState.UNWRAPPED
        super().connection_lost(exc)

    def _set_app_protocol(self, app_protocol: asyncio.BaseProtocol) -> None:
        # asyncio's would keep the HTTP protocol, with its parser, for as long as the WebSocket lasts.
        self._app_protocol_get_buffer = self._app_protocol_buffer_updated = None
        super()._set_app_protocol(app_protocol)

    def _drop_buffer(self) -> None:
        # A buffer that is too small for the next read is replaced by asyncio.
        self._ssl_buffer = bytearray()
        self._ssl_buffer_view = memoryview(self._ssl_buffer)

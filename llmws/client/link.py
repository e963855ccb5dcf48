"""One WebSocket connection, from the upgrade to its end.

Owns what is particular to the `websockets` package; knows nothing of sessions. Invariant: every end of a connection
becomes either `LostError` (reconnect) or a `ClientError` (do not).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import ssl
from typing import Final, Literal
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidProxy, InvalidStatus

from llmws.client import tls as trust
from llmws.client.errors import CertificateError, ClientError, ProtocolError, UnauthorizedError, from_close
from llmws.protocol import SUBPROTOCOL, decode_server, encode, is_final
from llmws.protocol import messages as m

OPEN_TIMEOUT_S: Final = 10.0
WELCOME_TIMEOUT_S: Final = 30.0
"""A hello to a session that is being recovered waits for it."""
CLOSE_TIMEOUT_S: Final = 2.0
MAX_FRAME_BYTES: Final = 32 * 2**20
"""Largest frame taken: a snapshot holds whole answers, a page of history 200 messages."""

READABLE_ON_THE_WAY: Final = "the token can be read on its way to {url}; use https:// or wss://, or a tunnel"

_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding a frame may raise; the last for one that is nested very deeply."""
MOST_SAID: Final = 200
"""So many characters of a refusal are shown; a proxy may answer with a whole page."""
_TRANSIENT_STATUS: Final = (408, 425, 429, 500, 502, 503, 504)


class LostError(Exception):
    """The connection is gone, or was never made; another may be.

    Attributes:
        code: the close code, None when there was none.
    """

    def __init__(self, reason: str, code: int | None = None) -> None:
        super().__init__(reason)
        self.code = code


def websocket_url(address: str, *, default_scheme: Literal["ws", "wss"] = "ws") -> str:
    """The WebSocket URL for what a person or a ready file calls the server's address.

    `http` and `ws` schemes, also with TLS, are taken, and none for `default_scheme`; without a path it is `/v1/ws`.

    Raises:
        ValueError: the address is not one.
    """
    try:
        parts = urlsplit(address if "://" in address else f"{default_scheme}://{address}")
        scheme = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}.get(parts.scheme)
        is_address = scheme is not None and _is_host(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        is_address = False
    if not is_address or parts.username is not None or parts.query or parts.fragment:
        raise ValueError(f"{address!r} is not the address of a server; it looks like http://127.0.0.1:8765")
    return urlunsplit((scheme, parts.netloc, parts.path if parts.path.strip("/") else "/v1/ws", "", ""))


def _is_host(name: str | None) -> bool:
    """Whether it can be looked up at all; an IPv6 address is seen by its colons."""
    if name is None or any(char.isspace() for char in name):
        return False
    return ":" in name or all(0 < len(label.encode("idna")) < 64 for label in name.removesuffix(".").split("."))


def stays_here(url: str) -> bool:
    """Whether what is sent to this URL stays on this machine."""
    name = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def is_readable_on_the_way(url: str) -> bool:
    """Whether others can read a token that is sent to this WebSocket URL: it leaves the machine, and without TLS."""
    return urlsplit(url).scheme == "ws" and not stays_here(url)


class Link:
    """A connection whose hello was answered."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket

    @classmethod
    async def open(
        cls, url: str, hello: m.Hello, *, tls: ssl.SSLContext | None = None, heartbeat_s: float = 20.0
    ) -> tuple[Link, m.Welcome]:
        """Connects, says hello and waits for the welcome.

        Args:
            url: from `websocket_url`.
            hello: the first message.
            tls: which certificates are believed at a `wss` URL; None for those of the machine's authorities.
            heartbeat_s: how often the connection is tested; one on which no pong comes for as long again is lost.

        Raises:
            LostError: it may work later.
            ClientError: it will not.
        """
        link = cls(await _connect(url, tls, heartbeat_s))
        try:
            async with asyncio.timeout(WELCOME_TIMEOUT_S):
                return link, await link._greet(hello)
        except TimeoutError:
            await link.close()
            raise LostError("the server did not answer the hello") from None
        except BaseException:
            await link.close()
            raise

    async def send(self, message: m.ClientMessage) -> None:
        """Sends a message. Waits while the socket's buffer is full; a dead peer ends that by the missing pong.

        Raises:
            LostError: the connection is gone; `receive` tells why.
        """
        try:
            await self._socket.send(encode(message), text=True)
        except ConnectionClosed:
            raise LostError("the connection was lost while sending") from None

    async def receive(self) -> m.ServerMessage | m.Event:
        """The next message; a bare `Event` for one of a type that this version does not know.

        Raises:
            LostError: reconnect.
            ClientError: do not.
        """
        try:
            frame = await self._socket.recv()
        except ConnectionClosed as closed:
            raise _why(closed) from None
        try:
            return decode_server(frame)
        except _UNREADABLE:
            return _unknown(frame)

    async def close(self) -> None:
        """Closes in the normal way; returns within seconds also when the peer is gone."""
        closing = asyncio.create_task(self._socket.close())
        with contextlib.suppress(ConnectionClosed):
            # Unread frames would keep the peer's close frame from being read.
            while True:
                await self._socket.recv()
        await closing

    def abort(self) -> None:
        """Ends the connection at once; `receive` then raises."""
        self._socket.transport.abort()

    async def _greet(self, hello: m.Hello) -> m.Welcome:
        await self.send(hello)
        said = ""
        while True:
            try:
                message = await self.receive()
            # The close frame carries a word, the `error` before it a sentence.
            except ClientError as error:
                raise type(error)(said or str(error)) from None
            except LostError as lost:
                raise LostError(said or str(lost), lost.code) from None
            if isinstance(message, m.Welcome):
                if not _is_session_id(message.session_id):
                    raise ProtocolError("the server's welcome has no session's UUID")
                return message
            if isinstance(message, m.Error):
                said = message.message


def _is_session_id(text: str) -> bool:
    """Whether it is fit to be shown, and to be given as an argument."""
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False


async def _connect(url: str, tls: ssl.SSLContext | None, heartbeat_s: float) -> ClientConnection:
    try:
        return await connect(
            url,
            subprotocols=[SUBPROTOCOL],  # type: ignore[list-item]
            compression=None,
            # A token must not travel through a proxy on its way to this very machine.
            proxy=None if stays_here(url) else True,
            ssl=(tls or True) if url.startswith("wss:") else None,
            open_timeout=OPEN_TIMEOUT_S,
            ping_interval=heartbeat_s,
            ping_timeout=heartbeat_s,
            close_timeout=CLOSE_TIMEOUT_S,
            max_size=MAX_FRAME_BYTES,
        )
    except InvalidStatus as error:
        raise _refusal(url, error.response.status_code, bytes(error.response.body or b"")) from None
    except ssl.SSLCertVerificationError as error:
        is_pinned = tls is not None and not tls.check_hostname
        raise CertificateError(f"{url}: {trust.refused(error, is_pinned=is_pinned)}") from None
    except ssl.SSLError as error:
        why = "no TLS there" if error.reason == "WRONG_VERSION_NUMBER" else f"TLS failed ({error.reason})"
        raise CertificateError(f"{why} at {url}") from None
    except InvalidMessage as error:
        if isinstance(error.__cause__, EOFError):
            perhaps = "" if url.startswith("wss:") else f"; perhaps it speaks TLS: {_with_tls(url)}"
            raise LostError(f"the server closed the connection during the upgrade{perhaps}") from None
        raise ProtocolError(f"{url}: no WebSocket server answers there") from None
    except (InvalidProxy, ImportError) as error:
        raise ProtocolError(f"{url}: the proxy that the environment names cannot be used: {error}") from None
    except InvalidHandshake as error:
        raise ProtocolError(f"{url}: {error}") from None
    except TimeoutError:
        raise LostError("the server did not answer in time") from None
    except OSError as error:
        raise LostError(_words(error)) from None


def _words(error: OSError) -> str:
    """What a person calls the error; asyncio's own text names the address, which is known."""
    if error.errno is None or isinstance(error, socket.gaierror):
        return error.strerror or str(error)
    return os.strerror(error.errno)


def _with_tls(url: str) -> str:
    """What a person would call the server if it spoke TLS."""
    return f"https://{urlsplit(url).netloc}"


def _refusal(url: str, status: int, body: bytes) -> ClientError | LostError:
    """What an HTTP status instead of the upgrade means; the server's own sentence may be in the body."""
    if status in _TRANSIENT_STATUS:
        return LostError(f"the server answered with HTTP status {status}")
    if status == 401:
        return UnauthorizedError("the server wants a valid token")
    if status == 403:
        said = "".join(char for char in body.decode(errors="replace")[:MOST_SAID] if char.isprintable())
        return ProtocolError(f"{url}: {said or 'the server refuses the connection'} (HTTP status 403)")
    if status == 421:
        return ProtocolError(f"{url}: the server does not answer to this name; list it in server.hosts on the server")
    return ProtocolError(f"{url}: no llmws server answers there (HTTP status {status})")


def _why(closed: ConnectionClosed) -> ClientError | LostError:
    """What the end of a connection means."""
    if closed.rcvd is None:
        return LostError("the connection was lost")
    code, reason = closed.rcvd.code, closed.rcvd.reason
    if is_final(code):
        return from_close(code, reason)
    return LostError(f"{reason or 'the server closed the connection'} (close code {code})", code)


def _unknown(frame: str | bytes) -> m.Event:
    try:
        return msgspec.json.decode(frame, type=_Place)
    except _UNREADABLE:
        raise LostError("the server sent something that is not a message") from None


class _Place(m.Event, frozen=True, kw_only=True, tag=False):
    """What every event has, whatever its type."""

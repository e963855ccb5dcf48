"""TLS on the same port: HTTP and WebSocket over it, who does not speak it, and handshakes that never end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import ssl
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import websockets

from llmws.access import Identity
from llmws.config import LimitsSection, ServerSection
from llmws.errors import ConfigError
from llmws.protocol import encode
from llmws.protocol import messages as m
from llmws.server.http import READ_BYTES, HttpProtocol
from llmws.server.tls import BUFFER_BYTES, TlsProtocol, tls_context
from llmws.server.websocket import CLOSE_TIMEOUT_S, WebSocketProtocol
from tests.support.certificates import Authority
from tests.support.echo_server import CLOSE, TIMEOUT_S, RawClient, Running, Serve, frame


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> Path:
    return authority.issue("127.0.0.1", "localhost")


@pytest.fixture
def trust(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=authority.file)


async def start(serve: Serve, certificate: Path, **how) -> Running:
    return await serve(tls=tls_context(certificate, certificate), **how)


async def test_a_websocket_over_tls(serve: Serve, certificate: Path, trust: ssl.SSLContext) -> None:
    """Messages of several records, both ways, and the origin of a page is https now."""
    running = await start(serve, certificate)
    own = f"127.0.0.1:{running.port}"
    async with websockets.connect(f"wss://{own}/v1/ws", ssl=trust, origin=f"https://{own}") as client:
        await client.send(json.dumps({"auth": running.token}))
        assert '"hello"' in str(await client.recv())
        message = json.dumps({"type": "inference", "prompt": "x" * 500_000})
        await client.send(message)
        assert len(str(await client.recv())) > 500_000
    with pytest.raises(websockets.InvalidStatus) as refused:
        await websockets.connect(f"wss://{own}/v1/ws", ssl=trust, origin=f"http://{own}")
    assert refused.value.response.status_code == 403


async def test_http_over_tls(serve: Serve, certificate: Path, trust: ssl.SSLContext) -> None:
    running = await start(serve, certificate)

    def get() -> bytes:
        with urllib.request.urlopen(f"https://127.0.0.1:{running.port}/healthz", context=trust) as answer:
            return answer.read()

    assert await asyncio.to_thread(get) == b"ok\n"


class Records:
    """A TLS client that decides what goes into one record and what into one segment."""

    def __init__(self, raw: RawClient, trust: ssl.SSLContext) -> None:
        self.raw = raw
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = trust.wrap_bio(self._incoming, self._outgoing, server_hostname="127.0.0.1")

    async def shake_hands(self) -> None:
        """Leaves the end of the handshake unsent, for the next `flush`."""
        await self._when_ready(self.tls.do_handshake)

    async def upgrade(self, port: int) -> None:
        """Shakes hands and becomes a WebSocket."""
        await self.shake_hands()
        self.tls.write(
            f"GET /v1/ws HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        )
        await self.answer(b"\r\n\r\n")

    def flush(self) -> None:
        self.raw.writer.write(self._outgoing.read())

    async def read(self) -> bytes:
        return await self._when_ready(lambda: self.tls.read(65536))

    async def answer(self, end: bytes) -> bytes:
        """Reads up to `end`."""
        answer = b""
        while not answer.endswith(end):
            piece = await self.read()
            assert piece, f"the server ended the connection after {answer!r}"
            answer += piece
        return answer

    async def _when_ready(self, step: Callable[[], Any]) -> Any:
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                try:
                    return step()
                except ssl.SSLWantReadError:
                    self.flush()
                    if data := await self.raw.reader.read(65536):
                        self._incoming.write(data)
                    else:
                        self._incoming.write_eof()


async def test_a_request_right_behind_the_handshake_is_answered(
    serve: Serve, certificate: Path, trust: ssl.SSLContext
) -> None:
    """The end of the handshake and a request come in one piece."""
    running = await start(serve, certificate)
    client = Records(await running.connect(), trust)
    await client.shake_hands()
    client.tls.write(f"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:{running.port}\r\n\r\n".encode())
    client.flush()
    assert (await client.answer(b"ok\n")).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("size_bytes", [0, READ_BYTES + 100])
async def test_a_request_of_several_records_is_one_request(
    serve: Serve, certificate: Path, trust: ssl.SSLContext, size_bytes: int
) -> None:
    """Head and body, or the two halves of a head longer than one read, come in one segment."""
    running = await start(serve, certificate)
    client = Records(await running.connect(), trust)
    await client.shake_hands()
    body = json.dumps({"code": running.server.mint_code(Identity("local", "admin"))})
    head = f"POST /v1/auth/exchange HTTP/1.1\r\nHost: 127.0.0.1:{running.port}\r\nX-Padding: {'x' * size_bytes}"
    for record in (head, f"\r\nContent-Length: {len(body)}\r\n\r\n", body):
        client.tls.write(record.encode())
    client.flush()
    assert (await client.answer(b"}")).startswith(b"HTTP/1.1 200")


def only_door(running: Running) -> Any:
    (door,) = running.server._uvicorn.server_state.connections
    assert isinstance(door, WebSocketProtocol)
    return door


def in_memory(kind: type) -> int:
    gc.collect()
    # Not isinstance, which asks the object: modules of torch answer with a warning.
    return sum(issubclass(type(each), kind) for each in gc.get_objects())


async def attached(running: Running, trust: ssl.SSLContext) -> Records:
    """A WebSocket over TLS after its hello."""
    client = Records(await running.connect(), trust)
    await client.upgrade(running.port)
    client.tls.write(frame(json.dumps({"auth": running.token}).encode()))
    await client.answer(b"}")
    return client


@pytest.mark.parametrize("says_goodbye", [True, False])
async def test_what_was_said_before_the_end_counts_and_its_answers_are_nothing_to_log(
    serve: Serve, certificate: Path, trust: ssl.SSLContext, caplog: pytest.LogCaptureFixture, *, says_goodbye: bool
) -> None:
    """More messages than a read takes, a close frame and the end come at once, with a TLS goodbye or without."""
    running = await start(serve, certificate)
    client = await attached(running, trust)
    messages = [m.Cancel(request_id=str(n)) for n in range(BUFFER_BYTES // 20)]
    client.tls.write(
        b"".join(frame(encode(message)) + frame(b'{"type":"ping"}') for message in messages)
        + frame(b"\x03\xe8", opcode=CLOSE)
    )
    if says_goodbye:
        with contextlib.suppress(ssl.SSLWantReadError):
            client.tls.unwrap()
    client.flush()
    client.raw.writer.write_eof()
    async with asyncio.timeout(CLOSE_TIMEOUT_S / 2):
        await running.sessions.saw("detach", 1)
    assert running.sessions.calls[1:] == [*(("receive", 1, message) for message in messages), ("detach", 1)]
    assert caplog.records == []


async def test_an_idle_connection_keeps_neither_a_buffer_nor_its_http(
    serve: Serve, certificate: Path, trust: ssl.SSLContext
) -> None:
    before = in_memory(HttpProtocol)
    running = await start(serve, certificate)
    await attached(running, trust)
    connection = only_door(running)._transport._ssl_protocol
    assert isinstance(connection, TlsProtocol)
    assert len(connection._ssl_buffer) == 0
    assert len(connection.get_buffer(-1)) == BUFFER_BYTES
    assert in_memory(HttpProtocol) == before


async def test_handshake_and_hello_have_one_time_between_them(
    serve: Serve, certificate: Path, trust: ssl.SSLContext
) -> None:
    running = await start(serve, certificate)
    client = Records(await running.connect(), trust)
    async with asyncio.timeout(TIMEOUT_S):
        while not running.server.connections:  # noqa: ASYNC110 - it tells nobody when that changes
            await asyncio.sleep(0)
    counted_s = asyncio.get_running_loop().time()
    await client.upgrade(running.port)
    assert only_door(running)._timer.when() <= counted_s + ServerSection().hello_timeout_s


async def test_who_speaks_no_tls_is_cut(serve: Serve, certificate: Path) -> None:
    running = await start(serve, certificate)
    client = await running.connect()
    client.writer.write(b"GET / HTTP/1.1\r\n\r\n")
    assert await client.at_end()


async def test_a_handshake_that_never_ends_is_cut_and_was_counted(serve: Serve, certificate: Path) -> None:
    limits = LimitsSection(max_unauthenticated=2)
    running = await start(serve, certificate, limits=limits, server=ServerSection(hello_timeout_s=0.5))
    silent = [await running.connect() for _ in range(3)]
    assert await silent[0].at_end()  # too many of one address: the oldest goes
    assert await silent[1].at_end()  # not in time
    assert await silent[2].at_end()


async def test_a_client_that_leaves_in_the_handshake_leaves_nothing(serve: Serve, certificate: Path) -> None:
    """The fixture sees that no connection is counted at the end."""
    running = await start(serve, certificate)
    for early in (b"", b"\x16\x03\x01"):
        client = await running.connect()
        client.writer.write(early)
        client.reset()


async def test_a_stop_does_not_wait_for_a_handshake(serve: Serve, certificate: Path) -> None:
    running = await start(serve, certificate)
    client = await running.connect()
    async with asyncio.timeout(5):
        while not running.server.connections:  # noqa: ASYNC110  (the server tells nobody whom it counts)
            await asyncio.sleep(0)
    running.server.stop()
    assert await client.at_end()


def test_a_certificate_that_cannot_be_used_is_a_clear_error(tmp_path: Path, certificate: Path) -> None:
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("no certificate")
    with pytest.raises(ConfigError, match=r"server\.tls_key: .*missing\.pem cannot be read"):
        tls_context(certificate, tmp_path / "missing.pem")
    with pytest.raises(ConfigError, match=r"server\.tls_cert: .*garbage\.pem"):
        tls_context(garbage, certificate)

"""TLS on the same port: HTTP and WebSocket over it, who does not speak it, and handshakes that never end."""

from __future__ import annotations

import asyncio
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
from llmws.server.http import READ_BYTES
from llmws.server.tls import tls_context
from tests.support.certificates import Authority
from tests.support.echo_server import TIMEOUT_S, RawClient, Running, Serve


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

    def flush(self) -> None:
        self.raw.writer.write(self._outgoing.read())

    async def read(self) -> bytes:
        return await self._when_ready(lambda: self.tls.read(65536))

    async def answer(self, end: bytes) -> bytes:
        """Reads up to `end`."""
        answer = b""
        while not answer.endswith(end):
            answer += await self.read()
        return answer

    async def _when_ready(self, step: Callable[[], Any]) -> Any:
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                try:
                    return step()
                except ssl.SSLWantReadError:
                    self.flush()
                    self._incoming.write(await self.raw.reader.read(65536))


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

"""Beginning and end: the listening socket, draining, stopping, being cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket

import pytest

from llmws.errors import ConfigError
from llmws.server import listen
from tests.support.echo_server import TIMEOUT_S, RawClient, Running


async def status(client: RawClient, path: str, port: int) -> int:
    client.writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
    async with asyncio.timeout(TIMEOUT_S):
        return int((await client.reader.read()).split(b" ", 2)[1])


async def test_stop_closes_every_websocket_with_1012(running: Running) -> None:
    clients = [await running.attached() for _ in range(5)]
    running.server.stop()
    assert [await client.close_code() for client in clients] == [1012] * 5
    for client in clients:
        client.writer.close()
    await running.task
    assert {call for call in running.sessions.calls if call[0] == "detach"} == {("detach", n + 1) for n in range(5)}


async def test_stop_waits_for_nobody_for_ever(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    """A client that neither reads nor closes is cut, and that is nothing to log."""
    client = await running.attached(receive_buffer_bytes=4096)
    client.writer.transport.pause_reading()
    while not running.sessions.sinks[1].congested:
        running.sessions.sinks[1].try_send(b"x" * 1000)
    running.server.stop()
    async with asyncio.timeout(TIMEOUT_S):
        await running.task
    assert running.sessions.calls.count(("detach", 1)) == 1
    assert caplog.records == []


async def test_stop_waits_for_no_http_client_that_does_not_read(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    client = await running.connect(receive_buffer_bytes=4096)
    client.writer.transport.pause_reading()
    client.writer.write(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{running.port}\r\n\r\n".encode() * 100)
    while not running.server.connections:  # noqa: ASYNC110 - it tells nobody when that changes
        await asyncio.sleep(0)
    running.server.stop()
    async with asyncio.timeout(TIMEOUT_S):
        await running.task
    assert caplog.records == []


async def test_a_draining_server_serves_who_is_in_and_refuses_who_is_not(running: Running) -> None:
    attached, waiting = await running.attached(), await running.upgraded()
    running.server.drain()
    assert await waiting.close_code() == 4503
    late = await running.upgraded()
    assert await late.close_code() == 4503
    attached.send('{"type":"ack","seq":1}')
    assert await attached.text() == '{"type":"ack","seq":1}'
    statuses = {
        path: await status(await running.connect(), path, running.port) for path in ("/", "/readyz", "/healthz")
    }
    assert statuses == {"/": 503, "/readyz": 503, "/healthz": 200}


async def test_a_cancelled_server_leaves_no_socket(running: Running) -> None:
    client = await running.attached()
    running.task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running.task
    await running.sessions.saw("detach", 1)
    assert await client.at_end()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", running.port))


async def test_the_signals_stay_with_the_process(running: Running) -> None:
    assert running.server.started.is_set()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


async def test_a_taken_port_is_named_with_the_way_out(running: Running) -> None:
    with pytest.raises(ConfigError, match=rf"server\.port: {running.port} on 127\.0\.0\.1 is in use.*--port"):
        listen.bind("127.0.0.1", running.port)


def test_an_address_of_another_machine_is_named() -> None:
    with pytest.raises(ConfigError, match=r"server\.host: 192\.0\.2\.1 is not an address of this machine.*--host"):
        listen.bind("192.0.2.1", 0)


def test_a_name_that_does_not_resolve_is_named() -> None:
    with pytest.raises(ConfigError, match=r"server\.host: 'no\.such\.invalid' does not resolve"):
        listen.bind("no.such.invalid", 0)


@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", socket.AF_INET), ("localhost", socket.AF_INET)])
def test_bind_takes_addresses_and_names(host: str, family: int) -> None:
    with listen.bind(host, 0) as listener:
        assert listener.family == family
        assert listener.getsockname()[1] > 0


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_bind_takes_ipv6() -> None:
    try:
        listener = listen.bind("::1", 0)
    except ConfigError as error:
        pytest.skip(f"no IPv6 loopback here: {error}")
    with listener:
        assert listener.family == socket.AF_INET6

"""Slow clients, silent clients, and clients that ask and do not listen."""

from __future__ import annotations

import asyncio
import json
import socket

from llmws.config import ServerSection
from llmws.protocol import messages as m
from llmws.server import listen
from tests.support.echo_server import TIMEOUT_S, Running, Serve
from tests.support.frames import PING, PONG, frame

PAYLOAD = json.dumps({"data": "x" * 1000}).encode()


def fill(running: Running) -> int:
    """Sends until the connection is congested; the number of frames sent."""
    sink, sent = running.sessions.sinks[1], 0
    while not sink.congested:
        sink.try_send(PAYLOAD)
        sent += 1
        assert sent < 50_000
    return sent


async def test_a_slow_reader_congests_and_is_reported_once_it_has_read(running: Running) -> None:
    client = await running.attached(receive_buffer_bytes=4096)
    client.writer.transport.pause_reading()
    sent = fill(running)
    assert running.sessions.calls[-1] == ("attach", 1, "local", "admin")
    client.writer.transport.resume_reading()
    received = [await client.text() for _ in range(sent)]
    assert received == [PAYLOAD.decode()] * sent
    await running.sessions.saw("drained", 1)
    assert not running.sessions.sinks[1].congested


async def test_a_client_that_never_reads_holds_little_of_the_server_s_memory(running: Running) -> None:
    """The kernel takes no megabytes before the connection counts as congested."""
    client = await running.attached(receive_buffer_bytes=4096)
    client.writer.transport.pause_reading()
    sent_bytes = fill(running) * len(PAYLOAD)
    assert sent_bytes < 2**20


async def test_a_congested_client_can_still_be_heard(running: Running) -> None:
    """It reads slowly, but its cancel must not wait for what it has not read."""
    client = await running.attached(receive_buffer_bytes=4096)
    client.writer.transport.pause_reading()
    fill(running)
    client.send('{"type":"cancel","request_id":"a"}')
    await running.sessions.saw("receive", 1, m.Cancel(request_id="a"))


async def test_a_client_that_asks_and_does_not_read_is_not_heard_for_ever(running: Running) -> None:
    """Its answers pile up to a bound; then nothing more is taken from it until it reads."""
    client = await running.attached(receive_buffer_bytes=4096)
    client.writer.transport.pause_reading()
    client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    pings = frame(b"x" * 125, opcode=PING) * 1000
    written = 0
    while client.writer.transport.get_write_buffer_size() < 2**19:
        client.writer.write(pings)
        written += 1000
        assert written < 50_000
        await asyncio.sleep(0)
    client.writer.transport.resume_reading()
    answers = [await client.receive() for _ in range(written)]
    assert answers == [(PONG, b"x" * 125)] * written


async def test_an_http_client_that_does_not_read_its_answers_is_cut(serve: Serve) -> None:
    running = await serve(server=ServerSection(hello_timeout_s=0.1))
    client = await running.connect(receive_buffer_bytes=4096)
    client.writer.transport.pause_reading()
    client.writer.write(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{running.port}\r\n\r\n".encode() * 100)
    counts = [0]
    async with asyncio.timeout(TIMEOUT_S):
        while counts[-1] or not any(counts):
            await asyncio.sleep(0)
            counts.append(running.server.connections)


async def test_a_silent_client_is_closed_after_an_unanswered_ping(serve: Serve) -> None:
    running = await serve(server=ServerSection(heartbeat_s=0.05))
    client = await running.attached()
    assert await client.receive() == (PING, b"")
    assert await client.close_code() == 4504
    client.writer.close()
    await running.sessions.saw("detach", 1)


async def test_a_client_that_says_anything_is_alive(serve: Serve) -> None:
    running = await serve(server=ServerSection(heartbeat_s=0.2))
    client = await running.attached()
    for _ in range(4):
        assert await client.receive() == (PING, b"")
        client.send(b"unasked", opcode=PONG)
    assert await client.receive() == (PING, b"")
    client.writer.transport.abort()
    await running.sessions.saw("detach", 1)


async def test_a_client_that_reads_slowly_and_says_nothing_is_alive(serve: Serve) -> None:
    """The ping waits behind what was sent before; that the socket takes more is sign of life enough."""
    running = await serve(server=ServerSection(heartbeat_s=0.25))
    client = await running.attached(receive_buffer_bytes=65536)
    client.writer.transport.pause_reading()
    fill(running)
    sock = client.writer.get_extra_info("socket").dup()
    loop = asyncio.get_running_loop()
    ends_s, read_bytes = loop.time() + 1.0, 0
    with sock:
        while loop.time() < ends_s:
            read_bytes += len(await loop.sock_recv(sock, 16384))
            fill(running)
            await asyncio.sleep(0.01)  # the slow link
    assert ("detach", 1) not in running.sessions.calls
    assert read_bytes > 0


def test_accepted_sockets_send_at_once_and_hold_little_back() -> None:
    """What is set on the listening socket holds for the accepted ones."""
    listener = listen.bind("127.0.0.1", 0)
    listener.listen()
    with listener, socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
        assert accepted.proto == socket.IPPROTO_TCP
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == listen.NOTSENT_LOWAT_BYTES

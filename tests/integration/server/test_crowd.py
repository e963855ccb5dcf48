"""Many connections: the good ones are served beside the idle ones, and nobody holds the door."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
from itertools import pairwise

import psutil

from llmws.config import LimitsSection, ServerSection
from llmws.server.http import HttpProtocol
from llmws.server.listen import ACCEPTED_AT_ONCE
from llmws.server.websocket import WebSocketProtocol
from tests.support.echo_server import TIMEOUT_S, Running, Serve


def in_memory(kind: type) -> int:
    gc.collect()
    return sum(type(each) is kind for each in gc.get_objects())


async def test_two_hundred_clients_are_served_beside_two_hundred_idle_ones(serve: Serve) -> None:
    running = await serve(limits=LimitsSection(max_unauthenticated=400))
    idle = [await running.connect() for _ in range(200)]

    async def one(number: int) -> str:
        client = await running.attached()
        client.send(f'{{"type":"ack","seq":{number}}}')
        return await client.text()

    answers = await asyncio.gather(*(one(n) for n in range(200)))
    assert answers == [f'{{"type":"ack","seq":{n}}}' for n in range(200)]
    assert not any(client.reader.at_eof() for client in idle)


async def test_of_many_that_come_at_once_few_are_taken_at_a_time(running: Running) -> None:
    """The others wait in the kernel's queue, which is long, while those that are there have their turn."""
    with contextlib.ExitStack() as clients:
        for _ in range(200):  # the server, on this thread, has no turn meanwhile
            clients.enter_context(socket.create_connection(("127.0.0.1", running.port), timeout=5))
        counts = [0]
        async with asyncio.timeout(TIMEOUT_S):
            while counts[-1] < 200:
                await asyncio.sleep(0)
                counts.append(running.server.connections)
        assert max(after - before for before, after in pairwise(counts)) <= ACCEPTED_AT_ONCE


async def test_of_clients_that_have_come_and_gone_nothing_is_left(running: Running) -> None:
    async def come_and_go(times: int) -> tuple[int, int]:
        for n in range(times):
            match n % 3:
                case 0:
                    (await running.attached()).reset()
                case 1:
                    (await running.upgraded()).writer.close()
                case _:
                    (await running.connect()).writer.close()
        async with asyncio.timeout(TIMEOUT_S):
            while running.server.connections:  # noqa: ASYNC110 - it tells nobody when that changes
                await asyncio.sleep(0)
        return psutil.Process().num_fds(), len(asyncio.all_tasks())

    doors = in_memory(WebSocketProtocol)
    before = await come_and_go(3), in_memory(HttpProtocol)
    assert (await come_and_go(60), in_memory(HttpProtocol)) == before
    running.sessions.sinks.clear()
    assert in_memory(WebSocketProtocol) == doors


async def test_an_upgraded_connection_keeps_nothing_of_its_http(running: Running) -> None:
    """Its watch, which runs for ten seconds more, would hold the parser that long for everyone who comes and goes."""
    before = in_memory(HttpProtocol)
    await running.attached()
    assert in_memory(HttpProtocol) == before


async def test_above_the_limit_of_an_address_the_oldest_without_a_hello_goes(serve: Serve) -> None:
    running = await serve(limits=LimitsSection(max_unauthenticated=3))
    signed_in = await running.attached()
    oldest, *others = [await running.upgraded() for _ in range(3)]
    newest = await running.upgraded()
    assert await oldest.at_end()
    for client in (*others, newest):
        client.send('{"type":"ping"}')
        assert await client.text() == '{"type":"pong"}'
    signed_in.send('{"type":"ping"}')
    assert await signed_in.text() == '{"type":"pong"}'


async def test_above_the_limit_of_all_the_newcomer_goes_when_everybody_has_signed_in(serve: Serve) -> None:
    running = await serve(limits=LimitsSection(max_connections=2))
    first, second = await running.attached(), await running.attached()
    assert await (await running.connect()).at_end()
    first.reset()
    await running.sessions.saw("detach", 1)
    third = await running.attached()
    for client in (second, third):
        client.send('{"type":"ping"}')
        assert await client.text() == '{"type":"pong"}'


async def test_a_request_that_drips_in_is_cut(serve: Serve) -> None:
    running = await serve(server=ServerSection(hello_timeout_s=0.1))
    silent, dripping = await running.connect(), await running.connect()
    dripping.writer.write(b"GET / HTTP/1.1\r\nHost: ")
    assert await silent.at_end()
    assert await dripping.at_end()


async def test_a_second_request_that_drips_in_is_cut_too(serve: Serve) -> None:
    running = await serve(server=ServerSection(hello_timeout_s=0.1))
    client = await running.connect()
    request = f"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:{running.port}\r\n\r\n".encode()
    client.writer.write(request + request[:20])
    head = await client.reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert await client.at_end()


async def test_a_connection_that_keeps_asking_is_kept(serve: Serve) -> None:
    running = await serve(server=ServerSection(hello_timeout_s=0.2))
    client = await running.connect()
    request = f"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:{running.port}\r\n\r\n".encode()
    loop = asyncio.get_running_loop()
    started_s, answered = loop.time(), 0
    while loop.time() - started_s < 0.7:
        client.writer.write(request)
        head = await client.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert await client.reader.readexactly(3) == b"ok\n"
        answered += 1
    assert answered > 1

"""Many connections: the good ones are served beside the idle ones, and nobody holds the door."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from itertools import pairwise

from llmws.config import LimitsSection, ServerSection
from llmws.server.listen import ACCEPTED_AT_ONCE
from tests.integration.server.harness import TIMEOUT_S, Running, Serve


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

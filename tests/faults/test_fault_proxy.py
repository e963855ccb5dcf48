"""The proxy does what a treatment says, and nothing else: the other tests believe it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from tests.support.fault_proxy import UNHARMED, Fault, FaultProxy, Stream, Treatment, draw

TIMEOUT_S = 10
SENT = bytes(range(256)) * 40


class Talker:
    """A server that answers an empty line with `SENT`, and keeps what came and how it ended."""

    def __init__(self) -> None:
        self.came: list[bytes] = []
        self.ends: list[str] = []
        self.ended = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(self.came)
        self.came.append(b"")
        try:
            while data := await reader.read(4096):
                self.came[number] += data
                if self.came[number].endswith(b"\r\n\r\n"):
                    writer.write(b"head\r\n\r\n" + SENT)
            self.ends.append("end")
        except ConnectionResetError:
            self.ends.append("reset")
        self.ended.set()
        writer.transport.abort()


@pytest.fixture
async def talker() -> AsyncIterator[tuple[Talker, int]]:
    talker = Talker()
    listener = await asyncio.start_server(talker.serve, "127.0.0.1", 0)
    yield talker, listener.sockets[0].getsockname()[1]
    listener.close()


@asynccontextmanager
async def through(
    port: int, treat: Treatment | Callable[[int], Treatment]
) -> AsyncIterator[tuple[FaultProxy, asyncio.StreamReader, asyncio.StreamWriter]]:
    async with (
        asyncio.timeout(TIMEOUT_S),
        FaultProxy(lambda: port, treat if callable(treat) else lambda _: treat) as proxy,
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        yield proxy, reader, writer
        writer.transport.abort()


async def read(reader: asyncio.StreamReader) -> tuple[bytes, str]:
    """What comes, and how it ends."""
    came = b""
    try:
        while data := await reader.read(4096):
            came += data
    except ConnectionResetError:
        return came, "reset"
    return came, "end"


async def test_an_unharmed_connection_carries_every_byte_both_ways_and_its_end(talker: tuple[Talker, int]) -> None:
    """Also where its bytes go one by one and late."""
    server, port = talker
    for treatment in (UNHARMED, Treatment(dribble_bytes=500, latency_s=0.001, jitter_s=0.001)):
        async with through(port, treatment) as (_, reader, writer):
            writer.write(b"hello\r\n\r\n")
            assert await reader.readexactly(8 + len(SENT)) == b"head\r\n\r\n" + SENT
            writer.write_eof()
            assert await read(reader) == (b"", "end")
        assert (server.came.pop(), server.ends.pop()) == (b"hello\r\n\r\n", "end")


@pytest.mark.parametrize(
    ("fault", "at_client", "at_server"),
    [
        (Fault.CUT, "end", "end"),
        (Fault.RESET, "reset", "reset"),
        (Fault.BLACK_HOLE, "reset", "reset"),
        (Fault.HALF_CLOSE, "end", "reset"),
        (Fault.LATE_DEATH, "reset", "reset"),
    ],
)
async def test_a_fault_strikes_after_its_bytes(
    fault: Fault, at_client: str, at_server: str, talker: tuple[Talker, int]
) -> None:
    """So many bytes arrive and not one more; then either side sees the end that the fault has for it."""
    server, port = talker
    async with through(port, Treatment(fault=fault, after_bytes=1234, lasting_s=0.05)) as (proxy, reader, writer):
        writer.write(b"hello\r\n\r\n")
        assert await read(reader) == ((b"head\r\n\r\n" + SENT)[:1234], at_client)
        await server.ended.wait()
    assert server.ends == [at_server]
    assert proxy.struck[fault] == 1


async def test_a_fault_of_what_the_client_sends(talker: tuple[Talker, int]) -> None:
    """The server sees half of it and the end of the stream, while it could still answer."""
    server, port = talker
    treatment = Treatment(fault=Fault.HALF_CLOSE, stream=Stream.UP, after_bytes=3, lasting_s=0.05)
    async with through(port, treatment) as (_, reader, writer):
        writer.write(b"hello\r\n\r\n")
        assert await read(reader) in ((b"", "end"), (b"", "reset"))
    assert (server.came, server.ends) == ([b"hel"], ["end"])


async def test_nothing_comes_through_a_black_hole_and_its_end_is_not_heard(talker: tuple[Talker, int]) -> None:
    """The client goes; the server knows nothing of it until all is calm again."""
    server, port = talker
    treatment = Treatment(fault=Fault.BLACK_HOLE, after_bytes=1, lasting_s=60)
    async with through(port, treatment) as (proxy, reader, writer):
        writer.write(b"hello\r\n\r\n")
        assert await reader.readexactly(1) == b"h"
        writer.write(b"more")
        writer.close()
        await writer.wait_closed()
        beside, asking = await asyncio.open_connection("127.0.0.1", port)
        asking.write(b"\r\n\r\n")
        await beside.readexactly(8)
        assert server.ends == []
        proxy.calm()
        await server.ended.wait()
        assert server.ends == ["reset"]
        asking.transport.abort()
    assert server.came[0] == b"hello\r\n\r\n"


async def test_a_refused_connection_never_reaches_the_server(talker: tuple[Talker, int]) -> None:
    """Nor does one to a server that is not there, which is no fault of the proxy's."""
    server, port = talker
    async with through(port, Treatment(fault=Fault.REFUSED)) as (proxy, reader, _):
        assert await read(reader) in ((b"", "reset"), (b"", "end"))
    assert (server.came, proxy.struck[Fault.REFUSED]) == ([], 1)


async def test_a_double_connect_reaches_the_server_twice_and_the_client_once(talker: tuple[Talker, int]) -> None:
    server, port = talker
    async with through(port, Treatment(is_doubled=True)) as (proxy, reader, writer):
        writer.write(b"GET\r\n\r\n")
        assert await reader.readexactly(8) == b"head\r\n\r\n"
        writer.write(b"hello\r\n\r\n")
        assert await reader.readexactly(len(SENT)) == SENT
    assert server.came == [b"GET\r\n\r\nhello\r\n\r\n"] * 2
    assert proxy.struck["double connect"] == 1


async def test_after_the_calm_nothing_is_harmed(talker: tuple[Talker, int]) -> None:
    _, port = talker
    async with through(port, Treatment(fault=Fault.REFUSED)) as (proxy, reader, _):
        await read(reader)
        proxy.calm()
        later, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"\r\n\r\n")
        assert await later.readexactly(8 + len(SENT)) == b"head\r\n\r\n" + SENT
        writer.transport.abort()


def test_treatments_come_from_the_seed_alone_and_know_every_fault() -> None:
    drawn = [draw(chance, reach_bytes=10_000, lasting_s=1) for chance in [random.Random(7)] for _ in range(200)]
    chance = random.Random(7)

    assert [draw(chance, reach_bytes=10_000, lasting_s=1) for _ in range(200)] == drawn
    assert {each.fault for each in drawn} == set(Fault)

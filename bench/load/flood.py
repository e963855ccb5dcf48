"""One client that sends as fast as it can, beside good ones; and somebody who guesses tokens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

from bench.client import User, connect, framed
from bench.figures import Figure, figure, spread
from bench.load.churn import Guest
from bench.load.crowd import Orders, crowd
from bench.load.good import PACE, first_tokens_ms, streams
from bench.load.size import Size
from bench.servers import HOST, product
from llmws.protocol import encode
from llmws.protocol import messages as m

STREAMS: Final = 20
WARM_S: Final = 1.0
GUESSERS: Final = 8
_PIECE_BYTES: Final = 256 * 1024


def measure(folder: Path, size: Size) -> list[Figure]:
    """Every kind of flood, and guessing."""
    folder.mkdir()
    return [*asyncio.run(_floods(folder / "floods", size)), *asyncio.run(_guessing(folder / "guessing", size))]


BEFORE_HELLO: Final = "pings of the framing, before any hello"
FLOODS: Final[dict[str, Callable[[], bytes]]] = {
    "pings": lambda: framed(encode(m.Ping())),
    "pings of the framing": lambda: b"\x89\x80\0\0\0\0",
    BEFORE_HELLO: lambda: b"\x89\x80\0\0\0\0",
    "empty fragments": lambda: b"\x00\x80\0\0\0\0",
    "questions": lambda: framed(encode(m.GetStatus())),
    "messages that are none": lambda: framed(b'{"type":"nothing'),
    "messages of 1 MiB": lambda: framed(b'{"type":"config","data":{"x":"' + b"y" * (2**20 - 64) + b'"}}'),
    "messages too large": lambda: framed(b" " * (3 * 2**19)),
}


async def _floods(folder: Path, size: Size) -> list[Figure]:
    figures = []
    with product(folder, pace=PACE) as server:
        async with streams(server, STREAMS) as streaming:
            await asyncio.sleep(WARM_S)
            figures += (await streaming.watch(size.measured_s)).figures(f"{STREAMS} streams")
            for name in FLOODS:
                with crowd(flood, server.port, name) as crowded:
                    await crowded.ready()
                    before_s, before_kib = server.cpu_s(), server.unique_kib()
                    beside = await streaming.watch(size.measured_s)
                    share = (server.cpu_s() - before_s) / size.measured_s
                    grown_kib = server.unique_kib() - before_kib
                    sent_bytes = await crowded.end()
                figures += beside.figures(f"beside a flood of {name}", p99_at_most=500.0)
                figures.append(figure("  CPU of the server, of one core", "%", [share * 100]))
                figures.append(figure("  taken of the flood", "MiB/s", [sent_bytes / 2**20 / size.measured_s]))
                figures.append(figure("  growth of memory", "KiB", [grown_kib]))
    return figures


async def flood(orders: Orders, port: int, name: str) -> int:
    """Signs in, then sends one kind of message as fast as the server takes it; returns how many bytes."""
    frame = FLOODS[name]()
    piece = frame * max(1, _PIECE_BYTES // len(frame))
    sent_bytes = 0
    orders.ready()
    while not orders.over.is_set():
        transport = await _let_in(port, signs_in=name != BEFORE_HELLO)
        if name == "empty fragments":
            transport.write(b"\x01\x80\0\0\0\0")
        taking = Taking()
        transport.set_protocol(taking)
        while not orders.over.is_set() and not transport.is_closing():
            transport.write(piece)
            sent_bytes += len(piece)
            await taking.room(orders.over)
        if not transport.is_closing():
            transport.abort()
    return sent_bytes


async def _let_in(port: int, *, signs_in: bool) -> asyncio.Transport:
    if not signs_in:
        return (await connect(port, lambda _: None)).transport
    user = User()
    await user.attach(port)
    return user.wire.transport


class Taking(asyncio.Protocol):
    """Drops what comes, and knows when more can be sent."""

    def __init__(self) -> None:
        self._room = asyncio.Event()
        self._room.set()

    def pause_writing(self) -> None:
        """The other side is not taking it."""
        self._room.clear()

    def resume_writing(self) -> None:
        """It has."""
        self._room.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Nobody needs to wait any more."""
        self._room.set()

    async def room(self, over: asyncio.Event) -> None:
        """Returns when more can be sent, or nothing need be."""
        while not self._room.is_set() and not over.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await self._room.wait()


async def _guessing(folder: Path, size: Size) -> list[Figure]:
    with product(folder, pace=PACE, settings={"auth": {"required": True}}) as server:
        await first_tokens_ms(server, 2)
        alone_ms = await first_tokens_ms(server, size.newcomers)
        with crowd(guess, server.port) as crowded:
            await crowded.ready()
            beside_ms = await first_tokens_ms(server, size.newcomers)
            guesses = await crowded.end()
    return [
        *spread("first token of a newcomer", "ms", alone_ms),
        *spread("  beside guessing from its address", "ms", beside_ms, p99_at_most=500.0),
        figure("  guesses", "", [guesses], at_least=1),
    ]


async def guess(orders: Orders, port: int) -> int:
    """Shows wrong tokens as fast as can be; returns how many."""
    orders.ready()
    return sum(await asyncio.gather(*(_guess(orders, port) for _ in range(GUESSERS))))


async def _guess(orders: Orders, port: int) -> int:
    count, hello = 0, encode(m.Hello(auth="llmws_0123456789ab_" + "x" * 43))
    while not orders.over.is_set():
        guest = await Guest.come(port, HOST)
        guest.wire.send(hello)
        await guest.hears("error")
        guest.wire.transport.abort()
        count += 1
    return count

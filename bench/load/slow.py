"""One good client beside a thousand that say next to nothing, or nothing, and come again when they are cut."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import cycle, islice
from pathlib import Path
from typing import Final

from bench.figures import Figure, figure, spread
from bench.load.crowd import Orders, crowd
from bench.load.good import PACE, first_tokens_ms, streams
from bench.load.size import Size
from bench.servers import HOST, TIMEOUT_S, Running, product
from llmws.server.websocket import CLOSE_TIMEOUT_S

STREAMS: Final = 5
WARM_S: Final = 1.0
DRIP_S: Final = 1.0
AGAIN_S: Final = 0.1
POLL_S: Final = 0.1
GRACE_S: Final = 2.0

UPGRADE: Final = (
    b"GET /v1/ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
KINDS: Final = {
    "silent": (b"", b""),
    "a head that drips": (b"", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: " + b"x" * 4096),
    "silent after the upgrade": (UPGRADE, b""),
    "a hello that drips": (UPGRADE, b"\x81\xfe\x10\x00" + bytes(4) + b'{"type":"hello","auth":"' + b"x" * 4096),
}
"""What each kind sends at once, and what a byte a second."""

ONE: Final = (HOST,)
"""The address that the good client comes from, too."""
SEVERAL: Final = tuple(f"127.0.0.{n}" for n in range(2, 10))


def measure(folder: Path, size: Size) -> list[Figure]:
    """Above the cap of an address, which drops the oldest, and below it; and how long they stay."""
    folder.mkdir()
    figures = []
    for name, addresses in (("of its own address", ONE), ("of eight addresses", SEVERAL)):
        figures += asyncio.run(_beside(folder / f"{len(addresses)}", size, name, addresses))
    return [*figures, *asyncio.run(_gone(folder / "gone", size))]


async def _beside(folder: Path, size: Size, name: str, addresses: Sequence[str]) -> list[Figure]:
    with product(folder, pace=PACE) as server:
        async with streams(server, STREAMS) as streaming:
            await asyncio.sleep(WARM_S)
            alone_ms = await first_tokens_ms(server, size.newcomers)
            with crowd(besiege, server.port, size.connections, addresses) as besiegers:
                await besiegers.ready()
                before_s, began_s = server.cpu_s(), time.monotonic()
                beside, newcomers_ms = await asyncio.gather(
                    streaming.watch(size.measured_s), first_tokens_ms(server, size.newcomers)
                )
                share = (server.cpu_s() - before_s) / (time.monotonic() - began_s)
                comings = await besiegers.end()
    crowded = f"{size.connections:,} slow ones {name}"
    return [
        *spread("first token of a newcomer", "ms", alone_ms),
        *spread(f"first token of a newcomer beside {crowded}", "ms", newcomers_ms, p99_at_most=500.0),
        *beside.figures(f"beside {crowded}", p99_at_most=500.0),
        figure("  CPU of the server, of one core", "%", [share * 100]),
        figure("  times that a slow one came", "", [comings]),
    ]


async def _gone(folder: Path, size: Size) -> list[Figure]:
    """How long they stay whom nobody pushes out: there are few enough of each address."""
    # Whoever has been told to go has so long again to say goodbye.
    bound_s = size.hello_timeout_s + CLOSE_TIMEOUT_S + GRACE_S
    settings = {"server": {"hello_timeout_s": size.hello_timeout_s}}
    with product(folder, settings=settings) as server:
        await first_tokens_ms(server, 2)
        before = server.process.num_fds()
        with crowd(outstay, server.port, size.connections, SEVERAL) as slow:
            began_s = time.monotonic()
            await slow.ready()
            most, gone_s = await asyncio.to_thread(_until_gone, server, before, began_s + 2 * bound_s)
            left = server.process.num_fds() - before
    return [
        figure("slow ones let in at once", "", [most], at_least=0.95 * size.connections),
        figure("  the last of them is cut after", "s", [gone_s - began_s], at_most=bound_s),
        figure("  descriptors left over", "", [left], at_most=0),
    ]


def _until_gone(server: Running, before: int, deadline_s: float) -> tuple[int, float]:
    """Returns how many descriptors the server had open at most beyond those before, and when it had none of them."""
    most = 0
    while (now := server.process.num_fds() - before) > 0 or not most:
        most = max(most, now)
        if time.monotonic() > deadline_s:
            break
        time.sleep(POLL_S)
    return most, time.monotonic()


class Slow(asyncio.Protocol):
    """A client that gives its bytes away one by one.

    Attributes:
        gone: the server has ended the connection.
    """

    def __init__(self, kind: str) -> None:
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._now, self._later = KINDS[kind]
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self._now)
        self._drip(0)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """The server has cut it."""
        if self._timer is not None:
            self._timer.cancel()
        self.gone.set_result(None)

    def _drip(self, at: int) -> None:
        if at < len(self._later):
            self.transport.write(self._later[at : at + 1])
            self._timer = asyncio.get_running_loop().call_later(DRIP_S, self._drip, at + 1)


async def _slow(port: int, kind: str, address: str) -> Slow:
    loop = asyncio.get_running_loop()
    _, slow = await loop.create_connection(lambda: Slow(kind), HOST, port, local_addr=(address, 0))
    return slow


def _everyone(count: int, addresses: Sequence[str]) -> list[tuple[str, str]]:
    """Kind and address of each, so that every address has every kind."""
    pairs = [(kind, address) for kind in KINDS for address in addresses]
    return list(islice(cycle(pairs), count))


async def besiege(orders: Orders, port: int, count: int, addresses: Sequence[str]) -> int:
    """Keeps so many slow clients at the server until the end; returns how often they came in all."""
    comings = 0
    all_came = asyncio.Event()

    async def one(kind: str, address: str) -> None:
        nonlocal comings
        while True:
            with suppress(OSError):  # cut, as is to be expected
                slow = await _slow(port, kind, address)
                comings += 1
                if comings >= count:
                    all_came.set()
                await slow.gone
            await asyncio.sleep(AGAIN_S)

    tasks = [asyncio.ensure_future(one(kind, address)) for kind, address in _everyone(count, addresses)]
    async with asyncio.timeout(TIMEOUT_S):
        await all_came.wait()
    orders.ready()
    await orders.over.wait()
    for task in tasks:
        task.cancel()
    return comings


async def outstay(orders: Orders, port: int, count: int, addresses: Sequence[str]) -> None:
    """Comes once with so many, and stays."""
    everyone = _everyone(count, addresses)
    slow = [await _slow(port, kind, address) for kind, address in everyone]
    orders.ready()
    await orders.over.wait()
    for each in slow:
        each.transport.abort()

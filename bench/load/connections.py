"""A thousand connections, of which some stream: how old a token is, and what a connection takes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from bench.client import users
from bench.figures import Figure, figure
from bench.load.crowd import Orders, crowd
from bench.load.good import PACE, streams
from bench.load.size import Size
from bench.servers import product

STREAMS: Final = 50
WARM_S: Final = 2.0
HEARTBEAT_S: Final = 2.0
"""Ten times as often as usual, so that a short time sees what pings and pongs cost."""


def measure(folder: Path, size: Size) -> list[Figure]:
    """Both."""
    return asyncio.run(_measure(folder, size))


async def _measure(folder: Path, size: Size) -> list[Figure]:
    with product(folder, pace=PACE, settings={"server": {"heartbeat_s": HEARTBEAT_S}}) as server:
        async with streams(server, STREAMS) as streaming:
            await asyncio.sleep(WARM_S)
            alone = await streaming.watch(size.measured_s)
            idle = size.connections - STREAMS
            before_kib = server.unique_kib()
            with crowd(stay, server.port, idle) as crowded:
                await crowded.ready()
                grown_kib = server.unique_kib() - before_kib
                before_s = server.cpu_s()
                beside = await streaming.watch(size.measured_s)
                share = (server.cpu_s() - before_s) / size.measured_s
                lost = await crowded.end()
    name = f"{size.connections:,} connections, {STREAMS} of them streaming"
    return [
        *alone.figures(f"{STREAMS} streams alone"),
        *beside.figures(name, p99_at_most=500.0),
        figure("  memory of an idle connection and its session", "KiB", [grown_kib / idle], at_most=32.0),
        figure("  CPU of the server, of one core", "%", [share * 100]),
        figure("  connections lost", "", [lost], at_most=0),
    ]


async def stay(orders: Orders, port: int, count: int) -> int:
    """Signs in so many clients that do nothing but answer pings; returns how many of them the server has let go."""
    everyone = await users(port, count)
    orders.ready()
    await orders.over.wait()
    return sum(user.wire.transport.is_closing() for user in everyone)

"""The event path: what encoding, sealing, writing and sending a message costs, with many streams at once.

The engine gives tokens faster than they can be sent, so most messages carry two. Its own thread is not counted in the
event path; a line tells what it takes. The yardstick echoes messages of the same size, which it has to receive and
parse as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import Final, NamedTuple

from bench.client import Echoes, User, answered, users
from bench.figures import Figure, figure, ratios
from bench.servers import Running, product, yardstick

SESSIONS: Final = 50
ROUNDS: Final = 7
TOKENS: Final = 1_024
ECHOES: Final = 500
SHORT_ANSWERS: Final = 4
CROWD: Final = 500
CROWD_ROUNDS: Final = 3
CROWD_TOKENS: Final = 256


class Cost(NamedTuple):
    """CPU for each of what was counted, in microseconds."""

    path_us: float
    engine_us: float


def measure(folder: Path) -> list[Figure]:
    """Both stores and the yardstick, in turn."""
    return asyncio.run(_measure(folder))


async def _measure(folder: Path) -> list[Figure]:
    with (
        product(folder / "files") as on_disk,
        product(folder / "memory", "memory") as in_memory,
        yardstick(folder / "echo") as echo,
    ):
        of_disk, of_memory = await users(on_disk.port, SESSIONS), await users(in_memory.port, SESSIONS)
        echoes = await Echoes.connect(echo.port, SESSIONS)
        await answered(of_memory, 1, TOKENS)
        messages = await answered(of_disk, 1, TOKENS)
        payload = b"x" * (sum(user.wire.message_bytes for user in of_disk) // (messages + SESSIONS))
        await echoes.send(ECHOES // 10, payload)
        disk, echoed, memory, short = [], [], [], []
        for _ in range(ROUNDS):
            disk.append(await _cost(on_disk, answered(of_disk, 1, TOKENS)))
            echoed.append(await _cpu_us(echo, echoes.send(ECHOES, payload)))
            memory.append(await _cost(in_memory, answered(of_memory, 1, TOKENS)))
            short.append(await _cost(on_disk, _short(of_disk)))
        crowd = await users(on_disk.port, CROWD)
        crowded = [await _cost(on_disk, answered(crowd, 1, CROWD_TOKENS)) for _ in range(CROWD_ROUNDS)]
    path, free = [each.path_us for each in disk], [each.path_us for each in memory]
    return [
        figure("messages per CPU-second against an echo server", "x", ratios(echoed, path), at_least=1.33),
        figure("CPU a message, durability os against memory", "x", ratios(path, free), at_most=1.25),
        figure("  files", "us", path),
        figure("  in memory", "us", free),
        figure("  echo server", "us", echoed),
        figure("  the engine's thread, not counted above", "us", [each.engine_us for each in disk]),
        figure("  bytes in a message", "B", [len(payload)]),
        figure("CPU a message, 500 streams", "us", [each.path_us for each in crowded]),
        figure("CPU an answer of one token", "us", [each.path_us for each in short]),
    ]


async def _short(everyone: list[User]) -> int:
    """Everyone has answers in which nearly all work is that of a request; returns how many."""
    await answered(everyone, SHORT_ANSWERS, 1)
    return len(everyone) * SHORT_ANSWERS


async def _cost(server: Running, load: Awaitable[int]) -> Cost:
    """The server's CPU for each of what the load counts, the engine's thread apart."""
    before_s = server.vitals().engine_cpu_s
    all_before_s = server.cpu_s()
    count = await load
    all_s = server.cpu_s() - all_before_s
    engine_s = server.vitals().engine_cpu_s - before_s
    return Cost((all_s - engine_s) * 1e6 / count, engine_s * 1e6 / count)


async def _cpu_us(server: Running, load: Awaitable[int]) -> float:
    before_s = server.cpu_s()
    count = await load
    return (server.cpu_s() - before_s) * 1e6 / count

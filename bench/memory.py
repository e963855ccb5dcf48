"""What the server's memory grows by for each client that does nothing, has left, or does not listen."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Final

from bench.client import LET_IN, answered, users
from bench.figures import Figure, figure
from bench.servers import TIMEOUT_S, Running, product
from llmws.session.shelf import EVICT_AFTER_S

ROUNDS: Final = 2
CROWD: Final = 500
GONE: Final = 500
SHORT_TOKENS: Final = 16
DEAF: Final = 10
LONG_TOKENS: Final = 8_192
_QUIET_S: Final = 0.3


def measure(folder: Path) -> list[Figure]:
    """Growth of a warm server's resident memory, each time in a new process."""
    idle_kib, used_kib, deaf_kib = [], [], []
    for number in range(ROUNDS):
        idle, used = asyncio.run(_idle(folder / f"idle-{number}"))
        idle_kib.append(idle)
        used_kib.append(used)
        deaf_kib.append(asyncio.run(_deaf(folder / f"deaf-{number}")))
    gone_kib = asyncio.run(_gone(folder / "gone"))
    return [
        figure("memory of an idle connection and its session", "KiB", idle_kib, at_most=32.0),
        figure("  after one short answer", "KiB", used_kib),
        figure("memory of a detached session", "KiB", [gone_kib], at_most=2.0),
        figure("memory for a client that never reads", "KiB", deaf_kib, at_most=256.0),
    ]


async def _idle(folder: Path) -> tuple[float, float]:
    with product(folder) as server:
        await answered(await users(server.port, LET_IN), 1, SHORT_TOKENS)
        before_kib = server.rss_kib()
        crowd = await users(server.port, CROWD)
        idle_kib = server.rss_kib() - before_kib
        for first in range(0, CROWD, LET_IN):
            await answered(crowd[first : first + LET_IN], 1, SHORT_TOKENS)
        return idle_kib / CROWD, (server.rss_kib() - before_kib) / CROWD


async def _gone(folder: Path) -> float:
    """Sessions that had an answer, acknowledged it and left, once they have left memory too."""
    with product(folder) as server:
        await _come_and_go(server, GONE)
        await asyncio.sleep(EVICT_AFTER_S + 2)
        before_kib = server.rss_kib()
        await _come_and_go(server, GONE)
        await asyncio.sleep(EVICT_AFTER_S + 2)
        return (server.rss_kib() - before_kib) / GONE


async def _come_and_go(server: Running, count: int) -> None:
    for _ in range(0, count, LET_IN):
        some = await users(server.port, LET_IN)
        await answered(some, 1, SHORT_TOKENS)
        for user in some:
            user.wire.transport.abort()


async def _deaf(folder: Path) -> float:
    """Clients that ask and then read nothing, in a server that has given as many such answers to some who read."""
    with product(folder) as server:
        readers = await users(server.port, DEAF)
        await answered(readers, 2, LONG_TOKENS)
        for user in readers:
            user.wire.transport.abort()
        before_kib = server.rss_kib()
        deaf = await users(server.port, DEAF)
        asking = [asyncio.ensure_future(user.ask(1, LONG_TOKENS)) for user in deaf]
        await asyncio.sleep(0)
        for user in deaf:
            user.wire.transport.pause_reading()
        await asyncio.to_thread(_wait_until_written, folder)
        grown_kib = server.rss_kib() - before_kib
        for each in asking:
            each.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        return grown_kib / DEAF


def _wait_until_written(folder: Path) -> None:
    """Returns when the logs of the sessions have stopped growing."""
    deadline_s, seen_bytes = time.monotonic() + TIMEOUT_S, -1
    while (size_bytes := sum(path.stat().st_size for path in folder.glob("var/sessions/*/buffer.jsonl"))) != seen_bytes:
        if time.monotonic() > deadline_s:
            raise TimeoutError("the answers did not end")
        seen_bytes = size_bytes
        time.sleep(_QUIET_S)

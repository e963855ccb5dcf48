"""A client that comes back: to a session in memory, and to one that only the disk has."""

from __future__ import annotations

import asyncio
import statistics
import time
import uuid
from pathlib import Path
from typing import Final

from bench.client import SurpriseError, User, connect, expect
from bench.figures import Figure, figure, percentile
from bench.servers import TIMEOUT_S, product
from llmws.protocol import encode
from llmws.protocol import messages as m
from llmws.store.folder import Site, create_session, open_session, prepare
from llmws.store.keys import load_keys
from llmws.store_api import Record, SessionMeta

REPLAYED: Final = 1_000
RESUMES: Final = 200
LINES: Final = 2_000
OPENINGS: Final = 30


def measure(folder: Path) -> list[Figure]:
    """Both."""
    return [*asyncio.run(_resuming(folder / "hot")), *_reopening(folder / "cold")]


async def _resuming(folder: Path) -> list[Figure]:
    """A client that was cut comes back for the last thousand events of its session."""
    with product(folder) as server:
        user = User(acknowledges=False)
        await user.attach(server.port)
        await user.ask(1, 6 * REPLAYED)
        user.wire.transport.abort()
        head = user.done["seq"]
        hello = encode(
            m.Hello(
                session_id=user.welcome["session_id"],
                resume=m.Position(epoch=user.done["epoch"], last_seq=head - REPLAYED),
            )
        )
        before_s = server.cpu_s()
        times_ms = [await _resumed(server.port, hello) * 1e3 for _ in range(RESUMES)]
        cpu_ms = (server.cpu_s() - before_s) * 1e3 / RESUMES
    return [
        figure("resume of 1,000 events", "ms", times_ms),
        figure("  p99", "ms", [percentile(times_ms, 99)], at_most=25.0),
        figure("  CPU of the server", "ms", [cpu_ms]),
    ]


async def _resumed(port: int, hello: bytes) -> float:
    """Seconds from sending the hello to having the session's last event."""
    over: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def on_message(message: bytes) -> None:
        if message.startswith(b'{"type":"done"'):
            ended_s = time.perf_counter()
            expect(wire.messages == 1 + REPLAYED, "a welcome and the events", wire.messages)
            over.set_result(ended_s - started_s)

    wire = await connect(port, on_message)
    started_s = time.perf_counter()
    wire.send(hello)
    async with asyncio.timeout(TIMEOUT_S):
        took_s = await over
    wire.transport.abort()
    return took_s


def _reopening(folder: Path) -> list[Figure]:
    """A new process opens a session that an earlier one left unfinished."""
    folder.mkdir()
    site = Site(state=folder, keys=load_keys(folder))
    prepare(site)
    whole_ms, short_ms = _opening_ms(site, LINES), _opening_ms(site, LINES // 10)
    slope_us = (statistics.median(whole_ms) - statistics.median(short_ms)) * 1e3 / (LINES - LINES // 10)
    return [
        figure("opening 2,000 lines after a restart", "ms", whole_ms, at_most=10 + LINES * 0.01),
        figure("  a line more", "us", [slope_us]),
    ]


def _opening_ms(site: Site, lines: int) -> list[float]:
    session_id = str(uuid.uuid4())
    records = [Record(n=n, kind="event", value=encode(_token(n)), seq=n) for n in range(1, lines + 1)]
    written = create_session(site, session_id, 1, SessionMeta(owner="bench", created_s=0, last_activity_s=0))
    written.logs["buffer"].append(records)
    written.close(None)
    times_ms = []
    for _ in range(OPENINGS):
        started_s = time.perf_counter()
        opened = open_session(site, session_id)
        times_ms.append((time.perf_counter() - started_s) * 1e3)
        if opened is None or len(opened[1].records) != lines:
            raise SurpriseError("expected every line that was written")
        opened[0].release()
    return times_ms


def _token(n: int) -> m.Token:
    return m.Token(seq=n, epoch=1, request_id=str(uuid.UUID(int=7)), index=n, data=f" word{n % 1_000}", ids=[n])

"""Clients that come and go: how many a second, and what the server keeps of them."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

from bench.client import SurpriseError, Wire, connect, expect
from bench.engine import Pace
from bench.figures import Figure, figure
from bench.load.crowd import Orders, crowd
from bench.load.size import Size
from bench.servers import HOST, TIMEOUT_S, Running, product
from llmws.protocol import encode
from llmws.protocol import messages as m
from llmws.session.shelf import EVICT_AFTER_S

PACE: Final = Pace(step_s=0.005)
POLL_S: Final = 0.1
ALLOWED_KIB: Final = 1024.0
SHOWN: Final = 5
SETTLE_S: Final = EVICT_AFTER_S + 10
"""A session that nobody comes back for stays in memory for a while."""


class Kept(NamedTuple):
    """What a server at rest holds."""

    sessions: int
    descriptors: int
    tasks: int
    timers: int
    unique_kib: float


def measure(folder: Path, size: Size) -> list[Figure]:
    """Round after round against one server."""
    return asyncio.run(_measure(folder, size))


async def _measure(folder: Path, size: Size) -> list[Figure]:
    with product(folder, pace=PACE) as server:
        watcher = await Guest.come(server.port, HOST)
        await watcher.sign_in()
        idle = await _kept(server, watcher)
        kept, rates, errors = [], [], []
        for _ in range(size.rounds):
            with crowd(come_and_go, server.port, size.churners, size.comings) as clients:
                took_s, failed = await clients.report(timeout_s=10 * TIMEOUT_S)
            rates.append(size.churners * size.comings / took_s)
            errors += failed
            kept.append(await _settled(server, watcher, idle))
    for error in errors[:SHOWN]:
        print(error, file=sys.stderr)
    last = kept[-1]
    growths_kib = [after.unique_kib - before.unique_kib for before, after in pairwise(kept)]
    return [
        figure(f"{size.churners} clients that come and go: connections", "1/s", rates),
        figure("  errors", "", [len(errors)], at_most=0),
        figure("  growth of memory a round, after the first", "KiB", growths_kib, at_most=ALLOWED_KIB),
        figure("  sessions left over in memory", "", [last.sessions - idle.sessions], at_most=0),
        figure("  descriptors left over", "", [last.descriptors - idle.descriptors], at_most=0),
        figure("  tasks left over", "", [last.tasks - idle.tasks], at_most=0),
        figure("  timers left over", "", [last.timers - idle.timers], at_most=0),
    ]


async def _kept(server: Running, watcher: Guest) -> Kept:
    watcher.wire.send(encode(m.GetStatus()))
    sessions = json.loads(await watcher.hears("status"))["sessions"]
    vitals = server.vitals()
    return Kept(sessions, server.process.num_fds(), vitals.tasks, vitals.timers, server.unique_kib())


async def _settled(server: Running, watcher: Guest, idle: Kept) -> Kept:
    """What the server holds once it is at rest, or when it should have been for long."""
    deadline_s = time.monotonic() + SETTLE_S
    while True:
        now = await _kept(server, watcher)
        if now[:-1] <= idle[:-1] or time.monotonic() > deadline_s:
            return now
        await asyncio.sleep(POLL_S)


class Guest:
    """A client that reads one message after the other."""

    def __init__(self, wire: Wire, inbox: asyncio.Queue[bytes]) -> None:
        self.wire = wire
        self._inbox = inbox

    @classmethod
    async def come(cls, port: int, address: str) -> Guest:
        """Connects."""
        inbox: asyncio.Queue[bytes] = asyncio.Queue()
        return cls(await connect(port, inbox.put_nowait, address=address), inbox)

    async def hears(self, kind: str) -> bytes:
        """The next message of this type; drops what comes before it."""
        async with asyncio.timeout(TIMEOUT_S):
            while not (message := await self._inbox.get()).startswith(b'{"type":"%b"' % kind.encode()):
                expect(not message.startswith(b'{"type":"error"'), kind, message)
            return message

    async def sign_in(self) -> str:
        """Says hello; returns the session's id."""
        self.wire.send(encode(m.Hello()))
        return str(json.loads(await self.hears("welcome"))["session_id"])

    def reset(self) -> None:
        """Ends the connection by RST."""
        linger = struct.pack("ii", 1, 0)
        self.wire.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.wire.transport.abort()


async def _leave_at_once(guest: Guest) -> None:
    guest.wire.transport.abort()


async def _sign_in_and_leave(guest: Guest) -> None:
    await guest.sign_in()
    guest.wire.transport.abort()


async def _sign_in_and_reset(guest: Guest) -> None:
    await guest.sign_in()
    guest.reset()


async def _ask_and_end(guest: Guest) -> None:
    """Leaves nothing behind: what a session takes that is kept is another figure."""
    session_id = await guest.sign_in()
    guest.wire.send(encode(m.Inference(input_ids=[1, 2, 3], config=m.Sampling(max_new_tokens=2))))
    await guest.hears("done")
    guest.wire.send(encode(m.EndSession(session_id=session_id)))
    await guest.hears("session_ended")
    guest.wire.transport.abort()


WAYS: Final = (_leave_at_once, _sign_in_and_leave, _sign_in_and_reset, _ask_and_end)


async def come_and_go(orders: Orders, port: int, clients: int, comings: int) -> tuple[float, list[str]]:  # noqa: ARG001
    """Every client comes so often, in every way in turn; returns how long that took, and what went wrong."""
    errors: list[str] = []

    async def one(number: int) -> None:
        for n in range(comings):
            way = WAYS[(number + n) % len(WAYS)]
            try:
                await way(await Guest.come(port, f"127.0.1.{1 + number}"))
            except (OSError, TimeoutError, SurpriseError) as error:
                errors.append(f"{way.__name__}: {error!r}")

    began_s = time.monotonic()
    await asyncio.gather(*(one(number) for number in range(clients)))
    return time.monotonic() - began_s, errors

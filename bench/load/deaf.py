"""Clients that never read: what the server holds for them, and what those beside them notice."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from bench.client import Wire, connect, expect
from bench.engine import Pace
from bench.figures import Figure, figure
from bench.load.good import streams
from bench.load.size import Size
from bench.servers import TIMEOUT_S, Running, product
from llmws.protocol import encode
from llmws.protocol import messages as m

PACE: Final = Pace(step_s=0.005)
"""Fast, so that what nobody reads is soon more than sockets hold."""
STREAMS: Final = 10
DEAF: Final = 10
WARM_S: Final = 4.0
"""In which what is kept in memory of the streams has reached its bound."""
FULL_S: Final = 5.0
"""In which what is sent to a deaf client has filled its sockets."""
TOKENS: Final = 8_192
QUESTIONS: Final = 1_000
LONG_CHARS: Final = 500_000
ALLOWED_KIB: Final = 256.0


class Kind(NamedTuple):
    """What deaf clients bring before they stop reading, what they say then, and what may be held for each."""

    name: str
    brings: Sequence[bytes]
    says: Sequence[bytes]
    allowed_kib: float


KINDS: Final = (
    Kind("an answer", (), (encode(m.Inference(input_ids=[1], config=m.Sampling(max_new_tokens=TOKENS))),), ALLOWED_KIB),
    Kind(
        f"{QUESTIONS:,} long pages",
        (encode(m.Import(messages=[m.ChatMessage(role="user", content="x" * LONG_CHARS)])),),
        (encode(m.History()),) * QUESTIONS,
        ALLOWED_KIB + LONG_CHARS / 1024,
    ),
)
"""A page is sent whole, so one may be held beyond what is allowed otherwise."""


def measure(folder: Path, size: Size) -> list[Figure]:
    """Those who have an answer, and those who ask for something long again and again."""
    folder.mkdir()
    figures = []
    for kind in KINDS:
        figures += asyncio.run(_measure(folder / kind.name.replace(" ", "-"), size, kind))
    return figures


async def _measure(folder: Path, size: Size, kind: Kind) -> list[Figure]:
    with product(folder, pace=PACE) as server:
        async with streams(server, STREAMS, pace=PACE) as streaming:
            await asyncio.sleep(WARM_S)
            deaf = [await _deaf(server, kind) for _ in range(DEAF)]
            alone = await streaming.watch(size.measured_s)
            before_kib = server.unique_kib()
            for wire in deaf:
                for message in kind.says:
                    wire.send(message)
            await asyncio.sleep(FULL_S)
            grown_kib = server.unique_kib() - before_kib
            beside = await streaming.watch(size.measured_s)
            for wire in deaf:
                wire.transport.abort()
    return [
        *alone.figures(f"{STREAMS} fast streams"),
        *beside.figures(f"beside {DEAF} clients that do not read {kind.name}", p99_at_most=500.0),
        figure("  memory for each of them", "KiB", [grown_kib / DEAF], at_most=kind.allowed_kib),
    ]


async def _deaf(server: Running, kind: Kind) -> Wire:
    """A client that reads nothing once it has been let in, and what it brings is taken."""
    answered = asyncio.Event()
    wire = await connect(server.port, lambda _: answered.set())
    wire.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    for message in (encode(m.Hello()), *kind.brings):
        answered.clear()
        wire.send(message)
        async with asyncio.timeout(TIMEOUT_S):
            await answered.wait()
    expect(wire.messages == 1 + len(kind.brings), "one answer each", wire.messages)
    wire.transport.pause_reading()
    return wire

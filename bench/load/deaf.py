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
from bench.load.good import Watched, streams
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
    """What clients bring before they stop reading, what they say then, and what may be held for each."""

    name: str
    brings: Sequence[bytes]
    says: Sequence[bytes]
    allowed_kib: float
    is_deaf: bool = True


_ASK: Final = encode(m.Inference(input_ids=[1], config=m.Sampling(max_new_tokens=TOKENS)))
_LONG: Final = encode(m.Import(messages=[m.ChatMessage(role="user", content="x" * LONG_CHARS)]))

READERS: Final = Kind("that read", (), (_ASK,), 0, is_deaf=False)
ANSWERED: Final = Kind("that do not read an answer", (), (_ASK,), ALLOWED_KIB)
# A page is sent whole, so one may be held beyond what is allowed otherwise.
PAGED: Final = Kind(
    f"that do not read {QUESTIONS:,} pages",
    (_LONG,),
    (encode(m.History()),) * QUESTIONS,
    ALLOWED_KIB + LONG_CHARS / 1024,
)


class Found(NamedTuple):
    """What such clients do to the streams beside them, and to the server's memory, for each."""

    beside: Watched
    grown_kib: float


def measure(folder: Path, size: Size) -> list[Figure]:
    """Those who have an answer, less what it takes for those who read it; and those who ask again and again."""
    folder.mkdir()
    readers, answered, paged = (
        asyncio.run(_measure(folder / f"{number}", size, kind))
        for number, kind in enumerate((READERS, ANSWERED, PAGED))
    )
    title = f"beside {DEAF} clients"
    return [
        *readers.beside.figures(f"{title} {READERS.name}"),
        *answered.beside.figures(f"{title} {ANSWERED.name}", p99_at_most=500.0),
        _held(answered.grown_kib - readers.grown_kib, ANSWERED),
        *paged.beside.figures(f"{title} {PAGED.name}", p99_at_most=500.0),
        _held(paged.grown_kib, PAGED),
    ]


def _held(grown_kib: float, kind: Kind) -> Figure:
    return figure("  memory for each of them", "KiB", [grown_kib], at_most=kind.allowed_kib)


async def _measure(folder: Path, size: Size, kind: Kind) -> Found:
    with product(folder, pace=PACE) as server:
        async with streams(server, STREAMS, pace=PACE) as streaming:
            await asyncio.sleep(WARM_S)
            wires = [await _client(server, kind) for _ in range(DEAF)]
            before_kib = server.unique_kib()
            for wire in wires:
                for message in kind.says:
                    wire.send(message)
            await asyncio.sleep(FULL_S)
            grown_kib = (server.unique_kib() - before_kib) / DEAF
            beside = await streaming.watch(size.measured_s)
            for wire in wires:
                wire.transport.abort()
    return Found(beside, grown_kib)


async def _client(server: Running, kind: Kind) -> Wire:
    """A client that has been let in; what it brings is taken."""
    answered = asyncio.Event()
    wire = await connect(server.port, lambda _: answered.set())
    wire.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    for message in (encode(m.Hello()), *kind.brings):
        answered.clear()
        wire.send(message)
        async with asyncio.timeout(TIMEOUT_S):
            await answered.wait()
    expect(wire.messages == 1 + len(kind.brings), "one answer each", wire.messages)
    if kind.is_deaf:
        wire.transport.pause_reading()
    return wire

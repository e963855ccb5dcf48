"""The good clients: those whose waiting is measured."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final, NamedTuple

from bench.client import SurpriseError, User, connect
from bench.engine import Pace
from bench.figures import Figure, figure, spread
from bench.servers import TIMEOUT_S, Running
from llmws.protocol import encode
from llmws.protocol import messages as m

PACE: Final = Pace(step_s=0.05)
"""Twenty tokens a second and stream: about what a reader takes."""

_FOREVER_TOKENS: Final = 65_000


async def first_token_ms(server: Running) -> float:
    """From the first packet of a new client to its first token; one that is cut before that tries again."""
    began_s = time.monotonic()
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            with suppress(ConnectionError):
                return (await _first_token_s(server) - began_s) * 1e3


async def _first_token_s(server: Running) -> float:
    first: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def on_message(message: bytes) -> None:
        if message.startswith(b'{"type":"welcome"'):
            sampling = m.Sampling(max_new_tokens=1)
            wire.send(encode(m.Inference(input_ids=[1, 2, 3], config=sampling)))
        elif message.startswith(b'{"type":"token"'):
            first.set_result(time.monotonic())
        elif not message.startswith((b'{"type":"start"', b'{"type":"done"')) and not first.done():
            first.set_exception(SurpriseError(f"a new client got {message!r}"))

    def on_lost() -> None:
        if not first.done():
            first.set_exception(ConnectionError("cut"))

    wire = await connect(server.port, on_message)
    wire.on_lost = on_lost
    try:
        wire.send(encode(m.Hello(auth=server.token)))
        return await first
    finally:
        wire.transport.abort()


async def first_tokens_ms(server: Running, count: int) -> list[float]:
    """The same of so many clients, one after the other."""
    return [await first_token_ms(server) for _ in range(count)]


class Watched(NamedTuple):
    """What streams had of their tokens: how old each was, and which share of those that were due came."""

    ages_ms: list[float]
    share: float

    def figures(self, name: str, *, p99_at_most: float | None = None) -> list[Figure]:
        """Both. A server that stalls makes fewer tokens, so their ages alone would not tell."""
        return [
            *spread(f"age of a token, {name}", "ms", self.ages_ms, p99_at_most=p99_at_most),
            figure("  tokens that came, of those due", "%", [self.share * 100], at_least=90.0),
        ]


class Streams:
    """Clients that have answers without end."""

    def __init__(self, users: Sequence[User], pace: Pace) -> None:
        self.users = users
        self._step_s = pace.step_s

    async def watch(self, watched_s: float) -> Watched:
        """What comes in so many seconds from now."""
        for user in self.users:
            user.late_ms.clear()
            user.keeps_times = True
        await asyncio.sleep(watched_s)
        for user in self.users:
            user.keeps_times = False
        ages_ms = [each for user in self.users for each in user.late_ms]
        return Watched(ages_ms, len(ages_ms) * self._step_s / watched_s / len(self.users))


@asynccontextmanager
async def streams(server: Running, count: int, *, pace: Pace = PACE) -> AsyncIterator[Streams]:
    """So many clients, each with an answer that goes on until the block ends."""
    users = [User(token=server.token) for _ in range(count)]
    for user in users:
        await user.attach(server.port)
    answers = [asyncio.ensure_future(user.ask(1, _FOREVER_TOKENS)) for user in users]
    try:
        yield Streams(users, pace)
    finally:
        for answer in answers:
            answer.cancel()
        await asyncio.gather(*answers, return_exceptions=True)
        for user in users:
            user.wire.transport.abort()

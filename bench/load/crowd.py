"""A crowd of clients in a process of its own, so that what they do costs no measured client its turn.

Knows nothing of what a crowd does: that is a coroutine function of a module. Invariant: the process is gone
when the block that began it ends.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import resource
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Final, Generic, TypeVar, cast

from bench.servers import TIMEOUT_S

R = TypeVar("R")
"""What a crowd tells in the end."""

OPEN_FILES: Final = 8_192


class Crowd(Generic[R]):
    """The crowd as whoever sent for it sees it; its methods block for at most `timeout_s`."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    async def ready(self) -> None:
        """Returns when the crowd has begun in earnest."""
        await asyncio.to_thread(self._receive, TIMEOUT_S)

    async def report(self, *, timeout_s: float = TIMEOUT_S) -> R:
        """What a crowd tells that ends by itself."""
        return cast("R", await asyncio.to_thread(self._receive, timeout_s))

    async def end(self) -> R:
        """Ends the crowd's work; returns its report."""
        self._pipe.send(None)
        return await self.report()

    def _receive(self, timeout_s: float) -> object:
        if not self._pipe.poll(timeout_s):
            raise TimeoutError("the crowd does not answer")
        return self._pipe.recv()


class Orders:
    """The other end, in the crowd's process.

    Attributes:
        over: the crowd is to end.
    """

    def __init__(self, pipe: Connection) -> None:
        self.over = asyncio.Event()
        self._pipe = pipe
        asyncio.get_running_loop().add_reader(pipe.fileno(), self._come)

    def ready(self) -> None:
        """Says that the crowd has begun in earnest."""
        self._pipe.send(None)

    def _come(self) -> None:
        try:
            self._pipe.recv()
        except (EOFError, OSError):
            os._exit(1)  # whoever sent for it is dead
        self.over.set()


@contextmanager
def crowd(attack: Callable[..., Awaitable[R]], *arguments: object) -> Iterator[Crowd[R]]:
    """Runs `attack(orders, *arguments)` in a fresh process, killed in the end; what it returns is the report."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(theirs, attack, arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        yield Crowd(ours)
    finally:
        process.kill()
        process.join()
        ours.close()


def _run(pipe: Connection, attack: Callable[..., Awaitable[object]], arguments: tuple[object, ...]) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(OPEN_FILES, hard), hard))

    async def live() -> None:
        pipe.send(await attack(Orders(pipe), *arguments))

    asyncio.run(live())

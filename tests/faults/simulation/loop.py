"""An asyncio event loop whose time is a number: waiting costs nothing, and every run of a program is the same run."""

from __future__ import annotations

import asyncio
from asyncio import base_events
from collections.abc import Callable
from typing import Any, Protocol

INSPECTION_S = 0.001
"""How long whatever runs in an executor takes."""


START_S = 1000.0


class StandstillError(Exception):
    """Everybody waits for somebody, and no timer will ever end that."""


class Network(Protocol):
    """Where connections come from and lead to, in place of sockets."""

    async def connect(
        self, loop: VirtualLoop, factory: Callable[[], asyncio.Protocol], port: int
    ) -> tuple[asyncio.Transport, asyncio.Protocol]: ...

    def listen(self, factory: Callable[[], asyncio.Protocol], listener: Any) -> Any: ...


class VirtualLoop(base_events.BaseEventLoop):
    """A loop without a selector, threads or sockets.

    When nothing is ready the clock jumps to the next timer. What is handed to an executor runs here a moment later.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.now_s = START_S
        self.errors: list[dict[str, Any]] = []
        self._selector = self
        self.set_exception_handler(lambda _loop, context: self.errors.append(context))

    @property
    def timers(self) -> list[asyncio.TimerHandle]:
        """What is still to happen."""
        return [handle for handle in self._scheduled if not handle.cancelled()]

    def time(self) -> float:
        return self.now_s

    def select(self, timeout_s: float | None) -> list[Any]:
        if timeout_s is None:
            raise StandstillError
        self.now_s += timeout_s
        return []

    def _process_events(self, event_list: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        future = self.create_future()

        def work() -> None:
            if future.cancelled():
                return
            try:
                future.set_result(func(*args))
            except Exception as error:  # noqa: BLE001 - whoever awaits it is told
                future.set_exception(error)

        self.call_later(INSPECTION_S, work)
        return future

    async def create_connection(
        self, protocol_factory: Callable[[], asyncio.Protocol], host: str, port: int, **_: Any
    ) -> tuple[asyncio.Transport, asyncio.Protocol]:
        return await self.network.connect(self, protocol_factory, port)

    async def create_server(self, protocol_factory: Callable[[], asyncio.Protocol], *, sock: Any, **_: Any) -> Any:
        return self.network.listen(protocol_factory, sock)

"""One process of the server: the real hub, driver, store and doors; what is scripted is the engine and the prompts.

It can be stopped as SIGTERM stops it, and killed: from then on it reaches neither the disk nor the network, and what is
left of its tasks ends unseen. Its composition mirrors `llmws.app`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from llmws.access import Identity
from llmws.config import LimitsSection, ServerSection
from llmws.engine.scripted import ScriptedEngine, model_info
from llmws.engine_api import EngineEvent, GenerationRequest, ModelRef, PromptJob, PromptReady
from llmws.runtime.driver import Driver
from llmws.server.listen import Server
from llmws.session import events as e
from llmws.session.hub import Hub
from llmws.session.state import HubSettings
from llmws.store.folder import Site
from tests.faults.simulation.loop import VirtualLoop
from tests.faults.simulation.network import Listener, SimulatedNetwork
from tests.faults.simulation.script import answer_ids, steps_for
from tests.faults.simulation.store import SteppedStore
from tests.support.scripted_server import OneModel, StillProbe
from tests.support.stages import GUIDE

PORT = 8765
MAX_UNTAKEN_STEPS = 2


class PacedEngine(ScriptedEngine):
    """A scripted engine that steps by virtual time, and waits while two steps have not been taken."""

    def __init__(self, loop: VirtualLoop, rng: random.Random) -> None:
        super().__init__(
            lambda request: steps_for(request.prompt_ids[-1]),
            models={GUIDE.name: model_info(GUIDE, max_context=1 << 20, max_running=3)},
        )
        self.step_s = 0.05
        self._loop = loop
        self._rng = rng
        self._untaken_steps = 0
        self._is_due = False

    def load(self, model: ModelRef, *, again: bool = False) -> None:
        super().load(model, again=again)
        self._go_on()

    def submit(self, request: GenerationRequest) -> None:
        super().submit(request)
        self._go_on()

    def take(self) -> list[EngineEvent]:
        self._untaken_steps = 0
        self._go_on()
        return super().take()

    def _go_on(self) -> None:
        if not self._is_due and not self._closed and (self.keys or self.wanted):
            self._is_due = True
            self._loop.call_later(self.step_s * (0.5 + self._rng.random()), self._step)

    def _step(self) -> None:
        self._is_due = False
        if self._closed or self._untaken_steps >= MAX_UNTAKEN_STEPS:
            return
        self._untaken_steps += self.step()
        self._go_on()


class Prompts:
    """A renderer whose ids name what was asked last, so that the engine knows what to say."""

    def __init__(self, loop: VirtualLoop, rng: random.Random) -> None:
        self._loop = loop
        self._rng = rng
        self._is_closed = False

    def start(self, deliver: Callable[[PromptReady], None]) -> None:
        self._deliver = deliver

    def render(self, job: PromptJob) -> None:
        assert job.input_ids is None
        ready = PromptReady(key=job.key, ids=tuple(answer_ids(turn.content) for turn in job.turns))
        self._loop.call_later(0.05 * self._rng.random(), self._hand_over, ready)

    def _hand_over(self, ready: PromptReady) -> None:
        if not self._is_closed:
            self._deliver(ready)

    def close(self) -> None:
        self._is_closed = True


class Tokens:
    """Every token is somebody's name."""

    def identify(self, token: str | None) -> Identity | None:
        return None if token is None else Identity(token, "user")

    def holds(self, token_id: str) -> bool:
        return True

    def issue(self, identity: Identity) -> str:
        raise AssertionError(identity)


class Clock:
    """The machine's clocks; the wall clock jumps when somebody sets it."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self.offset_s = 1_700_000_000.0

    def monotonic(self) -> float:
        return self._loop.now_s

    def time(self) -> float:
        return self._loop.now_s + self.offset_s

    def now_ms(self) -> int:
        return int(self.time() * 1000)


class Entropy:
    """Ids that are random, and the same in every run."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def new_id(self) -> str:
        bits = self._rng.getrandbits(128)
        text = f"{bits:032x}"
        return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-a{text[17:20]}-{text[20:]}"

    def new_seed(self) -> int:
        return self._rng.getrandbits(53)


class Connections(dict[Any, None]):
    """In place of the set that uvicorn keeps them in: they have an order, and it is not that of their addresses."""

    def add(self, connection: Any) -> None:
        self[connection] = None

    def discard(self, connection: Any) -> None:
        self.pop(connection, None)


class ServerProcess:
    """A server from start to end. `save_uptime` is its only memory outside the store."""

    def __init__(
        self,
        loop: VirtualLoop,
        *,
        network: SimulatedNetwork,
        site: Site,
        rng: random.Random,
        clock: Clock,
        settings: HubSettings,
        save_uptime: Callable[[float], None],
        crashed: Callable[[], None],
    ) -> None:
        self.is_alive = True
        self._loop = loop
        self._network = network
        self._save_uptime = save_uptime
        self.store = SteppedStore(site, loop, rng, durability=settings.rules.durability, crashed=crashed)
        self.engine = PacedEngine(loop, rng)
        self.hub = Hub(settings, clock=clock, entropy=Entropy(rng))
        parts: dict[str, Any] = {
            "engine": self.engine,
            "store": self.store,
            "prompts": Prompts(loop, rng),
            "models": OneModel(),
            "probe": StillProbe(),
        }
        self.driver = Driver(self.hub, **parts, remember_model=lambda _: None, save_uptime=self._keep_uptime)
        listener: Any = Listener(PORT)
        self.server = Server(
            listener=listener,
            sessions=self.driver,
            credentials=Tokens(),
            server=ServerSection(),
            limits=LimitsSection(),
            clock=clock.monotonic,
        )
        self.server._uvicorn.server_state.connections = Connections()  # type: ignore[assignment]
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Serves until it is stopped or killed; raises what the hub raises."""
        self.driver.start()
        self.driver.post(e.SelectModel(GUIDE))
        self.driver.post(e.ModelsScanned((GUIDE,)))
        self.driver.post(e.UnfinishedFound(tuple(self.store.unfinished())))
        try:
            async with asyncio.TaskGroup() as tasks:
                serving = tasks.create_task(self.server.run())
                driving = tasks.create_task(self.driver.run())
                stopping = tasks.create_task(self._stop.wait())
                await asyncio.wait([serving, driving, stopping], return_when=asyncio.FIRST_COMPLETED)
                self.server.drain()
                await self.driver.drain(5.0)
                self.server.stop()
                self._stop.set()
                driving.cancel()
        finally:
            if self.is_alive:
                self.driver.stop()
            self.is_alive = False

    def stop(self) -> None:
        """SIGTERM."""
        self._stop.set()

    def kill(self) -> None:
        """`kill -9`: its hands are cut off. The task of `run` has yet to be cancelled."""
        self.is_alive = False
        self.store.kill()
        self.engine.close()
        for server in list(self._network.servers.values()):
            server.close()
        for wire in self._network.wires:
            wire.server.abort()

    def _keep_uptime(self, uptime_s: float) -> None:
        if self.is_alive:
            self._save_uptime(uptime_s)

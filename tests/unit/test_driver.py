"""How the driver paces the engine, around a hub that does what the test says."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any, cast

from llmws.engine.scripted import model_info
from llmws.engine_api import Chunk, EngineEvent, ModelInfo, ModelRef
from llmws.errors import ConfigError
from llmws.protocol import messages as m
from llmws.runtime.backlog import MAX_BYTES
from llmws.runtime.driver import Driver
from llmws.session import events as e
from llmws.session.hub import Hub
from llmws.store_api import Append, Close, Failed, Flushed, Record, SessionMeta, StoreEvent, StoreOp
from tests.support.stages import GUIDE, OTHER

BIG = Append(
    session_id="s",
    log="buffer",
    records=(Record(n=1, kind="event", value=b"x" * (MAX_BYTES + 1), seq=1),),
    sync=False,
)
CHUNK = Chunk(key="k", index=0)


class AppendingHub:
    """Answers every chunk with an append of more than may be unwritten."""

    default = None
    resident: frozenset[str] = frozenset()

    def handle(self, *events: object) -> list[Append]:
        return [BIG for event in events if isinstance(event, Chunk)]


class Parts:
    """Engine, store, prompts, models and probe in one; what the engine and the store say, the test says."""

    def __init__(self) -> None:
        self.submitted: list[tuple[StoreOp, ...]] = []
        self.chunks_taken = 0
        self.changed = asyncio.Event()
        self._said: list[EngineEvent | StoreEvent] = []
        self._notify: list[Callable[[], None]] = []

    def start(self, notify: Callable[..., None]) -> None:
        self._notify.append(notify)

    def submit(self, *ops: StoreOp) -> None:
        self.submitted.append(ops)
        self.changed.set()

    def survey(self) -> None:
        pass

    def render(self, job: object) -> None:
        pass

    def summary(self) -> m.DeviceSummary:
        return m.DeviceSummary(device="cpu", total_gb=1.0, free_gb=1.0)

    def say(self, *events: EngineEvent | StoreEvent) -> None:
        self._said += events
        store, _, engine = self._notify
        for notify in (store, engine):
            notify()

    def take_of(self, *, of_store: bool) -> list[Any]:
        taken = [event for event in self._said if isinstance(event, Flushed | Failed) is of_store]
        self._said = [event for event in self._said if event not in taken]
        self.chunks_taken += 0 if of_store else len(taken)
        self.changed.set()
        return taken

    async def until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not is_so():
                self.changed.clear()
                await self.changed.wait()


class Half:
    """One of the two that have a `take`."""

    def __init__(self, parts: Parts, *, of_store: bool) -> None:
        self._parts = parts
        self._of_store = of_store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parts, name)

    def take(self) -> list[Any]:
        return self._parts.take_of(of_store=self._of_store)


def started() -> tuple[Driver, Parts]:
    parts = Parts()
    driver = Driver(
        cast("Hub", AppendingHub()),
        engine=cast("Any", Half(parts, of_store=False)),
        store=cast("Any", Half(parts, of_store=True)),
        prompts=cast("Any", parts),
        models=cast("Any", parts),
        probe=parts,  # type: ignore[arg-type]
        remember_model=lambda _: None,
        save_uptime=lambda _: None,
    )
    driver.start()
    return driver, parts


async def test_appends_of_one_turn_reach_the_store_in_one_call() -> None:
    driver, parts = started()
    driver.post(CHUNK)
    driver.post(CHUNK)
    await parts.until(lambda: bool(parts.submitted))
    assert parts.submitted == [(BIG, BIG)]


async def test_the_engine_waits_until_what_it_brought_is_written() -> None:
    _, parts = started()
    parts.say(CHUNK)
    await parts.until(lambda: len(parts.submitted) == 1)
    parts.say(CHUNK)
    for _ in range(3):  # turns of the loop, in which it would be taken
        await asyncio.sleep(0)
    assert parts.chunks_taken == 1
    parts.say(Flushed(session_id="s", log="buffer", written=1, durable=0))
    await parts.until(lambda: parts.chunks_taken == 2)


async def test_what_is_appended_before_the_hub_hears_of_a_failure_holds_nobody_back() -> None:
    driver, parts = started()
    parts.say(Failed(session_id="s", message="disk full"))
    driver.post(CHUNK)  # ahead of the failure in the queue, for that has yet to be taken
    await parts.until(lambda: len(parts.submitted) == 1)
    parts.say(CHUNK)
    await parts.until(lambda: parts.chunks_taken == 1)


class StoppingHub:
    """At the stop it closes a session and saves the uptime."""

    default = None
    resident: frozenset[str] = frozenset()

    def handle(self, *events: object) -> list[Close | e.SaveUptime]:
        meta = SessionMeta(owner="local", created_s=1.0, last_activity_s=2.0)
        stops = any(isinstance(event, e.Shutdown) for event in events)
        return [Close(session_id="s", meta=meta), e.SaveUptime(5.0)] if stops else []


class Recorder:
    """A part that does nothing, and tells what was asked of it."""

    def __init__(self) -> None:
        self.submitted: list[StoreOp] = []
        self.is_closed = False
        self.readings = 0
        self.may_read = threading.Event()

    def start(self, notify: Callable[..., None]) -> None:
        pass

    def survey(self) -> None:
        pass

    def submit(self, *ops: StoreOp) -> None:
        self.submitted += ops

    def render(self, job: object) -> None:
        pass

    def close(self) -> None:
        self.is_closed = True

    def summary(self) -> m.DeviceSummary:
        self.readings += 1
        self.may_read.wait(5)
        return m.DeviceSummary(device="cpu", total_gb=1.0, free_gb=1.0)


def stopping_driver(part: Recorder, save_uptime: Callable[[float], None]) -> Driver:
    parts: Any = part
    return Driver(
        cast("Hub", StoppingHub()),
        engine=parts,
        store=parts,
        prompts=parts,
        models=parts,
        probe=parts,
        remember_model=lambda _name: None,
        save_uptime=save_uptime,
    )


async def test_a_stop_on_a_full_disk_closes_the_sessions_and_the_store_all_the_same():
    def full(_uptime_s: float) -> None:
        raise ConfigError("server.json: cannot be written (No space left on device)")

    part = Recorder()
    stopping_driver(part, full).stop()
    assert [type(op) for op in part.submitted] == [Close]
    assert part.is_closed


async def test_a_device_that_does_not_answer_is_not_asked_again_until_it_does():
    part = Recorder()
    driver = stopping_driver(part, lambda _uptime_s: None)
    for _ in range(100):
        driver._read_memory()
    part.may_read.set()
    await asyncio.to_thread(driver._inspector.shutdown)
    assert part.readings == 1
    driver.stop()


class AskingHub:
    """Has a default that made room for another model; it asks what it is sent, and keeps the answers."""

    default = model_info(GUIDE)
    resident = frozenset({OTHER.name})
    available = (GUIDE, OTHER)

    def __init__(self) -> None:
        self.answers: asyncio.Queue[m.Message] = asyncio.Queue()

    def handle(self, *events: object) -> list[e.Inspect]:
        for event in events:
            if isinstance(event, e.Answer):
                self.answers.put_nowait(event.message)
        return [e.Inspect(event.connection, event.message) for event in events if isinstance(event, e.Receive)]


class Seen(Recorder):
    """A machine with two models, whose probe tells what it was told."""

    def scan(self) -> list[ModelRef]:
        return [GUIDE, OTHER]

    def load_state(self) -> m.EngineResources:
        return m.EngineResources(running=0, queued=0, tokens_per_s=0.0)

    def resources(self, loaded: ModelInfo, models: list[m.ModelEntry], load: m.EngineResources) -> m.Resources:
        return m.Resources(
            cuda=None,
            model=m.ModelSummary(name=loaded.ref.name, path=loaded.ref.path, vision=loaded.vision),
            available_models=models,
            engine=load,
            host=m.HostResources(cpu=1, ram_gb=1.0),
        )


async def test_lists_say_which_models_are_in_memory_and_resources_which_is_the_default() -> None:
    hub, part = AskingHub(), cast("Any", Seen())
    driver = Driver(
        cast("Hub", hub),
        engine=part,
        store=part,
        prompts=part,
        models=part,
        probe=part,
        remember_model=lambda _name: None,
        save_uptime=lambda _uptime_s: None,
    )
    entries = [GUIDE.to_entry(loaded=False), OTHER.to_entry(loaded=True)]
    async with asyncio.timeout(5):
        driver.receive(1, m.ListModels())
        assert await hub.answers.get() == m.ModelsList(models=entries)
        driver.receive(1, m.GetResources())
        resources = await hub.answers.get()
    assert isinstance(resources, m.Resources)
    assert (resources.model.name, resources.available_models) == (GUIDE.name, entries)
    assert driver.ready
    driver._inspector.shutdown()

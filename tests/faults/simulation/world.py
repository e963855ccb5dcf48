"""One seed's world: a machine with a disk and clocks, a server on it, a network, people and programs, and bad luck.

`simulate` runs it in four acts: bad luck; calm, in which everybody must get everything; absence, after which nothing
may be left; and the end of the server, after which no task and no timer may be left. Invariant: a seed is a history.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from llmws.errors import ConfigError
from llmws.protocol import messages as m
from llmws.session.directory import GRACE_S
from llmws.session.rules import Rules
from llmws.session.state import HubSettings
from llmws.store.folder import Site
from tests.faults.simulation.loop import START_S, VirtualLoop
from tests.faults.simulation.network import SimulatedNetwork
from tests.faults.simulation.people import SECRET, Person, Program
from tests.faults.simulation.server import Clock, ServerProcess
from tests.faults.simulation.store import FailingDisk
from tests.unit.store.simulated_disk import CrashError
from tests.unit.store.turning_ring import TurningRing

STROKES = 50
CALM_S = 600.0
NOTICED_S = 60.0
TTL_S = 40.0
ABSENCE_S = 150.0
NEVER = 10**9
MOST_FAILED_STARTS = 10
DAY_S = 86_400.0


class World:
    """Everything outside the product's code, and the bad luck."""

    def __init__(self, seed: int, seen: Counter[str]) -> None:
        self.seen = seen
        self.rng = random.Random(seed)
        self._calmed = asyncio.Event()
        self.network = SimulatedNetwork(self.fork())
        self.loop = VirtualLoop(self.network)
        self.clock = Clock(self.loop)
        self.disk = FailingDisk(self.fork())
        self.keys = TurningRing({1: b"\1" * 32})
        self.durability: Literal["os", "disk"] = self.rng.choice(("os", "disk"))
        self.site = Site(
            state=Path("/state"),
            keys=self.keys,
            disk=self.disk,
            now_ms=self.clock.now_ms,
            random=self.fork().randbytes,
        )
        # What ends at one moment ends in an order that is not told: it must not share its chance with anything else.
        self._server_rng, self._waiting_rng = self.fork(), self.fork()
        self.uptime_s = self.more_uptime_s = 0.0
        self.ttl_s, self.conversation_ttl_d = DAY_S, 0.0
        self.is_ending = self.has_forgotten = False
        self.process: ServerProcess | None = None
        self.running: asyncio.Task[None] | None = None
        self.is_up = asyncio.Event()
        people = [Person(self, f"person{n}", self.fork()) for n in range(self.rng.choice((1, 1, 2)))]
        programs = [Program(self, f"program{n}", self.fork()) for n in range(self.rng.choice((1, 1, 2)))]
        self.everybody: list[Person | Program] = [*people, *programs]
        self._trace = hashlib.sha256()
        self.recent: deque[str] = deque(maxlen=30)
        self._fates: list[tuple[Callable[[], None], int]] = [
            (self.cut, 20), (self.stall, 6), (self.part, 2), (self.kill, 8), (self.blow_fuse, 8), (self.stop, 3),
            (self.turn_clock, 4), (self.fill_disk, 3), (self.wear_disk, 4), (self.slow_disk, 6), (self.rotate, 3),
            (self.slow_engine, 3), (self.lose_power, 4),
        ]  # fmt: skip

    def fork(self) -> random.Random:
        """Chance of one's own, so that what others do with theirs does not matter."""
        return random.Random(f"{self.rng.random()}")

    def note(self, who: str, what: str) -> None:
        line = f"{self.loop.now_s:.6f} {who}: {what}"
        self._trace.update(line.encode())
        self.recent.append(line)

    def kept(self, session_id: str, requests: set[str]) -> set[str]:
        """Which requests of a session the server has, or has the end of; all of them where nobody can tell."""
        session = self.process.hub._state.sessions.get(session_id) if self.process is not None else None
        if session is None:
            return requests
        waiting = {each.id for each in session.queue}
        return {each for each in requests if each in waiting or each in session.finished}

    async def come_up(self) -> None:
        """Waits until there is a server again."""
        while not self.is_up.is_set():
            await self.is_up.wait()
            await asyncio.sleep(self._waiting_rng.random())

    @property
    def trace(self) -> str:
        """The hash of everything that was noted."""
        return self._trace.hexdigest()

    @property
    def is_calm(self) -> bool:
        return self._calmed.is_set()

    # --- the server ------------------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Starts the server again whenever it is gone."""
        failures = 0
        while not self.is_ending:
            try:
                self.process = self._new_process()
            except (ConfigError, CrashError):
                failures += 1
                if self.is_calm or failures > MOST_FAILED_STARTS:
                    raise
                self.disk.kill()
                self.disk.fuse = NEVER
                await asyncio.sleep(1)
                continue
            failures = 0
            self.note("server", "starts")
            self.running = asyncio.create_task(self.process.run())
            self.is_up.set()
            await asyncio.wait([self.running])
            if not self.running.cancelled():
                assert self.disk.open_handles == 0, "files were left open"
            # What the disk refused to sync, and no word of that, is gone when the process is; see the test's docstring.
            self.disk.kill()
            self.is_up.clear()
            if not self.running.cancelled():
                self.running.result()
            down_s = self._server_rng.choice((0.0, 0.1, 3.0, 3.0, 3 * DAY_S))
            with suppress(TimeoutError):
                async with asyncio.timeout(down_s):
                    await self._calmed.wait()

    def _new_process(self) -> ServerProcess:
        settings = HubSettings(
            limits=m.Limits(max_message_bytes=1 << 20, max_queue=16),
            heartbeat=m.Heartbeat(interval_s=20),
            server=m.ServerInfo(node_id="node", version="0"),
            generation_defaults=m.Sampling(max_new_tokens=100, do_sample=True, temperature=0.7),
            rules=Rules(
                durability=self.durability,
                max_unacknowledged_events=60,
                compact_bytes=1024,
                tail_bytes=1500,
                burst_bytes=1000,
            ),
            uptime_s=self.uptime_s + self.more_uptime_s,
            session_ttl_s=self.ttl_s,
            conversation_ttl_d=self.conversation_ttl_d,
        )
        return ServerProcess(
            self.loop,
            network=self.network,
            site=self.site,
            rng=random.Random(f"{self._server_rng.random()}"),
            clock=self.clock,
            settings=settings,
            save_uptime=lambda uptime_s: setattr(self, "uptime_s", uptime_s),
            crashed=self.kill,
        )

    def _end_process(self) -> bool:
        """Cuts the server off. False: there is none."""
        if self.process is None or self.running is None or not self.process.is_alive:
            return False
        self.disk.fuse = NEVER
        self.process.kill()
        self.running.cancel()
        return True

    # --- bad luck --------------------------------------------------------------------------------------------------

    async def suffer(self, strokes: int) -> None:
        """One stroke of fate after another, while there is something to hit."""
        fates, weights = zip(*self._fates, strict=True)
        for _ in range(strokes):
            await self.is_up.wait()
            await asyncio.sleep(self.rng.expovariate(1 / 2))
            [fate] = self.rng.choices(fates, weights)
            self.note("fate", fate.__name__)
            fate()

    def calm(self) -> None:
        """From now on nothing goes wrong any more; what is broken stays broken."""
        self._calmed.set()
        self.network.heal()
        if self.process is not None:
            self.process.engine.step_s = 0.05
        self.disk.fault_rate, self.disk.is_full, self.disk.latency_s, self.disk.fuse = 0.0, False, 0.004, NEVER

    def for_a_while(self, undo: Callable[[], None]) -> None:
        self.loop.call_later(self.rng.expovariate(1 / 5), undo)

    def cut(self) -> None:
        if wires := self.network.live():
            self.rng.choice(wires).reset()
            self.seen["cuts"] += 1

    def stall(self) -> None:
        if wires := self.network.live():
            self.rng.choice(wires).is_stalled = True
            self.seen["cuts"] += 1

    def part(self) -> None:
        self.network.part()
        self.seen["cuts"] += 1
        self.for_a_while(self.network.join)

    def kill(self) -> None:
        """`kill -9`, also in the middle of a system call."""
        if self._end_process():
            self.disk.kill()
            self.seen["kills"] += 1

    def lose_power(self) -> None:
        """At the level `os` that loses events that clients were sent; that is what the level says."""
        if self._end_process():
            self.disk.lose_power()
            self.seen["kills"] += 1
            self.has_forgotten = self.durability == "os"

    def blow_fuse(self) -> None:
        """The process dies at one of the next changes of the disk, with that change half done."""
        self.disk.fuse = self.rng.randint(1, 40)

    def stop(self) -> None:
        if self.process is not None:
            self.process.stop()
            self.seen["stops"] += 1

    def turn_clock(self) -> None:
        self.clock.offset_s += self.rng.choice((-400 * DAY_S, -DAY_S, -3600.0, -1.0, 3600.0, DAY_S))
        self.seen["clock jumps"] += 1

    def fill_disk(self) -> None:
        self.disk.is_full = True
        self.for_a_while(lambda: setattr(self.disk, "is_full", False))

    def wear_disk(self) -> None:
        """Any call fails now and then. At the level `os` a failed sync may lose what clients were sent."""
        if self.durability == "disk":
            self.disk.fault_rate = 0.05
            self.for_a_while(lambda: setattr(self.disk, "fault_rate", 0.0))

    def slow_disk(self) -> None:
        self.disk.latency_s = self.rng.choice((0.2, 2.0))
        self.for_a_while(lambda: setattr(self.disk, "latency_s", 0.004))

    def rotate(self) -> None:
        self.keys.add()
        if self.process is not None and self.process.is_alive:
            self.process.store.survey()
        self.seen["key rotations"] += 1

    def slow_engine(self) -> None:
        if self.process is not None:
            self.process.engine.step_s = self.rng.choice((0.002, 0.05, 3.0))

    def abandon(self) -> None:
        """Ends whatever is left, in the middle of anything."""
        self._end_process()
        while tasks := asyncio.all_tasks(self.loop):
            for task in tasks:
                task.cancel()
            self.loop.run_until_complete(asyncio.wait(tasks))
        self.loop.close()

    # --- the acts --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(self.serve())
            living = [tasks.create_task(each.live()) for each in self.everybody]
            await self.suffer(STROKES)
            self.calm()
            async with asyncio.timeout(CALM_S):
                await asyncio.wait(living)
            self.check_complete()
            await self.be_absent()
            self.is_ending = True
            await self._stop_and_wait()
            await serving
        self.check_nothing_left()

    async def be_absent(self) -> None:
        """Nobody is there, first for long enough to be noticed, then for longer than anything is kept."""
        await self.is_up.wait()
        assert self.process is not None
        await asyncio.sleep(NOTICED_S)
        assert self.process.server.connections == 0
        assert self.process.hub._state.connections == {}
        assert self.process.engine.keys == []
        self.ttl_s, self.conversation_ttl_d = TTL_S, TTL_S / DAY_S
        # What the next process is told of the lives before it: to tick through the hour of grace would take long.
        self.more_uptime_s = 2 * GRACE_S
        await self._stop_and_wait()
        await asyncio.sleep(ABSENCE_S)
        left = sorted(self.disk.names_now)
        assert left == ["/state", "/state/deleted", "/state/sessions"], (
            f"after everything expired there is left: {left}"
        )

    async def _stop_and_wait(self) -> None:
        await self.is_up.wait()
        assert self.process is not None
        assert self.running is not None
        self.process.stop()
        await asyncio.wait([self.running])

    def check_complete(self) -> None:
        for each in self.everybody:
            questions = each.questions
            assert not questions.open, f"never ended: {questions.open}"
            self.seen["requests"] += len(questions.asked)
        assert not self.disk.holds(SECRET.encode()), "a prompt can be read on the disk"
        assert self.disk.nonces_reused == 0

    def check_nothing_left(self) -> None:
        assert asyncio.all_tasks() == {asyncio.current_task()}
        for context in self.loop.errors:
            raise context.get("exception") or AssertionError(context)


def simulate(seed: int, seen: Counter[str]) -> str:
    """Runs a seed's history, and counts what was in it. Returns its hash; raises what is wrong with it."""
    world = World(seed, seen)
    try:
        world.loop.run_until_complete(world.run())
        timers = world.loop.timers
        assert not timers, f"timers are left: {timers}"
    except BaseException as error:
        error.add_note("\n".join(["the last that happened:", *world.recent]))
        raise
    finally:
        world.abandon()
        seen["disk faults"] += world.disk.faults
        seen["virtual s"] += int(world.loop.now_s - START_S)
        seen["connections"] += world.network.made
    return world.trace

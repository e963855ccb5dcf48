"""Everything that can happen to clients and their server, at random, for a while; then calm, and what is left of it.

Owns the server's process, the users' processes and the network between them. Knows nothing of what is asked. Invariant:
when `Storm.end` returns the server runs and every user has ended by itself, or it raises.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

import msgspec

from tests.faults.chaos.asking import Plan, journal_path
from tests.faults.killable_server import KillableServer
from tests.support.fault_proxy import FaultProxy, draw
from tests.support.paths import ROOT

REACH_BYTES = 30_000
LASTING_S = 3.0
HIT_BYTES = 5000
"""So much must have been written down in a life before it is ended: a kill is to hit something."""


class Weather(msgspec.Struct, frozen=True, kw_only=True):
    """How rough it is: the bounds, in seconds, between which the next kill comes at random."""

    server_kill_s: tuple[float, float] = (4.0, 10.0)
    users_kill_s: tuple[float, float] = (1.0, 3.0)
    calm_s: float = 120.0
    """How long everybody may take to come to an end once nothing happens any more."""


class UsersProcess:
    """Some users, and the process that they live in now.

    Attributes:
        plan: what it was told.
        journals_bytes_before: what the users had written down when it was started.
    """

    def __init__(self, plan: Plan, log: Path) -> None:
        self.plan = plan
        self._log = log
        self._start()

    def kill_and_start(self) -> None:
        """`kill -9`, and the next process goes on.

        Raises:
            AssertionError: it had failed before.
        """
        self.end()
        assert self._process.returncode in (0, -signal.SIGKILL), self.log()
        self._start()

    @property
    def status(self) -> int | None:
        """Its exit status, None while it runs."""
        return self._process.poll()

    def end(self) -> None:
        """Kills it, if it still runs."""
        self._process.kill()
        self._process.wait()

    def log(self) -> str:
        """What it has complained of."""
        return self._log.read_text()

    @property
    def journals_bytes(self) -> int:
        """How much the users have written down."""
        paths = [journal_path(Path(self.plan.folder), user) for user in self.plan.users]
        return sum(path.stat().st_size for path in paths if path.exists())

    def _start(self) -> None:
        command = [sys.executable, "-m", "tests.faults.chaos.asking", msgspec.json.encode(self.plan).decode()]
        self.journals_bytes_before = self.journals_bytes
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )


class Storm:
    """A server, users in several processes, and a bad network for each user.

    Args:
        server: started; it is killed and started again.
        plan: whose `users` lack their URLs: each gets a proxy of its own.
        processes: how many the users are spread over.
        chance: decides everything.
        weather: how often what happens.

    Attributes:
        server_kills, users_kills: how often each was killed.
    """

    def __init__(
        self, server: KillableServer, plan: Plan, *, processes: int, chance: random.Random, weather: Weather
    ) -> None:
        self.server_kills = 0
        self.users_kills = 0
        self._server = server
        self._plan = plan
        self._count = processes
        self._chance = chance
        self._weather = weather
        self._processes: list[UsersProcess] = []
        self._proxies: list[FaultProxy] = []
        self._open = contextlib.AsyncExitStack()

    @property
    def struck(self) -> dict[str, int]:
        """How many connections came to which harm."""
        names = sorted({name for proxy in self._proxies for name in proxy.struck})
        return {name: sum(proxy.struck[name] for proxy in self._proxies) for name in names}

    async def __aenter__(self) -> Self:
        users = []
        for user in self._plan.users:
            chance = random.Random(self._chance.random())
            proxy = FaultProxy(
                lambda: self._server.port,
                lambda _, chance=chance: draw(chance, reach_bytes=REACH_BYTES, lasting_s=LASTING_S),
                chance=chance,
            )
            self._proxies.append(await self._open.enter_async_context(proxy))
            users.append(msgspec.structs.replace(user, url=proxy.url))
        for number in range(self._count):
            plan = msgspec.structs.replace(self._plan, users=users[number :: self._count])
            self._processes.append(UsersProcess(plan, Path(plan.folder) / f"users-{number}.log"))
        return self

    async def __aexit__(self, *_: object) -> None:
        for process in self._processes:
            process.end()
        await self._open.aclose()

    async def blow(self, seconds: float) -> None:
        """Lets it happen; returns with the server running.

        Raises:
            ExceptionGroup: users have failed, or the server did not start again.
        """
        ends_s = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            group.create_task(self._kill_server(ends_s))
            group.create_task(self._kill_users(ends_s))

    async def end(self) -> None:
        """Calms everything and waits for the users' ends.

        Raises:
            AssertionError: a user has failed, or cannot come to an end.
        """
        (Path(self._plan.folder) / "enough").touch()
        for proxy in self._proxies:
            proxy.calm()
        ends_s = time.monotonic() + self._weather.calm_s
        while any(process.status is None for process in self._processes):
            self._check()
            assert time.monotonic() < ends_s, "somebody does not come to an end"
            await asyncio.sleep(0.05)
        self._check()

    def _check(self) -> None:
        for process in self._processes:
            assert process.status in (None, 0), process.log()

    async def _kill_server(self, ends_s: float) -> None:
        served_bytes = 0
        while await self._pause(self._weather.server_kill_s, ends_s):
            if sum(process.journals_bytes for process in self._processes) < served_bytes + HIT_BYTES:
                continue  # on a busy machine it has only just begun
            await asyncio.to_thread(self._server.kill)
            self.server_kills += 1
            await asyncio.to_thread(self._server.start)
            served_bytes = sum(process.journals_bytes for process in self._processes)

    async def _kill_users(self, ends_s: float) -> None:
        while await self._pause(self._weather.users_kill_s, ends_s):
            self._check()
            busy = [each for each in self._processes if each.journals_bytes >= each.journals_bytes_before + HIT_BYTES]
            if busy:
                await asyncio.to_thread(self._chance.choice(busy).kill_and_start)
                self.users_kills += 1

    async def _pause(self, bounds_s: tuple[float, float], ends_s: float) -> bool:
        """Waits at random between the bounds; whether the storm still blows then."""
        left_s = ends_s - time.monotonic()
        delay_s = self._chance.uniform(*bounds_s)
        await asyncio.sleep(max(0.0, min(delay_s, left_s)))
        return delay_s < left_s

"""The real store without its threads: its rounds, syncs and tasks are timers of the loop, and its disk is simulated."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from typing import Any, Literal

from llmws.store.folder import Site, is_session_id
from llmws.store.lane import Lane, Reseal
from llmws.store.survey import look_through
from llmws.store.writer import FileStore
from llmws.store_api import Surveyed
from tests.faults.simulation.loop import VirtualLoop
from tests.unit.store.simulated_disk import CrashError, SimulatedDisk


class FailingDisk(SimulatedDisk):
    """A simulated disk that may be full, slow or dying for a while.

    `is_full`: nothing that takes room succeeds. `latency_s`: how long an operation of the store takes at most.
    """

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self.is_full = False
        self.latency_s = 0.004

    def write(self, handle: int, data: bytes) -> int:
        if self.is_full:
            self.faults += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(handle, data)

    @property
    def open_handles(self) -> int:
        return len(self._handles)

    def holds(self, plaintext: bytes) -> bool:
        """Whether any file shows it."""
        return any(plaintext in file.data for file in self.names_now.values() if file)


class SteppedStore(FileStore):
    """Does on the loop, one thing at a time, what `FileStore` does on its threads.

    A session's operations keep their order and those of different sessions overlap, as they do there. `crashed` is
    called when the disk stops in the middle of something; after `kill` nothing more is done.
    """

    def __init__(
        self,
        site: Site,
        loop: VirtualLoop,
        rng: random.Random,
        *,
        durability: Literal["os", "disk"],
        crashed: Callable[[], None],
    ) -> None:
        super().__init__(site, durability=durability)
        self._loop = loop
        self._rng = rng
        self._crashed = crashed
        self._waiting: dict[int, Callable[[], None]] = {}
        self._last_job = 0
        self._round_is_due = self._is_dead = False
        self._syncs = self._tasks = Pool(self._later)  # type: ignore[assignment]

    @property
    def disk(self) -> FailingDisk:
        assert isinstance(self._site.disk, FailingDisk)
        return self._site.disk

    def start(self, notify: Callable[[], None]) -> None:
        self._notify = notify

    def unfinished(self) -> list[str]:
        disk, sessions = self.disk, self._site.sessions
        return [
            name
            for name in sorted(disk.names(sessions))
            if is_session_id(name) and disk.exists(sessions / name / "buffer.jsonl")
        ]

    def survey(self) -> None:
        self._later(self._look)

    def close(self) -> None:
        try:
            while self._waiting:
                self._waiting.pop(next(iter(self._waiting)))()
            self._closing = True
            self._write()
        except CrashError:
            self._crashed()

    def kill(self) -> None:
        self._is_dead = True
        self._waiting.clear()

    # --- inside ----------------------------------------------------------------------------------------------------

    def _later(self, work: Callable[..., None], *arguments: Any) -> None:
        if self._is_dead:
            return
        self._last_job += 1
        number = self._last_job
        self._waiting[number] = lambda: work(*arguments)
        self._loop.call_later(self.disk.latency_s * self._rng.random(), self._do, number)

    def _do(self, number: int) -> None:
        if (work := self._waiting.pop(number, None)) is not None:
            try:
                work()
            except CrashError:
                self._crashed()

    def _make_ready(self, lane: Lane) -> None:
        super()._make_ready(lane)
        if not self._round_is_due and not self._closing:
            self._round_is_due = True
            self._later(self._round)

    def _round(self) -> None:
        self._round_is_due = False
        self._work_on(self._next_round())
        if self._ready and not self._round_is_due:
            self._round_is_due = True
            self._later(self._round)

    def _look(self) -> None:
        looks = list(look_through(self._site))
        self._post(Surveyed(sessions=tuple((each.session_id, each.meta.session) for each in looks), is_last=True))
        if not self._closing:
            self._queue(*(Reseal(each.session_id) for each in looks if each.is_stale))


class Pool:
    """What stands for a pool of threads."""

    def __init__(self, later: Callable[..., None]) -> None:
        self._later = later

    def submit(self, work: Callable[..., None], *arguments: Any) -> None:
        self._later(work, *arguments)

    def shutdown(self) -> None:
        pass

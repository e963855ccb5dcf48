"""The two stores behind one door: what a test may do with either."""

import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

import pytest

from llmws.store.folder import Site
from llmws.store.keys import KeyRing
from llmws.store.memory import MemoryDisk, MemoryStore
from llmws.store.writer import FileStore
from llmws.store_api import SessionStore, StoreEvent, StoreOp

TIMEOUT_S = 20

Answer = TypeVar("Answer")


class Client:
    """Submits operations and waits for their answers."""

    def __init__(self, store: SessionStore) -> None:
        self.store = store
        self.notified = 0
        self.passed: list[StoreEvent] = []
        self._answers: list[StoreEvent] = []
        self._news = threading.Event()
        store.start(self._notify)

    def _notify(self) -> None:
        self.notified += 1
        self._news.set()

    def submit(self, *ops: StoreOp) -> None:
        self.store.submit(*ops)

    def wait(self, kind: type[Answer], found: Callable[[Answer], bool] = lambda answer: True) -> Answer:
        """The first answer of a kind, or the first such that `found` says so; those before it are kept in `passed`."""
        self.passed = []
        while True:
            while self._answers:
                answer = self._answers.pop(0)
                if isinstance(answer, kind) and found(answer):
                    return answer
                self.passed.append(answer)
            assert self._news.wait(TIMEOUT_S), f"no {kind.__name__} came"
            self._news.clear()
            self._answers = self.store.take()

    def ask(self, op: StoreOp, kind: type[Answer]) -> Answer:
        """The answer to an operation."""
        self.submit(op)
        return self.wait(kind)


class MemoryWorld:
    """A machine whose disk is an object."""

    def __init__(self) -> None:
        self.clock_ms = itertools.count(1_000_000)
        self._disk = MemoryDisk()
        self._store: MemoryStore | None = None

    def start(self) -> Client:
        """A new process over the same disk."""
        self._store = MemoryStore(self._disk, now_ms=lambda: next(self.clock_ms))
        return Client(self._store)

    def crash(self) -> None:
        assert self._store is not None
        self._store.crash()

    def stop(self) -> None:
        """Nothing to stop."""


class FileWorld:
    """A machine whose disk is a folder. The lock, keys and clock are the test's."""

    def __init__(self, folder: Path) -> None:
        self.clock_ms = itertools.count(1_000_000)
        self.site = Site(state=folder, keys=KeyRing({1: b"k" * 32}), now_ms=lambda: next(self.clock_ms))
        self.durability: Literal["os", "disk"] = "os"
        self._store: FileStore | None = None

    def start(self) -> Client:
        self._store = FileStore(self.site, durability=self.durability)
        return Client(self._store)

    def crash(self) -> None:
        """As good as a kill: sessions are left as they are, without a last word in their meta."""
        assert self._store is not None
        self._store.close()

    def stop(self) -> None:
        if self._store is not None:
            self._store.close()


@pytest.fixture(params=["memory", "files"])
def world(request, tmp_path):
    made = MemoryWorld() if request.param == "memory" else FileWorld(tmp_path)
    yield made
    made.stop()


@pytest.fixture
def file_world(tmp_path):
    made = FileWorld(tmp_path)
    yield made
    made.stop()

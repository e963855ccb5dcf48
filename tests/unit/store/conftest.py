"""Disks that fail, and a site for session folders."""

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from llmws.store.disk import OsDisk
from llmws.store.folder import Site, prepare
from llmws.store.keys import KeyRing

SHORT_FAULTS = 1500


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--store-faults", type=int, help="how many faults the simulated disk injects")


@pytest.fixture
def store_faults(request: pytest.FixtureRequest) -> int:
    return request.config.getoption("--store-faults") or SHORT_FAULTS


class FaultyDisk:
    """The real disk, but calls of the methods named in `faults` first meet what is queued for them there.

    A fault is an errno, or for `write` also a negative number: so many bytes are not taken.
    """

    def __init__(self) -> None:
        self.faults: dict[str, list[int]] = {}
        self.calls: list[str] = []
        self._disk = OsDisk()

    def __getattr__(self, name: str) -> Callable:
        def call(*args, **kwargs):
            self.calls.append(name)
            queued = self.faults.get(name)
            fault = queued.pop(0) if queued else 0
            if fault > 0:
                raise OSError(fault, os.strerror(fault))
            if fault < 0:
                handle, data = args
                return self._disk.write(handle, data[:fault])
            return getattr(self._disk, name)(*args, **kwargs)

        return call


@pytest.fixture
def disk() -> FaultyDisk:
    return FaultyDisk()


@pytest.fixture
def site(tmp_path: Path, disk: FaultyDisk) -> Site:
    """A prepared state folder with a clock that stands at 1,000,000 ms and salts that are counted."""
    counter = itertools.count(1)
    made = Site(
        state=tmp_path,
        keys=KeyRing({1: b"k" * 32}),
        disk=disk,
        now_ms=lambda: 1_000_000,
        random=lambda size: next(counter).to_bytes(size, "big"),
    )
    prepare(made)
    return made

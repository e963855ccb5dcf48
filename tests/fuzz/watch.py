"""What is noted of all executions: how many inputs there were, how many came again, and the longest.

Knows neither fuzzers nor targets' promises. Invariant: what is noted outlives the process, however it ends, as it
stands in a file that is mapped into memory.
"""

from __future__ import annotations

import mmap
import struct
import time
from pathlib import Path
from typing import Final

import msgspec

from tests.fuzz.target import Target

MAX_STEP_S: Final = 0.25
"""Longer than this no input may hold the server's event loop."""

_COUNTS: Final = struct.Struct("QQQ")


class Counts(msgspec.Struct, frozen=True):
    """Executions, how many inputs were run once more because they were slow, and the processor time of the longest."""

    executions: int = 0
    repetitions: int = 0
    longest_ns: int = 0


class StallError(AssertionError):
    """An input that holds the event loop too long."""


class Watch:
    """A target that is timed. Raises what the target raises, and `StallError`.

    Processor time, not time on the wall: a machine that has other work to do makes no input slow. An input counts as
    slow only if it is so twice, as the first time may have had something to set up.

    Args:
        target: what is run.
        notes: the file of the counts.
    """

    def __init__(self, target: Target, notes: Path) -> None:
        notes.write_bytes(bytes(_COUNTS.size))
        with notes.open("r+b") as file:
            self._notes = mmap.mmap(file.fileno(), _COUNTS.size)
        self._target = target
        self._executions = self._repetitions = self._longest_ns = 0

    def __call__(self, data: bytes) -> None:
        """Runs the target once, or twice where it was slow."""
        self._executions += 1
        took_ns = self._timed(data)
        if took_ns > self._longest_ns:
            self._repetitions += 1
            took_ns = min(took_ns, self._timed(data))
        self._longest_ns = max(self._longest_ns, took_ns)
        _COUNTS.pack_into(self._notes, 0, self._executions, self._repetitions, self._longest_ns)
        if self._target.on_loop and took_ns > MAX_STEP_S * 1e9:
            raise StallError(f"{took_ns / 1e6:.0f} ms")

    def _timed(self, data: bytes) -> int:
        began_ns = time.thread_time_ns()
        longest_step_ns = self._target.run(data)
        return time.thread_time_ns() - began_ns if longest_step_ns is None else longest_step_ns


def counts_in(notes: Path) -> Counts:
    """What a watch has noted, here or in another process."""
    return Counts(*_COUNTS.unpack(notes.read_bytes()))

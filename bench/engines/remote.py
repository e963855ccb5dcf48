"""One contestant in a process, and where need be an interpreter, of its own: does as it is told, says what it cost.

Imports nothing but the standard library: the interpreter at the other end may have nothing else of ours. Invariant: one
call is on at a time, so all CPU of the process while it is on is the call's.
"""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, NamedTuple

ROOT: Final = Path(__file__).parents[2]
TIMEOUT_S: Final = 900
"""The longest call: many streams, one after another, on a slow machine."""

ENVIRONMENT: Final = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "PYTHONPATH": str(ROOT),
}
"""Everyone's: one thread, no network."""


class RemoteError(Exception):
    """A contestant failed; the message is its own traceback."""


class Answer(NamedTuple):
    """What a call returned, and the CPU and time that it took."""

    value: Any
    cpu_s: float
    wall_s: float


class Remote:
    """The harness's end of a contestant, and the file that it prints into."""

    def __init__(self, connection: Connection, log: Path) -> None:
        self._connection = connection
        self._log = log

    def call(self, name: str, *arguments: object) -> Answer:
        """Has a function of the contestant run.

        Raises:
            RemoteError: it raised, or its process ended.
            TimeoutError: it did not return.
        """
        try:
            self._connection.send((name, arguments))
            if not self._connection.poll(TIMEOUT_S):
                raise TimeoutError(f"{name} did not end within {TIMEOUT_S} s")
            failure, *answer = self._connection.recv()
        except (EOFError, OSError):
            raise RemoteError(f"the process ended in {name}:\n{tail(self._log)}") from None
        if failure is not None:
            raise RemoteError(failure)
        return Answer(*answer)


@contextmanager
def remote(module: str, *arguments: str, interpreter: str, log: Path) -> Iterator[Remote]:
    """Runs `interpreter -m module fd arguments…`; kills it in the end. What it prints goes to the log."""
    ours, theirs = socket.socketpair()
    command = [interpreter, "-m", module, str(theirs.fileno()), *arguments]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | ENVIRONMENT,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    theirs.close()
    with Connection(ours.detach()) as connection:
        try:
            yield Remote(connection, log)
        finally:
            process.kill()
            process.wait()


def tail(log: Path) -> str:
    """The end of what a process printed."""
    return log.read_text(errors="replace")[-4_000:]


def serve(fd: int, functions: Mapping[str, Callable[..., object]]) -> None:
    """The contestant's end: answers calls until the harness has gone."""
    with Connection(fd) as connection:
        while True:
            try:
                name, arguments = connection.recv()
            except EOFError:
                return
            connection.send(_measured(functions[name], arguments))


def _measured(function: Callable[..., object], arguments: Sequence[object]) -> tuple[str | None, object, float, float]:
    cpu_s, started_s = process_cpu_s(), time.perf_counter()
    try:
        value = function(*arguments)
    except Exception:  # noqa: BLE001 - whatever it is, the harness shows it
        return traceback.format_exc(), None, 0.0, 0.0
    return None, value, process_cpu_s() - cpu_s, time.perf_counter() - started_s


def process_cpu_s() -> float:
    """CPU of all threads of this process, and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)

"""A real server process that streams a token a millisecond, on a disk and by a clock that do what they are told.

As a program: streaming_server.py FOLDER [--steered] [--clock-shift SECONDS] [--step-s SECONDS]. It answers each line on
standard input with one on standard output: a command in JSON, as `["jump", 3600]`; `Steering` says which there are.
Without `--steered` the disk and the clock are the machine's. What a request says is in its prompt: `input_ids` [n], or
the prompt `n`, asks for tokens of n bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil

from llmws import app, config, places
from llmws.engine.scripted import ScriptedEngine, Step, model_info
from llmws.engine_api import PromptReady
from llmws.store.disk import OsDisk
from llmws.store.folder import Site, unix_ms
from llmws.store.keys import load_keys
from llmws.store.writer import FileStore
from tests.faults.spoken import token_text
from tests.support.paths import ROOT
from tests.support.scripted_server import OneModel, StillProbe
from tests.support.stages import GUIDE, ScriptedPrompts

START_TIMEOUT_S = 30
STEP_S = 0.001
"""The disk keeps up with this. A faster engine would fill the backlog, whose bound is for all streams together."""


class SteeredDisk(OsDisk):
    """The operating system's files; all of them can be stuck, and those of one session can fail.

    While they are stuck, writing and syncing wait. Full, a file takes half of what it is given.
    """

    def __init__(self) -> None:
        self.moves = threading.Event()
        self.moves.set()
        self.fault: tuple[str, str] | None = None
        self._paths: dict[int, str] = {}

    def open(self, path, *, create):
        handle = super().open(path, create=create)
        self._paths[handle] = str(path)
        return handle

    def write(self, handle, data):
        self.moves.wait()
        self._fail("unwritable", handle)
        return super().write(handle, data[: len(data) // 2] if self._has("full", handle) else data)

    def sync(self, handle):
        self.moves.wait()
        self._fail("unsyncable", handle)
        super().sync(handle)

    def sync_folder(self, path):
        self.moves.wait()
        super().sync_folder(path)

    def _has(self, fault: str, handle: int) -> bool:
        return self.fault is not None and self.fault[0] == fault and self.fault[1] in self._paths[handle]

    def _fail(self, fault: str, handle: int) -> None:
        if self._has(fault, handle):
            raise OSError(errno.EIO, os.strerror(errno.EIO))


class SteeredClock(app.SystemClock):
    """The machine's clock, the wall one shifted."""

    def __init__(self, shift_s: float) -> None:
        self.shift_s = shift_s

    def time(self) -> float:
        return super().time() + self.shift_s

    def now_ms(self) -> int:
        return unix_ms() + int(self.shift_s * 1000)


class SizePrompts(ScriptedPrompts):
    """The last turn is a number, and so is its one token."""

    def render(self, job):
        self.deliver(PromptReady(key=job.key, ids=job.input_ids or (int(job.turns[-1].content),)))


class HeldPrompts(SizePrompts):
    """A renderer that never comes to an end with what it is given while it is held."""

    is_held = False

    def render(self, job):
        if not self.is_held:
            super().render(job)


class CountingEngine(ScriptedEngine):
    """Counts the steps in which something was said."""

    steps = 0

    def step(self):
        did = super().step()
        self.steps += did
        return did


def tokens(request) -> list[Step]:
    """As many tokens as asked for, of the size asked for."""
    size_bytes = request.prompt_ids[0]
    return [Step(((index, token_text(index, size_bytes)),)) for index in range(request.max_new_tokens)]


class Steering:
    """What the process is told from outside, each method a command."""

    def __init__(self, engine: CountingEngine, disk: SteeredDisk, clock: SteeredClock, prompts: HeldPrompts) -> None:
        self._engine = engine
        self._disk = disk
        self._clock = clock
        self._prompts = prompts

    def steps(self) -> int:
        """How many steps the engine has taken."""
        return self._engine.steps

    def stick(self) -> None:
        """Lets all writing wait."""
        self._disk.moves.clear()

    def free(self) -> None:
        """Ends whatever the disk suffers from."""
        self._disk.fault = None
        self._disk.moves.set()

    def fail(self, fault: str, session_id: str) -> None:
        """Makes the files of a session `full`, `unwritable` or `unsyncable`."""
        self._disk.fault = fault, session_id

    def jump(self, shift_s: float) -> None:
        """Sets the wall clock so far from the machine's."""
        self._clock.shift_s = shift_s

    def hold(self) -> None:
        """Lets no prompt be rendered any more."""
        self._prompts.is_held = True

    def obey(self) -> None:
        """Carries out one command a line; when there are no more whoever gave them is gone, and so is the process."""
        for line in sys.stdin:
            name, *arguments = json.loads(line)
            print(json.dumps(getattr(self, name)(*arguments)), flush=True)
        os._exit(0)


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--steered", action="store_true")
    arguments.add_argument("--clock-shift", type=float, default=0.0)
    arguments.add_argument("--step-s", type=float, default=STEP_S)
    options = arguments.parse_args()
    info = model_info(GUIDE, max_context=100_000, max_running=64)
    engine = CountingEngine(tokens, models={GUIDE.name: info}, interval_s=options.step_s)
    disk, clock, prompts = SteeredDisk(), SteeredClock(options.clock_shift), HeldPrompts()
    threading.Thread(target=Steering(engine, disk, clock, prompts).obey, daemon=True).start()
    settings = config.override(
        config.Config(),
        {
            "server": {"port": 0, "drain_s": 0},
            "auth": {"required": False},
            "limits": {"requests_per_minute": 1_000_000, "max_sessions": 65_536},
        },
    )
    state = options.folder / "state"
    where = places.Places(state, options.folder / "models", state / "models", None)
    parts = app.Parts(engine=engine, probe=StillProbe(), prompts=prompts, models=OneModel())
    if options.steered:
        state.mkdir(exist_ok=True)
        store = FileStore(Site(state=state, keys=load_keys(state), disk=disk, now_ms=clock.now_ms))
        parts = msgspec.structs.replace(parts, store=store, clock=clock)
    app.serve(settings, where, ready_file=options.folder / "ready.json", parts=parts)


class StreamingServer:
    """One state folder, and the process that serves it now, seen from a test."""

    token = None

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.arguments = arguments
        self.port = 0

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def start(self) -> None:
        self.launch()
        ready = self.folder / "ready.json"
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not ready.exists():
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < deadline_s, self.log()
            time.sleep(0.01)
        self.port = json.loads(ready.read_bytes())["port"]

    def launch(self) -> None:
        """Starts the process, and does not wait for it."""
        (self.folder / "ready.json").unlink(missing_ok=True)
        environment = {**os.environ, "XDG_STATE_HOME": str(self.folder / "xdg"), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, str(Path(__file__)), str(self.folder), *self.arguments]
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment, cwd=ROOT
            )

    def log(self) -> str:
        return (self.folder / "server.log").read_text()

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/v1/ws"

    @property
    def own_bytes(self) -> int:
        """Memory that only this process has."""
        return psutil.Process(self._process.pid).memory_full_info().uss

    def limit_file_bytes(self, size_bytes: int) -> None:
        """From now on the kernel lets no file of the process grow beyond this. Needs Linux."""
        hard = resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (size_bytes, hard))

    def tell(self, name: str, *arguments: str | float) -> Any:
        """Has `Steering` carry out a command; returns its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([name, *arguments]) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def signal(self, number: int) -> None:
        """May be called from another thread."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """`kill -9`. The server must still have been there, unless it was killed before."""
        was_alive = self._process.poll() in (None, -signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        assert was_alive, f"status {self._process.returncode}: {self.log()}"


@contextlib.contextmanager
def running(folder: Path, *arguments: str) -> Iterator[StreamingServer]:
    """A server that has been started, and is killed at the end."""
    server = StreamingServer(folder, *arguments)
    server.start()
    try:
        yield server
    finally:
        server.kill()


if __name__ == "__main__":
    main()

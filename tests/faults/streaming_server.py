"""A real server process that streams a token a millisecond, on the disk or on one that gets stuck when it is told to.

As a program: streaming_server.py FOLDER [--stuck-disk]. It answers each line on standard input with one on standard
output: `stick` and `free` the disk, `steps` that the engine has taken. What a request says is in its prompt:
`input_ids` [n], or the prompt `n`, asks for tokens of n bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from llmws import app, config, places
from llmws.engine.scripted import ScriptedEngine, Step, model_info
from llmws.engine_api import PromptReady
from llmws.store.disk import OsDisk
from llmws.store.folder import Site
from llmws.store.keys import load_keys
from llmws.store.writer import FileStore
from tests.support.scripted_server import OneModel, StillProbe
from tests.support.stages import GUIDE, ROOT, ScriptedPrompts

START_TIMEOUT_S = 30
STEP_S = 0.001
"""The disk keeps up with this. A faster engine would fill the backlog, whose bound is for all streams together."""


class StuckDisk(OsDisk):
    """The operating system's files; while it is stuck, writing and syncing wait."""

    def __init__(self) -> None:
        self.moves = threading.Event()
        self.moves.set()

    def write(self, handle, data):
        self.moves.wait()
        return super().write(handle, data)

    def sync(self, handle):
        self.moves.wait()
        super().sync(handle)

    def sync_folder(self, path):
        self.moves.wait()
        super().sync_folder(path)


class CountingEngine(ScriptedEngine):
    """Counts the steps in which something was said."""

    steps = 0

    def step(self):
        did = super().step()
        self.steps += did
        return did


class SizePrompts(ScriptedPrompts):
    """The last turn is a number, and so is its one token."""

    def render(self, job):
        self.deliver(PromptReady(key=job.key, ids=job.input_ids or (int(job.turns[-1].content),)))


def tokens(request) -> list[Step]:
    """As many tokens as asked for, of the size asked for."""
    digits = [str(digit) * request.prompt_ids[0] for digit in range(10)]
    return [Step(((number, digits[number % 10]),)) for number in range(request.max_new_tokens)]


def main() -> None:
    folder = Path(sys.argv[1])
    info = model_info(GUIDE, max_context=100_000, max_running=64)
    engine = CountingEngine(tokens, models={GUIDE.name: info}, interval_s=STEP_S)
    disk = StuckDisk()
    answers = {"stick": disk.moves.clear, "free": disk.moves.set, "steps": lambda: engine.steps}

    def obey() -> None:
        for line in sys.stdin:
            print(json.dumps(answers[line.strip()]()), flush=True)

    threading.Thread(target=obey, daemon=True).start()
    settings = config.override(
        config.Config(),
        {
            "server": {"port": 0, "drain_s": 0},
            "auth": {"required": False},
            "limits": {"requests_per_minute": 1_000_000, "max_sessions": 65_536},
        },
    )
    where = places.Places(folder / "state", folder / "models", folder / "state" / "models", None)
    store = None
    if "--stuck-disk" in sys.argv:
        where.state_dir.mkdir()
        store = FileStore(Site(state=where.state_dir, keys=load_keys(where.state_dir, key_file=None), disk=disk))
    parts = app.Parts(engine=engine, probe=StillProbe(), prompts=SizePrompts(), models=OneModel(), store=store)
    app.serve(settings, where, ready_file=folder / "ready.json", parts=parts)


class StreamingServer:
    """One state folder, and the process that serves it now, seen from a test."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self._arguments = arguments
        self.port = 0

    def start(self) -> None:
        ready = self.folder / "ready.json"
        ready.unlink(missing_ok=True)
        environment = {**os.environ, "XDG_STATE_HOME": str(self.folder / "xdg"), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, str(Path(__file__)), str(self.folder), *self._arguments]
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment, cwd=ROOT
            )
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not ready.exists():
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < deadline_s, self.log()
            time.sleep(0.01)
        self.port = json.loads(ready.read_bytes())["port"]

    def log(self) -> str:
        return (self.folder / "server.log").read_text()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/v1/ws"

    @property
    def own_bytes(self) -> int:
        """Memory that only this process has."""
        return psutil.Process(self._process.pid).memory_full_info().uss

    def tell(self, command: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(command + "\n")
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


if __name__ == "__main__":
    main()

"""A real server process that streams as fast as it is let, on a disk that gets stuck when it is told to.

As a program: streaming_server.py FOLDER. It answers each line on standard input with one on standard output: `stick`
and `free` the disk, `steps` that the engine has taken. What a request says is in its prompt: `input_ids` [n] asks for
tokens of n bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from llmws import app, config, places
from llmws.engine.scripted import ScriptedEngine, Step, model_info
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
    """The operating system's files; while it is stuck, writing and syncing wait. Else syncing takes no time."""

    def __init__(self) -> None:
        self.moves = threading.Event()
        self.moves.set()

    def write(self, handle, data):
        self.moves.wait()
        return super().write(handle, data)

    def sync(self, handle):
        self.moves.wait()

    def sync_folder(self, path):
        self.moves.wait()


class CountingEngine(ScriptedEngine):
    """Counts the steps in which something was said."""

    steps = 0

    def step(self):
        did = super().step()
        self.steps += did
        return did


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
    settings = config.override(config.Config(), {"server": {"port": 0, "drain_s": 0}, "auth": {"required": False}})
    where = places.Places(folder / "state", folder / "models", folder / "state" / "models", None)
    where.state_dir.mkdir()
    store = FileStore(Site(state=where.state_dir, keys=load_keys(where.state_dir, key_file=None), disk=disk))
    parts = app.Parts(engine=engine, probe=StillProbe(), prompts=ScriptedPrompts(), models=OneModel(), store=store)
    app.serve(settings, where, ready_file=folder / "ready.json", parts=parts)


class StreamingServer:
    """The process, seen from a test."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = 0

    def start(self) -> None:
        ready = self._folder / "ready.json"
        environment = {**os.environ, "XDG_STATE_HOME": str(self._folder / "xdg"), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, str(Path(__file__)), str(self._folder)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
        )
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not ready.exists():
            assert self._process.poll() is None, "the server did not start"
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        self.port = json.loads(ready.read_bytes())["port"]

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

    def close(self) -> None:
        """The end of a test: the server must still have been there."""
        was_alive = self._process.poll() is None
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        assert was_alive, f"status {self._process.returncode}"


if __name__ == "__main__":
    main()

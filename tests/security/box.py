"""A real server process that logs everything it can: its own catalog, prompts, store and doors, and a scripted engine.

As a program: box.py FOLDER. Every answer is `REPLY`; one that may go on (`ignore_eos`) says it again and again.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from llmws import app, config, places
from llmws.catalog.catalog import Catalog
from llmws.engine.scripted import ScriptedEngine, Step
from llmws.prompt.renderer import ProcessRenderer
from llmws.store.tokens import TokenFile
from tests.support.paths import ROOT
from tests.support.scripted_server import StillProbe

TIMEOUT_S = 30
REPLY = ("reply-zanzibar ", "\x1b]0;owned\x07", "\x1b[2J\x1b[31m", "\x9b31m", "\u202edrow\u202c", "\rover", " end")


def steps(request) -> list[Step]:
    pieces = REPLY * 50 if request.sampling.ignore_eos else REPLY
    said = [Step(((number % 500 + 1, piece),)) for number, piece in enumerate(pieces[: request.max_new_tokens])]
    return [*said, Step(finish="stop")]


def main() -> None:
    logging.basicConfig(level=logging.DEBUG)
    folder = Path(sys.argv[1])
    settings = config.load(folder / "config.json")
    state = folder / "state"
    where = places.Places(state, ROOT / "models", state / "models", None)
    parts = app.Parts(
        engine=ScriptedEngine(steps, interval_s=0.001),
        probe=StillProbe(),
        prompts=ProcessRenderer(),
        models=Catalog(where.models_dir, where.own_models_dir, None),
    )
    app.serve(settings, where, ready_file=folder / "ready.json", parts=parts)


class Box:
    """One state folder, and the process that serves it now."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.environment = {**os.environ, "XDG_STATE_HOME": str(folder / "xdg"), "PYTHONPATH": str(ROOT)}

    def start(self, **server: Any) -> None:
        """Returns once a model serves; `server` are settings of that section."""
        settings = {"server": {"port": 0, "drain_s": 0, **server}}
        (self.folder / "config.json").write_text(json.dumps(settings))
        ready = self.folder / "ready.json"
        ready.unlink(missing_ok=True)
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(Path(__file__)), str(self.folder)],
                stdout=log,
                stderr=log,
                env=self.environment,
                cwd=ROOT,
            )
        deadline_s = time.monotonic() + TIMEOUT_S
        while not ready.exists():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline_s, self.log()
            time.sleep(0.01)
        self.ready = json.loads(ready.read_bytes())
        self.admin_token = Path(self.ready["token_file"]).read_text().strip()

    def end(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Returns the exit status."""
        self.process.send_signal(number)
        return self.process.wait(timeout=TIMEOUT_S)

    def log(self) -> str:
        return (self.folder / "server.log").read_text(errors="replace")

    def token(self, name: str, role: Any = "user") -> str:
        """Makes one, as `llmws token create` does beside a running server."""
        return TokenFile(self.state / "tokens.json").create(name, role)

    def line(self, token: str, **hello: Any) -> Line:
        return Line(self.ready["ws_url"], {"type": "hello", "auth": token, **hello})


class Line:
    """One connection, as a context manager: `first` is what answered the hello."""

    def __init__(self, url: str, hello: dict[str, Any]) -> None:
        self._connecting = connect(url, compression=None)
        self._hello = hello

    def __enter__(self) -> Self:
        self.socket = self._connecting.__enter__()
        self.first = self.ask(self._hello)
        return self

    def __exit__(self, *fault: object) -> None:
        self._connecting.__exit__(*fault)  # type: ignore[arg-type]

    def send(self, message: dict[str, Any] | str) -> None:
        self.socket.send(message if isinstance(message, str) else json.dumps(message))

    def receive(self) -> dict[str, Any]:
        return json.loads(self.socket.recv(timeout=TIMEOUT_S))

    def ask(self, message: dict[str, Any] | str) -> dict[str, Any]:
        self.send(message)
        return self.receive()

    def until(self, *types: str) -> list[dict[str, Any]]:
        seen = [self.receive()]
        while seen[-1]["type"] not in types:
            seen.append(self.receive())
        return seen

    def close_code(self) -> int | None:
        """Reads until the server has closed."""
        try:
            while True:
                self.socket.recv(timeout=TIMEOUT_S)
        except ConnectionClosed:
            return self.socket.close_code


if __name__ == "__main__":
    main()

"""A real `llmws serve` process with the built-in model, to be killed and started again on the same state and port."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.support.paths import ROOT

START_TIMEOUT_S = 60


class RealServer:
    """One state folder, and the process that serves it now."""

    program = ("-m", "llmws")

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.arguments = arguments
        self.process: subprocess.Popen[bytes] | None = None
        self.port = 0
        self.ready: dict[str, Any] = {}

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def ws_url(self) -> str:
        return self.ready["ws_url"]

    @property
    def environment(self) -> dict[str, str]:
        """For programs that are to find this server as their account's own."""
        return {**os.environ, "XDG_STATE_HOME": str(self.folder / "xdg")}

    @property
    def token(self) -> str | None:
        path = self.ready["token_file"]
        return Path(path).read_text().strip() if path else None

    def start(self) -> None:
        """Returns once the socket listens; the model may still be loading."""
        ready = self.folder / "ready.json"
        ready.unlink(missing_ok=True)
        command = [sys.executable, *self.program, "serve", "--port", str(self.port), "--ready-file", str(ready)]
        command += ["--state-dir", str(self.state), "--config", str(self.folder / "config.json"), *self.arguments]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=self.environment, cwd=ROOT)
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not ready.exists():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline_s, self.log()
            time.sleep(0.02)
        self.ready = json.loads(ready.read_bytes())
        self.port = self.ready["port"]

    def wait_until_loaded(self) -> None:
        """Returns once a model serves."""
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=START_TIMEOUT_S)
            with contextlib.closing(connection):
                connection.request("GET", "/readyz")
                if connection.getresponse().status == 200:
                    return
            assert time.monotonic() < deadline_s, self.log()
            time.sleep(0.05)

    def kill(self) -> None:
        """`kill -9`."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)

    def close(self) -> None:
        """The end of a test: the server must still have been there, unless the test itself ended it."""
        assert self.process is not None
        if self.process.poll() is None:
            self.kill()
        else:
            assert self.process.returncode in (0, -signal.SIGKILL), f"status {self.process.returncode}: {self.log()}"

    def log(self) -> str:
        return (self.folder / "server.log").read_text()


class LoudServer(RealServer):
    """One that logs all that any library has to say."""

    program = (
        "-c",
        "import logging, sys; logging.basicConfig(level=logging.DEBUG); from llmws.cli import main; sys.exit(main())",
    )

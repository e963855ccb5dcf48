"""The real command with the built-in model, on an empty state folder each time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import psutil

from bench.figures import Figure, figure
from bench.servers import TIMEOUT_S

ROOT: Final = Path(__file__).parents[1]
STARTS: Final = 5
LOADS: Final = 1
_POLL_S: Final = 0.001


def measure(folder: Path) -> list[Figure]:
    """From the start of the process to the socket, and on to the model; memory before torch is imported."""
    listen_s, listen_cpu_s, rss_mib, ready_s = [], [], [], []
    for number in range(STARTS):
        state = folder / f"start-{number}"
        state.mkdir()
        ready = state / "ready.json"
        command = [sys.executable, "-m", "llmws", "serve", "--port", "0", "--no-auth"]
        command += ["--model", "llmws-guide", "--ready-file", str(ready)]
        command += ["--state-dir", str(state / "var"), "--config", str(state / "config.json")]
        started_s = time.perf_counter()
        with subprocess.Popen(
            command, cwd=ROOT, env=os.environ | {"XDG_STATE_HOME": str(state)}, stderr=subprocess.DEVNULL
        ) as process:
            try:
                seen = psutil.Process(process.pid)
                _poll(process, ready.exists, started_s)
                listen_s.append(time.perf_counter() - started_s)
                times, memory = seen.cpu_times(), seen.memory_info()
                listen_cpu_s.append(times.user + times.system)
                rss_mib.append(memory.rss / 2**20)
                if number < LOADS:
                    url = json.loads(ready.read_bytes())["url"] + "/readyz"
                    _poll(process, partial(_answers, url), started_s)
                    ready_s.append(time.perf_counter() - started_s)
            finally:
                process.kill()
    return [
        figure("start to listening socket", "s", listen_s, at_most=1.0),
        figure("  CPU until then", "s", listen_cpu_s),
        figure("  memory then, before torch (RSS)", "MiB", rss_mib),
        figure("start to built-in model ready", "s", ready_s),
    ]


def _poll(process: subprocess.Popen[bytes], is_so: Callable[[], bool], started_s: float) -> None:
    while not is_so():
        if process.poll() is not None or time.perf_counter() - started_s > TIMEOUT_S:
            raise RuntimeError("llmws serve did not come up")
        time.sleep(_POLL_S)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            return bool(response.status == 200)
    except urllib.error.HTTPError:
        time.sleep(0.05)
        return False

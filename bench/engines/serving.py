"""The two servers as they are started by hand, and clients that ask them for the same streams.

Clients are in this process, not in the server's. Invariant: a server's CPU is that of its whole tree of processes.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psutil

from bench.client import SurpriseError, Wire, connect
from bench.engines.remote import ENVIRONMENT, ROOT, TIMEOUT_S, Answer, tail
from bench.servers import HOST
from llmws.protocol import encode
from llmws.protocol import messages as m

START_TIMEOUT_S: Final = 120
_POLL_S: Final = 0.05

Ask = Callable[[list[list[int]], int], list[list[int]]]


@contextmanager
def llmws(folder: Path, model: Path, *, streams: int) -> Iterator[Callable[[list[list[int]], int], Answer]]:
    """`llmws serve` on a model's folder, with so many sessions open."""
    config = {
        "server": {"heartbeat_s": 3600},
        "paths": {"models_dir": str(model.parent)},
        "optimization": {"device": "cpu", "threads": 1},
        "limits": {"requests_per_minute": 1_000_000},
    }
    (folder / "config.json").write_text(json.dumps(config))
    ready = folder / "ready.json"
    command = [sys.executable, "-m", "llmws", "serve", "--port", "0", "--no-auth", "--model", model.name]
    command += ["--ready-file", str(ready), "--state-dir", str(folder / "var")]
    command += ["--config", str(folder / "config.json")]
    with _running(command, folder) as process:
        _until(process, folder, ready.exists)
        port = json.loads(ready.read_bytes())["port"]
        _until(process, folder, lambda: _answers(f"http://{HOST}:{port}/readyz"))
        with asyncio.Runner() as runner:
            askers = runner.run(_attach(port, streams))

            def ask(prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
                return runner.run(_ask_all(askers[: len(prompts)], prompts, new_tokens))

            yield _measured(process, ask)


@contextmanager
def transformers(
    folder: Path, model: Path, *, streams: int, stream_tokens: int
) -> Iterator[Callable[[list[list[int]], int], Answer]]:
    """`transformers serve` with continuous batching, which is its fastest way; it speaks in text."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(model), "--continuous-batching"]
    command += ["--cb-num-blocks", str(streams * (-(-stream_tokens // 256) + 1))]
    command += ["--device", "cpu", "--host", HOST, "--port", str(port), "--log-level", "error"]
    with _running(command, folder) as process, ThreadPoolExecutor(streams) as clients:
        _until(process, folder, lambda: _answers(f"http://{HOST}:{port}/health"))

        def ask(prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
            return list(clients.map(lambda prompt: _completion(port, model, prompt, new_tokens), prompts))

        yield _measured(process, ask)


def _measured(process: psutil.Process, ask: Ask) -> Callable[[list[list[int]], int], Answer]:
    def measured(prompts: list[list[int]], new_tokens: int) -> Answer:
        cpu_s, started_s = _cpu_s(process), time.perf_counter()
        value = ask(prompts, new_tokens)
        return Answer(value, _cpu_s(process) - cpu_s, time.perf_counter() - started_s)

    return measured


def _cpu_s(process: psutil.Process) -> float:
    tree = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    gone = process.cpu_times()
    return sum(float(times.user + times.system) for times in tree) + gone.children_user + gone.children_system


@contextmanager
def _running(command: Sequence[str], folder: Path) -> Iterator[psutil.Process]:
    environment = os.environ | ENVIRONMENT | {"XDG_STATE_HOME": str(folder)}
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()


def _until(process: psutil.Process, folder: Path, is_so: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while not is_so():
        if process.status() == psutil.STATUS_ZOMBIE or time.monotonic() > deadline_s:
            raise RuntimeError(f"the server did not come up:\n{tail(folder / 'log')}")
        time.sleep(_POLL_S)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=START_TIMEOUT_S) as response:
            return bool(response.status == 200)
    except (urllib.error.HTTPError, urllib.error.URLError):
        return False


# --- clients -------------------------------------------------------------------------------------------------------


class _Asker:
    """A session that is asked for one stream at a time."""

    def __init__(self) -> None:
        self.wire: Wire
        self._ids: list[int] = []
        self._answer: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()

    async def attach(self, port: int) -> None:
        self.wire = await connect(port, self._on_message)
        self.wire.send(encode(m.Hello()))
        async with asyncio.timeout(START_TIMEOUT_S):
            await self._answer

    async def ask(self, prompt: list[int], new_tokens: int) -> list[int]:
        self._ids, self._answer = [], asyncio.get_running_loop().create_future()
        config = m.Sampling(max_new_tokens=new_tokens, do_sample=False)
        self.wire.send(encode(m.Inference(input_ids=prompt, config=config)))
        async with asyncio.timeout(TIMEOUT_S):
            return await self._answer

    def _on_message(self, message: bytes) -> None:
        event: dict[str, Any] = json.loads(message)
        match event["type"]:
            case "welcome":
                self._answer.set_result([])
            case "token":
                self._ids += event["ids"]
            case "done":
                self.wire.send(encode(m.Ack(seq=event["seq"])))
                self._answer.set_result(self._ids)
            case "error":
                self._answer.set_exception(SurpriseError(event))


async def _attach(port: int, count: int) -> list[_Asker]:
    askers = [_Asker() for _ in range(count)]
    await asyncio.gather(*(asker.attach(port) for asker in askers))
    return askers


async def _ask_all(askers: Sequence[_Asker], prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
    return await asyncio.gather(*(asker.ask(prompt, new_tokens) for asker, prompt in zip(askers, prompts, strict=True)))


def _completion(port: int, model: Path, prompt: list[int], new_tokens: int) -> list[int]:
    """The ids behind the words of a streamed completion."""
    body = {
        "model": str(model),
        "prompt": " ".join(f"w{number}" for number in prompt),
        "max_tokens": new_tokens,
        "stream": True,
    }
    connection = http.client.HTTPConnection(HOST, port, timeout=TIMEOUT_S)
    try:
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise SurpriseError(response.read())
        events = [json.loads(line[6:]) for line in response if line.startswith(b"data: {")]
    finally:
        connection.close()
    if failures := [event for event in events if "error" in event]:
        raise SurpriseError(failures)
    words = "".join(event["choices"][0]["text"] for event in events).split()
    return [int(word.removeprefix("w")) for word in words]

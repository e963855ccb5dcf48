"""The measured processes: the product as it is composed, around an engine that needs no time, and the yardstick."""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

import psutil
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as serve_websockets

from bench.engine import MODEL, Pace, PacedEngine, Vitals
from llmws.app import Parts, serve
from llmws.config import Config, override
from llmws.engine_api import ModelRef, PromptEvent, PromptJob, PromptReady
from llmws.places import Places
from llmws.protocol import messages as m
from llmws.store.memory import MemoryDisk, MemoryStore

HOST: Final = "127.0.0.1"
TIMEOUT_S: Final = 60
_POLL_S: Final = 0.005

StoreName = Literal["files", "memory"]
Settings = Mapping[str, Mapping[str, object]]
"""Values laid over those that a measured server has, as {section: {key: value}}."""


class Running(NamedTuple):
    """A server in a process of its own."""

    port: int
    process: psutil.Process
    questions: Connection
    token: str | None = None

    def cpu_s(self) -> float:
        """CPU of all its threads so far."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def rss_kib(self) -> float:
        """Its memory."""
        return float(self.process.memory_info().rss / 1024)

    def unique_kib(self) -> float:
        """Its memory that it shares with nobody."""
        return float(self.process.memory_full_info().uss / 1024)

    def vitals(self) -> Vitals:
        """What its engine has seen since the last question; only of the product."""
        self.questions.send(None)
        if not self.questions.poll(TIMEOUT_S):
            raise TimeoutError("the measured server does not answer")
        answer = self.questions.recv()
        assert isinstance(answer, Vitals)
        return answer


@contextmanager
def product(
    folder: Path,
    store: StoreName = "files",
    pace: Pace = Pace(),  # noqa: B008 - frozen
    settings: Settings = MappingProxyType({}),
) -> Iterator[Running]:
    """The product, with its state in a new folder; with `memory` its sessions are in none."""
    folder.mkdir()
    with _running(_serve_product, folder, store, pace, dict(settings)) as running:
        yield running


@contextmanager
def yardstick(folder: Path) -> Iterator[Running]:
    """A bare server of the `websockets` package that sends every message back: it parses frames, and nothing else."""
    folder.mkdir()
    with _running(_serve_echo, folder) as running:
        yield running


@contextmanager
def _running(serving: Callable[..., None], folder: Path, *arguments: object) -> Iterator[Running]:
    """Runs `serving(questions, folder, …)` in a fresh process until it has left a `ready.json`; kills it in the end."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serving, args=(theirs, folder, *arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        deadline_s = time.monotonic() + TIMEOUT_S
        while not (folder / "ready.json").exists():
            if not process.is_alive() or time.monotonic() > deadline_s:
                raise RuntimeError("the measured server did not start")
            time.sleep(_POLL_S)
        ready = json.loads((folder / "ready.json").read_bytes())
        token_file = ready.get("token_file")
        token = Path(token_file).read_text().strip() if token_file else None
        yield Running(ready["port"], psutil.Process(process.pid), ours, token)
    finally:
        process.kill()
        process.join()


def _serve_product(questions: Connection, folder: Path, store: StoreName, pace: Pace, settings: Settings) -> None:
    os.environ["XDG_STATE_HOME"] = str(folder)
    logging.disable(logging.WARNING)  # that nobody has to show a token, above all
    # Limits that nobody is to meet here: everyone is one principal, and asks as fast as can be.
    limits = {"max_sessions": 65_536, "requests_per_minute": 1_000_000}
    config = override(
        override(
            Config(),
            {
                "server": {"port": 0, "heartbeat_s": 3600},
                "auth": {"required": False},
                "model": {"name": MODEL.name},
                "limits": limits,
            },
        ),
        settings,
    )
    only = OneModel()
    parts = Parts(
        engine=PacedEngine(pace, questions),
        probe=only,
        prompts=IdPrompts(),
        models=only,
        store=MemoryStore(MemoryDisk()) if store == "memory" else None,
    )
    places = Places(folder / "var", folder / "models", folder / "var" / "models")
    serve(config, places, ready_file=folder / "ready.json", parts=parts)


def _serve_echo(questions: Connection, folder: Path) -> None:
    async def echo(connection: ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)

    async def live() -> None:
        # The pipe ends when the parent dies, however it does.
        asyncio.get_running_loop().add_reader(questions.fileno(), os._exit, 1)
        async with serve_websockets(echo, HOST, 0, compression=None, ping_interval=None) as server:
            draft = folder / "draft.json"
            draft.write_text(json.dumps({"port": next(iter(server.sockets)).getsockname()[1]}))
            draft.rename(folder / "ready.json")
            await server.serve_forever()

    asyncio.run(live())


class IdPrompts:
    """A prompt renderer for requests that bring token ids."""

    def start(self, deliver: Callable[[PromptEvent], None]) -> None:
        """See `PromptRenderer.start`."""
        self._deliver = deliver

    def render(self, job: PromptJob) -> None:
        """See `PromptRenderer.render`."""
        self._deliver(PromptReady(key=job.key, ids=job.input_ids or ()))

    def close(self) -> None:
        """See `PromptRenderer.close`."""


class OneModel:
    """A models folder that holds the engine's model, on a device that does not change."""

    def scan(self) -> list[ModelRef]:
        """See `ModelSource.scan`."""
        return [MODEL]

    def delete(self, name: str) -> None:
        """See `ModelSource.delete`."""

    def summary(self) -> m.DeviceSummary:
        """See `MemoryProbe.summary`."""
        return m.DeviceSummary(device="cpu", total_gb=1.0, free_gb=1.0)

    def resources(self, *_: object) -> m.Resources:
        """See `MemoryProbe.resources`."""
        raise AssertionError("nobody asks here")

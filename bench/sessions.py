"""The session path of the real product, measured on this machine. `make bench` runs it; about two minutes.

Owns what is measured and the table of figures; the verdict of a figure is a remark, never an exit status. Invariant:
a ratio compares processes that live side by side and are loaded in turn, by the same client, in the same run. CPU is
counted in seconds of the measured process, all threads, because the machine may be busy with other things.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import msgspec
import psutil
from msgspec.structs import replace
from websockets.asyncio.server import ServerConnection, serve

from llmws import __version__
from llmws.app import SystemClock, SystemEntropy, hub_settings
from llmws.config import Config, override
from llmws.engine.scripted import ScriptedEngine, Step, model_info
from llmws.engine_api import ModelRef, PromptEvent, PromptJob, PromptReady
from llmws.protocol import encode
from llmws.protocol import messages as m
from llmws.runtime.driver import Driver
from llmws.server.listen import Server, bind
from llmws.server.ports import Identity
from llmws.session import events as e
from llmws.session.hub import Hub
from llmws.store.folder import Site, create_session, open_session, prepare
from llmws.store.keys import load_keys
from llmws.store.memory import MemoryDisk, MemoryStore
from llmws.store.writer import FileStore
from llmws.store_api import Record, SessionMeta, SessionStore

ROOT: Final = Path(__file__).parents[1]
HOST: Final = "127.0.0.1"
TIMEOUT_S: Final = 60
POLL_S: Final = 0.001

STARTS: Final = 5
LOADS: Final = 3
SESSIONS: Final = 50
ROUNDS: Final = 7
ANSWER_TOKENS: Final = 2_048
SHORT_ANSWERS: Final = 4
ECHOES: Final = 1_000
REPLAYED: Final = 1_000
RESUMES: Final = 200
LINES: Final = 2_000
OPENINGS: Final = 30
CROWDS: Final = 3
IDLE: Final = 500
SHORT_TOKENS: Final = 16
PACKAGES: Final = ("websockets", "uvicorn", "msgspec", "cryptography")

MODEL: Final = ModelRef(name="scripted", path="models/scripted", location="/scripted", size_bytes=1, source="models")
WORDS: Final = tuple(Step(((1_000 + n, f" word{n % 1_000}"),)) for n in range(8_192))


# --- figures -------------------------------------------------------------------------------------------------------


class Figure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One measured quantity: the median of its runs, and what it is to reach."""

    name: str
    unit: str
    value: float
    low: float
    high: float
    runs: int
    bound: Literal["<=", ">="] | None = None
    target: float | None = None
    met: bool | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A run."""

    at: str
    host: str
    llmws: str
    commit: str | None
    versions: dict[str, str]
    load_average_before: tuple[float, float, float]
    took_s: float
    figures: list[Figure]


def figure(
    name: str, unit: str, runs: Sequence[float], *, at_most: float | None = None, at_least: float | None = None
) -> Figure:
    """The median of the runs, and whether it reaches its target."""
    value = rounded(statistics.median(runs))
    plain = Figure(name=name, unit=unit, value=value, low=rounded(min(runs)), high=rounded(max(runs)), runs=len(runs))
    if at_most is not None:
        return replace(plain, bound="<=", target=at_most, met=value <= at_most)
    if at_least is not None:
        return replace(plain, bound=">=", target=at_least, met=value >= at_least)
    return plain


def rounded(value: float) -> float:
    """Four significant digits: more would only be noise."""
    return float(f"{value:.4g}")


def table(figures: Sequence[Figure]) -> str:
    """The figures for people."""
    rows = [("figure", "measured", "range", "target", "")]
    for each in figures:
        spread = f"{each.low:g} - {each.high:g}" if each.runs > 1 else ""
        target = "" if each.target is None else f"{each.bound} {each.target:g} {each.unit}"
        verdict = {None: "", True: "met", False: "MISSED"}[each.met]
        rows.append((each.name, f"{each.value:g} {each.unit}", spread, target, verdict))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


# --- the measured processes ----------------------------------------------------------------------------------------


class Running(NamedTuple):
    """A server in a process of its own."""

    port: int
    process: psutil.Process

    def cpu_s(self) -> float:
        """CPU of all its threads so far."""
        times = self.process.cpu_times()
        return times.user + times.system


Tell = Callable[[int], None]


@contextmanager
def running(serving: Callable[..., Awaitable[None]], *arguments: object) -> Iterator[Running]:
    """Runs `serving(tell, *arguments)` in a fresh process, which `tell`s its port, and kills it in the end."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(serving, theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(TIMEOUT_S):
            raise TimeoutError("the measured server did not start")
        yield Running(ours.recv(), psutil.Process(process.pid))
    finally:
        process.kill()
        process.join()


def _run(serving: Callable[..., Awaitable[None]], pipe: Connection, *arguments: object) -> None:
    async def live() -> None:
        # The pipe ends when the parent dies, however it does.
        asyncio.get_running_loop().add_reader(pipe.fileno(), os._exit, 1)
        await serving(pipe.send, *arguments)

    asyncio.run(live())


async def serve_echo(tell: Tell) -> None:
    """The yardstick: a bare server of the `websockets` package that sends every message back."""

    async def echo(connection: ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)

    async with serve(echo, HOST, 0, compression=None, ping_interval=None) as server:
        tell(next(iter(server.sockets)).getsockname()[1])
        await server.serve_forever()


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
    """A models folder that holds the scripted model, on a device that does not change."""

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


async def serve_sessions(tell: Tell, folder: Path | None) -> None:
    """The product from store to socket, around an engine that needs no time. Without a folder it keeps all in memory.

    The composition is `llmws.app`'s, with the store chosen.
    """
    sys.setswitchinterval(0.0005)
    config = override(Config(), {"server": {"heartbeat_s": 3600}})
    store: SessionStore = MemoryStore(MemoryDisk())
    if folder is not None:
        store = FileStore(Site(state=folder, keys=load_keys(folder)))
    only = OneModel()
    driver = Driver(
        Hub(hub_settings(config, "bench"), clock=SystemClock(), entropy=SystemEntropy()),
        engine=ScriptedEngine(
            lambda request: WORDS[: request.max_new_tokens],
            models={MODEL.name: model_info(MODEL, max_context=65_536, max_running=SESSIONS)},
            interval_s=0,
        ),
        store=store,
        prompts=IdPrompts(),
        models=only,
        probe=only,
        remember_model=lambda _: None,
    )
    server = Server(
        listener=bind(HOST, 0),
        sessions=driver,
        authenticate=lambda _: Identity("bench", "user"),
        server=config.server,
        limits=config.limits,
    )
    driver.start()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.run())
        tasks.create_task(driver.run())
        await server.started.wait()
        driver.post(e.ModelsScanned((MODEL,)))
        driver.post(e.SelectModel(MODEL))
        tell(server.port)


# --- the client ----------------------------------------------------------------------------------------------------


class SurpriseError(Exception):
    """A server did what no figure can be made of."""


def expect(is_so: bool, what: str, found: object) -> None:  # noqa: FBT001 - reads like the `assert` that -O would drop
    """Stops the run where something else came."""
    if not is_so:
        raise SurpriseError(f"expected {what}, got {found!r}")


class Wire(asyncio.Protocol):
    """One WebSocket connection that takes as little CPU as can be, for the machine has few cores to share.

    Knows no fragments, no control frames and no message above 64 KiB: none comes here.
    """

    def __init__(self, on_message: Callable[[bytes], None]) -> None:
        self.on_message = on_message
        self.messages = 0
        self.message_bytes = 0
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asks for the upgrade."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(
            f"GET / HTTP/1.1\r\nHost: {HOST}:{transport.get_extra_info('peername')[1]}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        """Cuts out the messages."""
        data = self._rest + data
        at = 0
        if not self.opened.done():
            head, end, _ = data.partition(b"\r\n\r\n")
            if not end:
                self._rest = data
                return
            expect(head.startswith(b"HTTP/1.1 101"), "an upgrade", head)
            at = len(head) + len(end)
            self.opened.set_result(None)
        while len(data) >= at + 4:
            size, start = data[at + 1], at + 2
            if size == 126:
                size, start = int.from_bytes(data[at + 2 : at + 4]), at + 4
            if len(data) < start + size:
                break
            expect(data[at] == 0x81, "a text message", data[at:start])
            at = start + size
            self.messages += 1
            self.message_bytes += size
            self.on_message(data[start:at])
        self._rest = data[at:]

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends a wait for the upgrade."""
        if not self.opened.done():
            self.opened.set_exception(exc or ConnectionError("closed before the upgrade"))

    def send(self, message: bytes) -> None:
        """Sends a text message, masked with zeros."""
        size = len(message)
        head = bytes([0x81, 0x80 | size]) if size < 126 else b"\x81\xfe" + size.to_bytes(2)
        self.transport.write(head + bytes(4) + message)


async def connect(port: int, on_message: Callable[[bytes], None]) -> Wire:
    """Opens a connection."""
    async with asyncio.timeout(TIMEOUT_S):
        _, wire = await asyncio.get_running_loop().create_connection(lambda: Wire(on_message), HOST, port)
        await wire.opened
    return wire


class User:
    """Asks, reads the answer to its end, acknowledges it and asks again."""

    def __init__(self, *, acknowledges: bool = True) -> None:
        self.welcome: dict[str, Any] = {}
        self.done: dict[str, Any] = {}
        self.wire: Wire
        self._acknowledges = acknowledges
        self._left = self._tokens = 0
        self._idle: asyncio.Future[None]

    async def attach(self, port: int) -> None:
        """Begins a session."""
        self.wire = await connect(port, self._on_message)
        self._idle = asyncio.get_running_loop().create_future()
        self.wire.send(encode(m.Hello()))
        await self._until_idle()

    async def ask(self, times: int, tokens: int) -> None:
        """Has so many answers of so many tokens; returns when the last is acknowledged."""
        self._left, self._tokens = times, tokens
        self._idle = asyncio.get_running_loop().create_future()
        self._ask()
        await self._until_idle()

    async def _until_idle(self) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            await self._idle

    def _ask(self) -> None:
        config = m.Sampling(max_new_tokens=self._tokens)
        self.wire.send(encode(m.Inference(request_id=str(uuid.uuid4()), input_ids=[1, 2, 3], config=config)))

    def _on_message(self, message: bytes) -> None:
        if message.startswith(b'{"type":"token"'):
            return
        if message.startswith(b'{"type":"done"'):
            self.done = json.loads(message)
            self._left -= 1
            if self._acknowledges:
                self.wire.send(encode(m.Ack(seq=self.done["seq"])))
            if self._left:
                self._ask()
            elif not self._acknowledges:
                self._idle.set_result(None)
        elif message.startswith(b'{"type":"ack_received"'):
            if not self._left and json.loads(message)["seq"] == self.done["seq"]:
                self._idle.set_result(None)
        elif message.startswith(b'{"type":"welcome"'):
            self.welcome = json.loads(message)
            self._idle.set_result(None)
        else:
            expect(message.startswith(b'{"type":"start"'), "an event of an answer", message)


async def users(port: int, count: int) -> list[User]:
    """So many users with a session each, let in a few at a time."""
    everyone = [User() for _ in range(count)]
    for first in range(0, count, SESSIONS):
        await asyncio.gather(*(user.attach(port) for user in everyone[first : first + SESSIONS]))
    return everyone


class Echoes:
    """Clients of the yardstick, each with one message on its way at a time."""

    def __init__(self, wires: list[Wire]) -> None:
        self._wires = wires

    @classmethod
    async def connect(cls, port: int) -> Echoes:
        """As many connections as there are sessions."""
        return cls([await connect(port, lambda _: None) for _ in range(SESSIONS)])

    async def send(self, times: int, payload: bytes) -> int:
        """Sends the payload to and fro so many times on every connection; returns how many messages came back."""
        loop = asyncio.get_running_loop()
        done = [loop.create_future() for _ in self._wires]
        for wire, over in zip(self._wires, done, strict=True):
            wire.on_message = _again(wire, wire.messages + times, payload, over)
            wire.send(payload)
        async with asyncio.timeout(TIMEOUT_S):
            await asyncio.gather(*done)
        return times * len(self._wires)


def _again(wire: Wire, until: int, payload: bytes, over: asyncio.Future[None]) -> Callable[[bytes], None]:
    def on_message(_: bytes) -> None:
        if wire.messages < until:
            wire.send(payload)
        else:
            over.set_result(None)

    return on_message


# --- measurements --------------------------------------------------------------------------------------------------


def starting(folder: Path) -> list[Figure]:
    """The real command with the built-in model, on an empty state folder each time."""
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
        figure("  memory then (RSS)", "MiB", rss_mib),
        figure("start to built-in model ready", "s", ready_s),
    ]


def _poll(process: subprocess.Popen[bytes], is_so: Callable[[], bool], started_s: float) -> None:
    while not is_so():
        if process.poll() is not None or time.perf_counter() - started_s > TIMEOUT_S:
            raise RuntimeError("llmws serve did not come up")
        time.sleep(POLL_S)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            return bool(response.status == 200)
    except urllib.error.HTTPError:
        time.sleep(0.05)
        return False


async def streaming(folder: Path) -> list[Figure]:
    """Fifty streams at once through both stores and, in messages of the same size, through the yardstick.

    The server's CPU includes the scripted engine's thread. An engine in this hurry gives tokens faster than they can
    be sent, so most messages carry two.
    """
    with (
        running(serve_sessions, folder) as on_disk,
        running(serve_sessions, None) as in_memory,
        running(serve_echo) as yardstick,
    ):
        of_disk, of_memory = await users(on_disk.port, SESSIONS), await users(in_memory.port, SESSIONS)
        echoes = await Echoes.connect(yardstick.port)
        await answered(of_memory, 1, ANSWER_TOKENS)
        messages = await answered(of_disk, 1, ANSWER_TOKENS)
        payload = b"x" * (sum(user.wire.message_bytes for user in of_disk) // (messages + SESSIONS))
        await echoes.send(ECHOES // 10, payload)
        disk, echo, memory, short = [], [], [], []
        for _ in range(ROUNDS):
            disk.append(await _cpu_us(on_disk, answered(of_disk, 1, ANSWER_TOKENS)))
            echo.append(await _cpu_us(yardstick, echoes.send(ECHOES, payload)))
            memory.append(await _cpu_us(in_memory, answered(of_memory, 1, ANSWER_TOKENS)))
            short.append(await _cpu_us(on_disk, _short(of_disk)))
    return [
        figure("messages per CPU-second against an echo server", "x", _ratios(echo, disk), at_least=1.33),
        figure("CPU a message, file store against memory", "x", _ratios(disk, memory), at_most=1.25),
        figure("  file store", "us", disk),
        figure("  in-memory store", "us", memory),
        figure("  echo server", "us", echo),
        figure("  bytes in a message", "B", [len(payload)]),
        figure("CPU an answer of one token, file store", "us", short),
    ]


async def answered(everyone: list[User], times: int, tokens: int) -> int:
    """Everyone has so many answers of so many tokens; returns how many messages came."""
    before = sum(user.wire.messages for user in everyone)
    await asyncio.gather(*(user.ask(times, tokens) for user in everyone))
    return sum(user.wire.messages for user in everyone) - before


async def _short(everyone: list[User]) -> int:
    """Everyone has answers in which nearly all work is that of a request; returns how many."""
    await answered(everyone, SHORT_ANSWERS, 1)
    return len(everyone) * SHORT_ANSWERS


async def _cpu_us(server: Running, load: Awaitable[int]) -> float:
    """The server's CPU for each of what the load counts."""
    before_s = server.cpu_s()
    count = await load
    return (server.cpu_s() - before_s) * 1e6 / count


def _ratios(of: list[float], to: list[float]) -> list[float]:
    return [one / other for one, other in zip(of, to, strict=True)]


async def resuming(folder: Path) -> list[Figure]:
    """A client that was cut comes back for the last thousand events of its session."""
    with running(serve_sessions, folder) as server:
        user = User(acknowledges=False)
        await user.attach(server.port)
        await user.ask(1, 6 * REPLAYED)
        user.wire.transport.abort()
        head = user.done["seq"]
        hello = encode(
            m.Hello(
                session_id=user.welcome["session_id"],
                resume=m.Position(epoch=user.done["epoch"], last_seq=head - REPLAYED),
            )
        )
        before_s = server.cpu_s()
        times_ms = [await _resumed(server.port, hello) * 1e3 for _ in range(RESUMES)]
        cpu_ms = (server.cpu_s() - before_s) * 1e3 / RESUMES
    return [
        figure("resume of 1,000 events", "ms", times_ms),
        figure("  p99", "ms", [statistics.quantiles(times_ms, n=100)[98]], at_most=25.0),
        figure("  CPU of the server", "ms", [cpu_ms]),
    ]


async def _resumed(port: int, hello: bytes) -> float:
    """Seconds from sending the hello to having the session's last event."""
    over: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def on_message(message: bytes) -> None:
        if message.startswith(b'{"type":"done"'):
            ended_s = time.perf_counter()
            expect(wire.messages == 1 + REPLAYED, "a welcome and the events", wire.messages)
            over.set_result(ended_s - started_s)

    wire = await connect(port, on_message)
    started_s = time.perf_counter()
    wire.send(hello)
    async with asyncio.timeout(TIMEOUT_S):
        took_s = await over
    wire.transport.abort()
    return took_s


def reopening(folder: Path) -> list[Figure]:
    """A new process opens a session that an earlier one left unfinished."""
    site = Site(state=folder, keys=load_keys(folder))
    prepare(site)
    whole_ms, short_ms = _opening_ms(site, LINES), _opening_ms(site, LINES // 10)
    slope_us = (statistics.median(whole_ms) - statistics.median(short_ms)) * 1e3 / (LINES - LINES // 10)
    return [
        figure("opening 2,000 lines after a restart", "ms", whole_ms, at_most=10 + LINES * 0.01),
        figure("  a line more", "us", [slope_us]),
    ]


def _opening_ms(site: Site, lines: int) -> list[float]:
    session_id = str(uuid.uuid4())
    records = [Record(n=n, kind="event", value=encode(_token(n)), seq=n) for n in range(1, lines + 1)]
    written = create_session(site, session_id, 1, SessionMeta(owner="bench", created_s=0, last_activity_s=0))
    written.logs["buffer"].append(records)
    written.close(None)
    times_ms = []
    for _ in range(OPENINGS):
        started_s = time.perf_counter()
        opened = open_session(site, session_id)
        times_ms.append((time.perf_counter() - started_s) * 1e3)
        if opened is None or len(opened[1].records) != lines:
            raise SurpriseError("expected every line that was written")
        opened[0].release()
    return times_ms


def _token(n: int) -> m.Token:
    return m.Token(seq=n, epoch=1, request_id=str(uuid.UUID(int=7)), index=n, data=f" word{n % 1_000}", ids=[n])


async def idling(folder: Path) -> list[Figure]:
    """What a session costs whose client is connected and says nothing: a new one, and one that was used."""
    new_kib, used_kib = [], []
    for number in range(CROWDS):
        state = folder / f"idle-{number}"
        state.mkdir()
        with running(serve_sessions, state) as server:
            await answered(await users(server.port, SESSIONS), 1, SHORT_TOKENS)
            before_bytes = server.process.memory_info().rss
            crowd = await users(server.port, IDLE)
            new_kib.append((server.process.memory_info().rss - before_bytes) / 1024 / IDLE)
            for first in range(0, IDLE, SESSIONS):
                await answered(crowd[first : first + SESSIONS], 1, SHORT_TOKENS)
            used_kib.append((server.process.memory_info().rss - before_bytes) / 1024 / IDLE)
    return [
        figure("idle connection with a new session", "KiB", new_kib, at_most=32.0),
        figure("  after one short answer", "KiB", used_kib),
    ]


# --- the run -------------------------------------------------------------------------------------------------------


def measure(folder: Path) -> list[Figure]:
    """Everything, one after the other, each in an empty folder of its own."""
    figures: list[Figure] = []
    for stage in (starting, streaming, resuming, reopening, idling):
        print(f"{stage.__name__} …", file=sys.stderr, flush=True)
        place = folder / stage.__name__
        place.mkdir()
        found = stage(place)
        figures += found if isinstance(found, list) else asyncio.run(found)
    return figures


def main() -> None:
    """Measures, writes `bench/results/<date>-<host>.json` and prints the table."""
    parser = argparse.ArgumentParser(description="Measures the session path of this machine.")
    parser.add_argument("--host", default=f"{len(os.sched_getaffinity(0))}-core-cpu", help="a neutral name of it")
    options = parser.parse_args()
    started = datetime.now(UTC)
    load = os.getloadavg()
    with tempfile.TemporaryDirectory(dir=ROOT / "var", prefix="bench-") as folder:  # on the disk that sessions are on
        figures = measure(Path(folder))
    report = Report(
        at=started.isoformat(timespec="seconds"),
        host=options.host,
        llmws=__version__,
        commit=_commit(),
        versions={"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        load_average_before=load,
        took_s=round((datetime.now(UTC) - started).total_seconds(), 1),
        figures=figures,
    )
    path = ROOT / "bench" / "results" / f"{started.date()}-{options.host}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    print(table(figures))
    print(f"\n{path.relative_to(ROOT)}, {report.took_s:g} s, load before {load[0]:.1f}")


def _commit() -> str | None:
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


if __name__ == "__main__":
    main()

"""Where a transcript is played: on the pure hub behind a door, and on a real server process over a real WebSocket.

Both offer the same calls, so a transcript cannot tell them apart. The engine moves only when a transcript says `step`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import deque
from pathlib import Path
from typing import Any, Protocol

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from llmws.access import Identity
from llmws.engine.scripted import HELLO, ScriptedEngine, Step, model_info
from llmws.engine_api import ModelRef, PromptFailed, PromptJob, PromptReady
from llmws.protocol import ErrorCode
from llmws.protocol import messages as m
from llmws.server.auth import Denied
from llmws.server.door import Accepted, Close, Door, Forward, Reply
from llmws.session import events as e
from llmws.session.hub import Hub
from llmws.session.state import HubSettings
from llmws.store.memory import MemoryDisk, MemoryStore
from llmws.store_api import Append, Compact, Create, Delete, DropBuffer, Keep, Open, Read
from llmws.store_api import Close as CloseSession
from tests.support.paths import ROOT

TOKEN = "llmws_test_token"
GUIDE = ModelRef(
    name="llmws-guide", path="models/llmws-guide", location="/models/llmws-guide", size_bytes=1000, source="models"
)
OTHER = ModelRef(name="other", path="var/models/other", location="/var/other", size_bytes=5, source="var")
THIRD = ModelRef(name="third", path="models/third", location="/models/third", size_bytes=9, source="models")
MAX_CONTEXT = 64
TIMEOUT_S = 10


class Client(Protocol):
    """One connection, seen from the client."""

    async def send(self, message: dict[str, Any] | str | bytes) -> None: ...

    async def receive(self) -> dict[str, Any]: ...

    async def closed(self) -> int: ...

    async def cut(self) -> None: ...


class Stage(Protocol):
    """A server under test."""

    token: str | None

    async def connect(self) -> Client: ...

    async def step(self) -> None:
        """Lets every running request go one script step further."""

    async def restart(self) -> None:
        """Kills the server as `kill -9` does, and starts it again on the same disk."""

    async def has_buffer(self, session_id: str) -> bool: ...

    async def damage_log(self, session_id: str) -> None:
        """Flips a byte in the middle of the session's log; the server must be down or about to restart."""

    async def hello_timeout(self) -> None:
        """Lets the time for a hello pass."""


# --- the hub -------------------------------------------------------------------------------------------------------


class ManualClock:
    def __init__(self) -> None:
        self.now_s = 1_000.0
        self.wall_s = 1_700_000_000.0

    def monotonic(self) -> float:
        return self.now_s

    def time(self) -> float:
        return self.wall_s + self.now_s


class CountingEntropy:
    def __init__(self) -> None:
        self.count = 0

    def new_id(self) -> str:
        self.count += 1
        return f"00000000-0000-4000-8000-{self.count:012d}"

    def new_seed(self) -> int:
        return 7


class HubClient:
    def __init__(self, stage: HubStage, number: int) -> None:
        self.stage = stage
        self.number = number
        self.frames: deque[bytes] = deque()
        self.close_code: int | None = None
        self.door = Door(identify=stage.identify, needed="user", max_message_bytes=1 << 20, clock=stage.clock.monotonic)

    async def send(self, message: dict[str, Any] | str | bytes) -> None:
        if self.close_code is not None:
            return
        text = not isinstance(message, bytes)
        data = message if isinstance(message, bytes) else _text(message).encode()
        for outcome in self.door.receive(data, text=text):
            self.take(outcome)

    def take(self, outcome: Reply | Accepted | Forward | Close) -> None:
        match outcome:
            case Reply(frame=frame):
                self.frames.append(frame)
            case Accepted(hello=hello, identity=identity):
                self.stage.post(e.Attach(self.number, identity.principal, "admin", hello))
            case Forward(message=message):
                self.stage.post(e.Receive(self.number, message))
            case Close(code=code):
                self.close_code = code

    async def receive(self) -> dict[str, Any]:
        assert self.frames, f"nothing came (closed: {self.close_code})"
        return json.loads(self.frames.popleft())

    async def closed(self) -> int:
        assert self.close_code is not None, f"still open, with {list(self.frames)}"
        return int(self.close_code)

    async def cut(self) -> None:
        self.stage.post(e.Detach(self.number))


class HubStage:
    """Hub, door, in-memory store and scripted engine, all synchronous."""

    def __init__(
        self,
        *,
        token: str | None = TOKEN,
        models: tuple[ModelRef, ...] = (GUIDE,),
        selected: ModelRef | None = GUIDE,
        broken: dict[str, str] | None = None,
        load_on_demand: bool = True,
        max_running: int = 4,
        max_resident: int = 3,
        max_context: int = MAX_CONTEXT,
        **settings: Any,
    ) -> None:
        self.settings = settings
        self.max_running = max_running
        self.max_resident = max_resident
        self.max_context = max_context
        self.uptime_s = 0.0
        self.token = token
        self.models = models
        self.selected = selected
        self.broken = {} if broken is None else broken
        self.load_on_demand = load_on_demand
        self.is_store_stuck = False
        self.is_engine_stuck = False
        self.scans_fail = False
        self.disk = MemoryDisk()
        self.clock = ManualClock()
        self.entropy = CountingEntropy()
        self.clients: dict[int, HubClient] = {}
        self.start()

    def start(self) -> None:
        settings = HubSettings(
            limits=m.Limits(max_message_bytes=1 << 20, max_queue=16),
            heartbeat=m.Heartbeat(interval_s=20),
            server=m.ServerInfo(node_id="node", version="0"),
            generation_defaults=m.Sampling(max_new_tokens=100, do_sample=True, temperature=0.7),
            load_on_demand=self.load_on_demand,
            uptime_s=self.uptime_s,
            **self.settings,
        )
        self.hub = Hub(settings, clock=self.clock, entropy=self.entropy)
        self.engine = scripted_engine(
            self.broken,
            max_running=self.max_running,
            max_resident=self.max_resident,
            max_context=self.max_context,
        )
        self.engine.start(lambda: None)
        self.for_engine: deque[e.Submit | e.CancelGeneration | e.LoadModel | e.WithdrawLoad] = deque()
        self.store = MemoryStore(self.disk, now_ms=lambda: int(self.clock.time() * 1000))
        self.store.start(lambda: None)
        self.inbox: deque[e.HubEvent] = deque()
        if self.selected is not None:
            self.post(e.SelectModel(self.selected))
        self.post(e.ModelsScanned(self.models))
        self.post(e.UnfinishedFound(tuple(self.store.unfinished())))
        self.store.survey()

    def identify(self, token: str | None) -> Identity | Denied:
        return Identity("local", "admin") if self.token in (None, token) else Denied()

    def post(self, event: e.HubEvent) -> None:
        self.inbox.append(event)
        while self.inbox:
            for command in self.hub.handle(self.inbox.popleft()):
                self.execute(command)
            if not self.is_store_stuck:
                self.inbox.extend(self.store.take())
            if not self.is_engine_stuck:
                self.reach_engine()

    def reach_engine(self) -> None:
        while self.for_engine:
            match self.for_engine.popleft():
                case e.Submit(request=request):
                    self.engine.submit(request)
                case e.CancelGeneration(key=key):
                    self.engine.cancel(key)
                case e.LoadModel(model=model, again=again):
                    self.engine.load(model, again=again)
                case e.WithdrawLoad(name=name):
                    self.engine.withdraw(name)
        self.inbox.extend(self.engine.take())

    def execute(self, command: e.HubCommand) -> None:
        match command:
            case e.Send(connection=number, frames=frames):
                self.clients[number].frames.extend(frames)
            case e.Disconnect(connection=number, code=code):
                self.clients[number].close_code = code
            case e.Submit() | e.CancelGeneration() | e.LoadModel() | e.WithdrawLoad():
                self.for_engine.append(command)
            case e.ScanModels():
                self.inbox.append(e.ScanFailed() if self.scans_fail else e.ModelsScanned(self.models))
            case e.Inspect(connection=number, message=message):
                self.inbox.append(e.Answer(number, inspected(message)))
            case PromptJob():
                self.inbox.append(rendered(command))
            case Create() | Open() | Append() | Read() | DropBuffer() | Compact() | Keep() | CloseSession() | Delete():
                self.store.submit(command)
            case e.SaveUptime(uptime_s=uptime_s):
                self.uptime_s = uptime_s
            case e.RememberModel(name=name):
                self.selected = next(each for each in self.models if each.name == name)

    async def connect(self) -> HubClient:
        client = HubClient(self, len(self.clients) + 1)
        self.clients[client.number] = client
        return client

    async def step(self) -> None:
        self.engine.step()
        self.post(e.Tick())

    async def restart(self) -> None:
        self.store.crash()
        self.clock.now_s += 1
        self.start()

    async def has_buffer(self, session_id: str) -> bool:
        return session_id in self.store.unfinished()

    async def damage_log(self, session_id: str) -> None:
        self.disk.damaged.add(session_id)

    async def hello_timeout(self) -> None:
        for client in self.clients.values():
            if not client.door.accepted:
                client.take(client.door.timed_out())

    async def stop(self) -> None:
        self.engine.close()


# --- the socket ----------------------------------------------------------------------------------------------------


class SocketClient:
    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    async def send(self, message: dict[str, Any] | str | bytes) -> None:
        with contextlib.suppress(ConnectionClosed):
            await self.connection.send(message if isinstance(message, bytes) else _text(message))

    async def receive(self) -> dict[str, Any]:
        async with asyncio.timeout(TIMEOUT_S):
            return json.loads(await self.connection.recv())

    async def closed(self) -> int:
        with contextlib.suppress(ConnectionClosed):
            async with asyncio.timeout(TIMEOUT_S):
                frame = await self.connection.recv()
            raise AssertionError(f"still open, with {frame!r}")
        assert self.connection.close_code is not None
        return self.connection.close_code

    async def cut(self) -> None:
        self.connection.transport.abort()


class SocketStage:
    """A real server process with a real store; its scripted engine is stepped through its standard input."""

    def __init__(self, folder: Path, *, token: str | None = TOKEN) -> None:
        self.folder = folder
        self.token = token

    async def start(self) -> None:
        ready = self.folder / "ready.json"
        ready.unlink(missing_ok=True)
        arguments = [sys.executable, str(ROOT / "tests/support/scripted_server.py"), str(self.folder)]
        self.process = await asyncio.create_subprocess_exec(
            *arguments,
            *(["--no-auth"] if self.token is None else []),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "XDG_STATE_HOME": str(self.folder / "xdg"), "PYTHONPATH": str(ROOT)},
        )
        async with asyncio.timeout(30):
            assert self.process.stdout is not None
            line = await self.process.stdout.readline()
        assert line, "the server did not start"
        self.ready = json.loads(ready.read_bytes())
        if self.token is not None:
            self.token = Path(self.ready["token_file"]).read_text().strip()

    async def connect(self) -> SocketClient:
        return SocketClient(await connect(self.ready["ws_url"], compression=None))

    async def step(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"step\n")
        await self.process.stdout.readline()

    async def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        await self.process.wait()

    async def restart(self) -> None:
        await self.kill()
        await self.start()

    async def has_buffer(self, session_id: str) -> bool:
        return (self.folder / "state" / "sessions" / session_id / "buffer.jsonl").exists()

    async def damage_log(self, session_id: str) -> None:
        path = self.folder / "state" / "sessions" / session_id / "buffer.jsonl"
        lines = path.read_bytes().split(b"\n")
        middle = len(lines) // 2
        lines[middle] = lines[middle][:30] + bytes([lines[middle][30] ^ 1]) + lines[middle][31:]
        path.write_bytes(b"\n".join(lines))

    async def hello_timeout(self) -> None:
        """The server process was given half a second for it."""

    async def stop(self) -> None:
        if self.process.returncode is None:
            await self.kill()


# --- both ----------------------------------------------------------------------------------------------------------


def scripted_engine(
    broken: dict[str, str] | None = None,
    *,
    max_running: int = 4,
    max_resident: int = 3,
    max_context: int = MAX_CONTEXT,
) -> ScriptedEngine:
    """`Hello` to everybody, but numbers to whoever asks for them. Every model but the guide speaks its own way."""

    def script(request):
        accent = "" if request.model in (None, GUIDE) else request.model.name
        numbers = tuple(Step(((number, f"{number}{accent} "),)) for number in range(1, 101))
        hello = (Step(((1, f"He{accent}"),)), *HELLO[1:])
        return numbers if request.prompt_ids == (9,) else hello

    models = {
        each.name: model_info(each, max_context=max_context, max_running=max_running) for each in (GUIDE, OTHER, THIRD)
    }
    return ScriptedEngine(script, models=models, broken=broken, max_resident=max_resident)


def rendered(job: PromptJob) -> PromptReady | PromptFailed:
    """Two ids for a turn; `input_ids` as they are; too long from the context's size on."""
    ids = job.input_ids or tuple(4 for turn in job.turns for _ in turn.content.split())
    if len(ids) >= job.max_context:
        return PromptFailed(key=job.key, code=ErrorCode.CONTEXT_TOO_LONG, message="too long")
    return PromptReady(key=job.key, ids=ids)


class ScriptedPrompts:
    """A prompt renderer without a tokenizer."""

    def start(self, deliver):
        self.deliver = deliver

    def render(self, job):
        self.deliver(rendered(job))

    def close(self):
        pass


def inspected(message: m.Message) -> m.Message:
    """What the runtime would answer."""
    entry = GUIDE.to_entry(loaded=True)
    match message:
        case m.ListModels():
            return m.ModelsList(models=[entry])
        case m.GetResources():
            return m.Resources(
                cuda=None,
                model=m.ModelSummary(name=GUIDE.name, path=GUIDE.path, vision=False),
                available_models=[entry],
                engine=m.EngineResources(running=0, queued=0, tokens_per_s=0.0),
                host=m.HostResources(cpu=2, ram_gb=24.0),
            )
        case _:
            return m.Error(code=ErrorCode.BAD_REQUEST, message="not a model name", retryable=False)


def _text(message: dict[str, Any] | str) -> str:
    return message if isinstance(message, str) else json.dumps(message)

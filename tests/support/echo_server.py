"""Sessions that echo, a server that listens before them, and a client that can misbehave.

`serve` and `running` are fixtures, for the conftest of a folder whose tests want them.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from llmws.access import Identity
from llmws.config import LimitsSection, ServerSection
from llmws.protocol import encode
from llmws.protocol import messages as m
from llmws.server import listen
from llmws.server.ports import Sink
from tests.support.credentials import FixedCredentials
from tests.support.frames import BINARY, CLOSE, PING, TEXT, frame, reset_at_end

TOKEN = "llmws_test_token"
TIMEOUT_S = 10.0


class EchoSessions:
    """Answers an attach with the hello and a message with itself, and writes down every call."""

    def __init__(self) -> None:
        self.ready = True
        self.calls: list[tuple[object, ...]] = []
        self.sinks: dict[int, Sink] = {}
        self._changed = asyncio.Event()

    def attach(self, sink: Sink, principal: str, role: str, hello: m.Hello) -> int:
        number = len(self.sinks) + 1
        self.sinks[number] = sink
        self._note("attach", number, principal, role)
        sink.try_send(encode(hello))
        return number

    def receive(self, connection: int, message: m.ClientMessage) -> None:
        self._note("receive", connection, message)
        self.sinks[connection].try_send(encode(message))

    def drained(self, connection: int) -> None:
        self._note("drained", connection)

    def detach(self, connection: int) -> None:
        self._note("detach", connection)

    def _note(self, *call: object) -> None:
        self.calls.append(call)
        self._changed.set()

    async def saw(self, *call: object, times: int = 1) -> None:
        """Waits until the call was made so many times."""
        async with asyncio.timeout(TIMEOUT_S):
            while self.calls.count(call) < times:
                self._changed.clear()
                await self._changed.wait()


@dataclass
class RawClient:
    """A WebSocket client of bare frames: it answers nothing by itself."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)

    async def upgrade(self, port: int, *, path: str = "/v1/ws", headers: Mapping[str, str] | None = None) -> None:
        """Sends the upgrade request and reads the answer's head."""
        values = {
            "Host": f"127.0.0.1:{port}",
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
            **(headers or {}),
        }
        lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in values.items()), "", ""]
        self.writer.write("\r\n".join(lines).encode("latin-1"))
        async with asyncio.timeout(TIMEOUT_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status_line, *fields = head.rstrip().split("\r\n")
        self.status = int(status_line.split(" ")[1])
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in fields)}

    def send(self, payload: str | bytes, *, opcode: int | None = None, fin: bool = True, mask: bool = True) -> None:
        """Sends one frame."""
        data = payload.encode() if isinstance(payload, str) else payload
        if opcode is None:
            opcode = TEXT if isinstance(payload, str) else BINARY
        self.writer.write(frame(data, opcode=opcode, fin=fin, mask=mask))

    async def receive(self) -> tuple[int, bytes]:
        """The next frame's opcode and payload."""
        async with asyncio.timeout(TIMEOUT_S):
            first, second = await self.reader.readexactly(2)
            size = second & 0x7F
            if size == 126:
                (size,) = struct.unpack("!H", await self.reader.readexactly(2))
            elif size == 127:
                (size,) = struct.unpack("!Q", await self.reader.readexactly(8))
            return first & 0x0F, await self.reader.readexactly(size)

    async def text(self) -> str:
        """The payload of the next frame, which must be text."""
        opcode, payload = await self.receive()
        assert opcode == TEXT, (opcode, payload)
        return payload.decode()

    async def close_code(self) -> int:
        """The code of the close frame, which must be next but for pings; answers it."""
        opcode = PING
        while opcode == PING:
            opcode, payload = await self.receive()
        assert opcode == CLOSE, (opcode, payload)
        (code,) = struct.unpack("!H", payload[:2])
        self.send(payload, opcode=CLOSE)
        return int(code)

    async def at_end(self) -> bool:
        """Reads until the server has ended the connection, by FIN or by RST."""
        async with asyncio.timeout(TIMEOUT_S):
            try:
                await self.reader.read()
            except ConnectionResetError:
                return True
        return self.reader.at_eof()

    def reset(self) -> None:
        """Ends the connection by RST."""
        reset_at_end(self.writer.get_extra_info("socket"))
        self.writer.transport.abort()


@dataclass
class Running:
    """A server that listens."""

    server: listen.Server
    sessions: EchoSessions
    task: asyncio.Task[None]
    clients: list[RawClient]
    credentials: FixedCredentials
    token: str = TOKEN

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/v1/ws"

    async def connect(self, *, receive_buffer_bytes: int | None = None) -> RawClient:
        """A TCP connection without a word."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if receive_buffer_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        reader, writer = await asyncio.open_connection(sock=sock, limit=2**16)
        client = RawClient(reader, writer)
        self.clients.append(client)
        return client

    async def upgraded(self, **how: Any) -> RawClient:
        """A WebSocket before its hello."""
        client = await self.connect()
        await client.upgrade(self.port, **how)
        return client

    async def attached(self, *, receive_buffer_bytes: int | None = None) -> RawClient:
        """A WebSocket after its hello."""
        client = await self.connect(receive_buffer_bytes=receive_buffer_bytes)
        await client.upgrade(self.port)
        client.send(f'{{"auth":"{self.token}"}}')
        assert '"hello"' in await client.text()
        return client


Serve = Callable[..., Awaitable[Running]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts servers; stops them after the test and sees that they leave nothing behind."""
    running: list[Running] = []

    async def start(
        *,
        server: ServerSection | None = None,
        limits: LimitsSection | None = None,
        auth: bool = True,
        tls: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> Running:
        sessions = EchoSessions()
        credentials = FixedCredentials({TOKEN if auth else None: Identity("local", "admin", "first")})
        door = listen.Server(
            listener=listen.bind("127.0.0.1", 0),
            sessions=sessions,
            credentials=credentials,
            server=server or ServerSection(),
            limits=limits or LimitsSection(),
            tls=tls,
            clock=clock,
        )
        task = asyncio.create_task(door.run())
        async with asyncio.timeout(TIMEOUT_S):
            await door.started.wait()
        running.append(Running(door, sessions, task, [], credentials=credentials))
        return running[-1]

    yield start
    for one in running:
        for client in one.clients:
            client.writer.transport.abort()
        one.server.stop()
    for one in running:
        with contextlib.suppress(asyncio.CancelledError):
            async with asyncio.timeout(TIMEOUT_S):
                await one.task
        attached = sorted(call[1:2] for call in one.sessions.calls if call[0] == "attach")
        detached = sorted(call[1:2] for call in one.sessions.calls if call[0] == "detach")
        assert detached == attached
        assert one.server.connections == 0


@pytest.fixture
async def running(serve: Serve) -> Running:
    """One server with the default limits."""
    return await serve()

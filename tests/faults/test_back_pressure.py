"""What is slow holds back what feeds it, and nothing else: a stuck disk, clients that do not read, clients that die."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import socket
import statistics
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect

from llmws.engine.mailbox import CAPACITY
from llmws.runtime.backlog import MAX_BYTES
from tests.faults.spoken import spoken
from tests.faults.streaming_server import StreamingServer, running
from tests.support.echo_server import RawClient
from tests.support.frames import TEXT, frame

TIMEOUT_S = 60


@pytest.fixture
def server(tmp_path: Path) -> Iterator[StreamingServer]:
    with running(tmp_path, "--steered") as server:
        yield server


def ask(size_bytes: int, count: int, *, request_id: str = "a") -> str:
    config = {"max_new_tokens": count, "seed": 1}
    return json.dumps({"type": "inference", "request_id": request_id, "input_ids": [size_bytes], "config": config})


class Reader:
    """A client that reads, and checks that nothing is missing or out of order."""

    def __init__(self, line: ClientConnection) -> None:
        self.line = line
        self.welcome: dict[str, Any] = {}
        self.last_seq = 0
        self.parts: list[str] = []

    async def next(self) -> dict[str, Any]:
        async with asyncio.timeout(TIMEOUT_S):
            message = json.loads(await self.line.recv())
        if "seq" in message and "epoch" in message:
            assert message["seq"] == self.last_seq + 1
            self.last_seq = message["seq"]
            self.parts.append(message.get("data", ""))
        return message

    async def until(self, kind: str) -> dict[str, Any]:
        while (message := await self.next())["type"] != kind:
            pass
        return message

    async def whole(self) -> str:
        """The text, when it has come."""
        done = await self.until("done")
        text = "".join(self.parts)
        self.parts.clear()
        assert done["text_sha256"] == hashlib.sha256(text.encode()).hexdigest()
        return text


class Lines:
    """The connections of a test."""

    def __init__(self, server: StreamingServer) -> None:
        self._server = server
        self._readers: list[Reader] = []
        self._raws: list[RawClient] = []

    async def attach(self, **hello: Any) -> Reader:
        reader = Reader(await connect(self._server.ws_url, compression=None, max_size=2**23))
        self._readers.append(reader)
        await reader.line.send(json.dumps({"type": "hello", **hello}))
        reader.welcome = await reader.until("welcome")
        return reader

    async def raw(self) -> tuple[RawClient, str]:
        """A client of bare frames after its hello, with little room for what it does not read; its session's id."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self._server.port))
        client = RawClient(*await asyncio.open_connection(sock=sock, limit=2**14))
        self._raws.append(client)
        await client.upgrade(self._server.port)
        client.send("{}")
        return client, json.loads(await client.text())["session_id"]

    async def cut(self) -> None:
        for reader in self._readers:
            reader.line.transport.abort()
        for raw in self._raws:
            raw.writer.transport.abort()
        await asyncio.sleep(0)


@pytest.fixture
async def lines(server: StreamingServer) -> AsyncIterator[Lines]:
    lines = Lines(server)
    yield lines
    await lines.cut()


async def settled_steps(server: StreamingServer) -> int:
    """The engine's steps, once it stands still."""
    steps, before = server.tell("steps"), -1
    async with asyncio.timeout(TIMEOUT_S):
        while steps != before:
            await asyncio.sleep(0.25)  # a step takes a millisecond
            steps, before = server.tell("steps"), steps
    return steps


async def test_a_stuck_disk_stops_the_engine_and_nobody_else(server: StreamingServer, lines: Lines) -> None:
    """The engine stops after what may wait for the disk; pings are answered, others come in; then all goes on."""
    size_bytes, count = 16_384, 450
    reader, other = await lines.attach(), await lines.attach()
    await reader.line.send(ask(size_bytes, count))
    await reader.until("token")
    server.tell("stick")
    before = server.tell("steps")
    await settled_steps(server)
    stopped = await settled_steps(server)

    # What was on its way when it stuck, what may wait unwritten, and the mailbox with a step before it.
    assert stopped - before <= MAX_BYTES // size_bytes + 2 * (CAPACITY + 1) + 1
    assert stopped < count
    await other.line.send('{"type":"ping"}')
    assert (await other.next())["type"] == "pong"
    assert (await lines.attach()).welcome["status"] == "new"
    await reader.line.send('{"type":"ping"}')
    await reader.until("pong")
    assert server.tell("steps") == stopped
    server.tell("free")

    assert await reader.whole() == spoken(count, size_bytes)


async def test_clients_that_never_read_cost_their_log_files_and_no_memory(
    server: StreamingServer, lines: Lines
) -> None:
    """Their generations go on, others stream beside them, and they can still fetch all of it."""
    size_bytes, count, crowd = 512, 1200, 3
    beside = await lines.attach()
    used_bytes = []
    for number in range(1 + crowd):
        deaf, session_id = await lines.raw()
        deaf.writer.transport.pause_reading()
        deaf.send(ask(size_bytes, count))
        await beside.line.send(ask(size_bytes, count, request_id=f"r{number}"))
        assert await beside.whole() == spoken(count, size_bytes)
        await settled_steps(server)
        used_bytes.append(server.own_bytes)
    # What such streams take of memory in passing was taken by the first.
    each_bytes = statistics.median(after - before for before, after in itertools.pairwise(used_bytes))
    late = await lines.attach(session_id=session_id, mode="observe")

    assert await late.whole() == spoken(count, size_bytes)
    assert each_bytes <= 256 * 1024 < size_bytes * count
    print(f"{each_bytes / 1024:.0f} KiB for {size_bytes * count // 1024} KiB that nobody reads")


async def test_a_client_that_dies_in_mid_frame_is_missed_by_nobody(server: StreamingServer, lines: Lines) -> None:
    """Fifty streams; one connection ends by RST, half a frame sent in either direction, and comes back."""
    size_bytes, count = 2048, 60
    readers = [await lines.attach() for _ in range(49)]
    dying, session_id = await lines.raw()
    for reader in readers:
        await reader.line.send(ask(size_bytes, count))
    dying.send(ask(size_bytes, count))
    await dying.reader.readexactly(3 * size_bytes)
    dying.writer.write(frame(b"x" * 100, opcode=TEXT)[:50])
    dying.reset()
    texts = await asyncio.gather(*(reader.whole() for reader in readers))
    back = await lines.attach(session_id=session_id)

    assert set(texts) == {spoken(count, size_bytes)}
    assert await back.whole() == spoken(count, size_bytes)

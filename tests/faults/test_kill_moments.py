"""`kill -9` at the worst moments: while a log is compacted or dropped, twice in a request, just after an end.

The engine says what its script says, so a start takes half a second and many kills fit; `test_kill_server.py` kills a
server with a real model. Every event that a client ever gets goes through `ModelClient`, which fails at the first one
that is missing, doubled, or says something else than before.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.faults.streaming_server import StreamingServer
from tests.support.model_client import ModelClient, Story

SIZE_BYTES = 1024
COUNT = 400
ANSWER = "".join(str(number % 10) * SIZE_BYTES for number in range(COUNT))
TIMEOUT_S = 60


class User:
    """One session whose answers are followed over any number of connections."""

    def __init__(self, server: StreamingServer) -> None:
        self.server = server
        self.model = ModelClient(Story())
        self.line: ClientConnection | None = None
        self.resumes = 0

    async def attach(self) -> dict[str, Any]:
        self.line = await connect(self.server.url, compression=None, max_size=2**23)
        await self.line.send(json.dumps(self.model.hello(window=None)))
        return await self.read()

    async def ask(self, request_id: str) -> None:
        assert self.line is not None
        self.model.story.has_asked = True
        config = {"max_new_tokens": COUNT, "seed": 1}
        message = {"type": "inference", "request_id": request_id, "input_ids": [SIZE_BYTES], "config": config}
        await self.line.send(json.dumps(message))

    async def ack(self, *, all_but: int = 0) -> None:
        assert self.line is not None
        seq = max(self.model.last_seq - all_but, self.model.acked)
        self.model.ack(seq)
        await self.line.send(json.dumps({"type": "ack", "seq": seq}))

    async def read(self) -> dict[str, Any]:
        assert self.line is not None
        async with asyncio.timeout(TIMEOUT_S):
            message = json.loads(await self.line.recv())
        self.model.receive(message)
        self.resumes += message.get("code") == "resumed_after_restart"
        return message

    async def read_tokens(self, request_id: str, count: int) -> None:
        while self.model.next_index.get(request_id, 0) < count:
            await self.read()

    async def read_until(self, kind: str) -> dict[str, Any]:
        while (message := await self.read())["type"] != kind:
            pass
        return message

    async def read_end(self, request_id: str, *, acknowledge: bool = False) -> str:
        """Reads to the request's end, acknowledging what it reads where asked to; returns the text."""
        while request_id not in self.model.terminals:
            await self.read()
            if acknowledge:
                await self.ack()
        assert self.model.terminals[request_id] in ("length", "stop")
        assert self.model.next_index[request_id] == COUNT
        return self.model.texts[request_id]

    async def drop(self) -> None:
        assert self.line is not None
        self.line.transport.abort()
        await self.line.wait_closed()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[StreamingServer]:
    server = StreamingServer(tmp_path)
    server.start()
    try:
        yield server
    finally:
        server.kill()


async def kill_and_return(*users: User) -> list[dict[str, Any]]:
    """Kills the server, starts it again, and brings everybody back; returns their welcomes."""
    server = users[0].server
    await asyncio.to_thread(server.kill)
    for user in users:
        await user.drop()
    await asyncio.to_thread(server.start)
    return [await user.attach() for user in users]


def wait_for_draft(server: StreamingServer) -> bool:
    """Returns when the log is being written anew; False when it was not in half a second."""
    (session,) = (server.folder / "state" / "sessions").iterdir()
    draft = str(session / "buffer.jsonl.new")
    ends_s = time.monotonic() + 0.5
    while time.monotonic() < ends_s:
        if os.access(draft, os.F_OK):
            server.signal(signal.SIGKILL)
            return True
    return False


async def test_killed_while_the_log_is_compacted(server: StreamingServer, kills: int) -> None:
    """A client acknowledges as it reads, so the log is written anew several times a second.

    The kill comes at the sight of the draft, or somewhere near.
    """
    user = User(server)
    await user.attach()
    chance = random.Random(3)
    compacting = 0
    for number in range((kills + 1) // 2):
        request_id = f"kill-{number}"
        await user.ask(request_id)
        await user.read_tokens(request_id, chance.randrange(1, COUNT // 2))
        watch = asyncio.create_task(asyncio.to_thread(wait_for_draft, server))
        with contextlib.suppress(ConnectionClosed):
            while not watch.done() and request_id not in user.model.terminals:
                await user.ack(all_but=100)
                await user.read()
        compacting += await watch
        (welcome,) = await kill_and_return(user)
        assert welcome["status"] == "resumed"
        assert await user.read_end(request_id, acknowledge=True) == ANSWER
    await user.drop()
    print(f"{(kills + 1) // 2} kills, {compacting} while a log was being written anew")


async def test_killed_while_the_buffer_is_dropped(server: StreamingServer, kills: int) -> None:
    """Everything is acknowledged and the server dies somewhere on the way from the ack to its answer."""
    user = User(server)
    await user.attach()
    chance = random.Random(4)
    for number in range((kills + 1) // 2):
        request_id = f"kill-{number}"
        await user.ask(request_id)
        assert await user.read_end(request_id) == ANSWER
        await user.ack()
        await asyncio.sleep(chance.random() * 0.02)  # where on the way
        (welcome,) = await kill_and_return(user)
        assert (welcome["status"], welcome["head_seq"]) == ("resumed", user.model.last_seq)
        await user.ask(request_id)
        answer = await user.read()
        while answer["type"] == "log":
            answer = await user.read()
        assert (answer["type"], answer.get("code")) in (("queue", None), ("error", "duplicate"))
    await user.drop()


async def test_killed_twice_in_one_request(server: StreamingServer) -> None:
    """The second time right after the restart, before a new token; then once more in the middle."""
    user = User(server)
    await user.attach()
    await user.ask("a")
    await user.read_tokens("a", COUNT // 4)
    await kill_and_return(user)
    while not user.resumes:
        await user.read()
    await kill_and_return(user)
    await user.read_tokens("a", COUNT // 2)
    await kill_and_return(user)

    assert await user.read_end("a") == ANSWER
    assert user.resumes in (2, 3)  # the last kill may have come after the end was written
    await user.drop()


async def test_killed_right_after_the_end_was_received(server: StreamingServer) -> None:
    """The end stands: nothing of the request comes again, and asked again it does not run again."""
    user = User(server)
    await user.attach()
    await user.ask("a")
    await user.read_until("done")
    seq = user.model.last_seq
    (welcome,) = await kill_and_return(user)
    assert (welcome["status"], welcome["head_seq"], welcome["requests"]) == ("resumed", seq, [])
    assert (await user.read())["code"] == "caught_up"
    await user.ask("a")
    assert (await user.read())["type"] == "queue"
    await user.ask("b")
    assert await user.read_end("b") == ANSWER

    assert user.model.texts["a"] == ANSWER
    assert user.resumes == 0
    await user.drop()


async def test_killed_while_several_sessions_stream(server: StreamingServer, kills: int) -> None:
    """Eight of them, one with two requests in line; nobody gets anything of another."""
    users = [User(server) for _ in range(8)]
    chance = random.Random(5)
    for user in users:
        await user.attach()
    for number in range(max(1, kills // 5)):
        keys = [f"kill-{number}", f"next-{number}"]
        for user in users:
            await user.ask(keys[0])
        await users[0].ask(keys[1])
        await users[chance.randrange(8)].read_tokens(keys[0], chance.randrange(1, COUNT - 100))
        await kill_and_return(*users)
        texts = await asyncio.gather(*(user.read_end(keys[0]) for user in users))
        assert set(texts) == {ANSWER}
        assert await users[0].read_end(keys[1]) == ANSWER
    assert users[0].model.started == [key for n in range(max(1, kills // 5)) for key in (f"kill-{n}", f"next-{n}")]
    for user in users:
        await user.drop()

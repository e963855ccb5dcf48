"""`kill -9` of a real server in the middle of real answers: nothing lost, nothing twice, the same text."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect

from tests.support.model_client import ModelClient
from tests.support.real_server import RealServer

QUESTION = "How does llmws keep my answer when the connection drops?"
SAMPLINGS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 2.0, "seed": 1},
    {"temperature": 1.8, "seed": 2, "top_k": 0, "top_p": 1.0},
    {"temperature": 2.0, "seed": 3, "repetition_penalty": 1.2, "min_p": 0.01},
]
TOKENS = 160
TIMEOUT_S = 90


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RealServer]:
    server = RealServer(tmp_path, "--model", "llmws-guide")
    server.start()
    try:
        yield server
    finally:
        server.close()


class User:
    """One session whose answers are followed over any number of connections."""

    def __init__(self, sampling: dict[str, Any]) -> None:
        self.model = ModelClient()
        self.sampling = sampling
        self.line: ClientConnection | None = None
        self.resumes: list[dict[str, Any]] = []

    async def attach(self, server: RealServer) -> None:
        self.line = await connect(server.ready["ws_url"], compression=None, max_size=2**21)
        await self.line.send(json.dumps({**self.model.hello(window=None), "auth": server.token}))
        await self.read()

    async def ask(self, request_id: str) -> None:
        assert self.line is not None
        self.model.story.has_asked = True
        # Past the end of the answer on purpose, so that there is always a middle to be killed in.
        config = {**self.sampling, "max_new_tokens": TOKENS, "ignore_eos": True}
        messages = [{"role": "user", "content": QUESTION}]
        message = {"type": "inference", "request_id": request_id, "messages": messages, "config": config}
        await self.line.send(json.dumps(message))

    async def read(self) -> dict[str, Any]:
        assert self.line is not None
        async with asyncio.timeout(TIMEOUT_S):
            message = json.loads(await self.line.recv())
        self.model.receive(message)
        if message.get("code") == "resumed_after_restart":
            self.resumes.append(message)
        return message

    async def read_tokens(self, request_id: str, count: int) -> None:
        while self.model.next_index.get(request_id, 0) < count:
            await self.read()

    async def read_end(self, request_id: str) -> str:
        while request_id not in self.model.terminals:
            await self.read()
        assert self.model.terminals[request_id] == "length"
        assert self.model.next_index[request_id] == TOKENS
        return self.model.texts[request_id]

    async def drop(self) -> None:
        assert self.line is not None
        self.line.transport.abort()
        await self.line.wait_closed()


async def test_killed_answers_equal_undisturbed_ones(server: RealServer, kills: int, record_property) -> None:
    """Every stream of every kill: contiguous events, one end, and the text of the run without a kill."""
    users = [User(sampling) for sampling in SAMPLINGS]
    for user in users:
        await user.attach(server)
        await user.ask("undisturbed")
    expected = [await user.read_end("undisturbed") for user in users]
    assert len(set(expected)) == len(expected), "the samplings are meant to differ"

    chance = random.Random(20_26)
    cut = 0
    for number, chosen in zip(range(kills), itertools.cycle(range(len(users))), strict=False):
        request_id = f"kill-{number}"
        for user in users:
            await user.ask(request_id)
        await users[chosen].read_tokens(request_id, chance.randrange(1, TOKENS - 40))
        await asyncio.to_thread(server.kill)
        for user in users:
            await user.drop()
        await asyncio.to_thread(server.start)
        for user in users:
            await user.attach(server)
        assert [await user.read_end(request_id) for user in users] == expected
        resumed = [each for user in users for each in user.resumes if each["request_id"] == request_id]
        assert all(each["exact"] for each in resumed)
        cut += len(resumed)
    for user in users:
        await user.drop()
    assert cut >= kills, "too few kills hit an answer in the middle"
    record_property("answers_cut", cut)
    print(f"{kills} kills cut {cut} answers in the middle: 0 lost, 0 twice, every text identical")


async def test_repeated_kills_of_one_answer(server: RealServer) -> None:
    """One answer that is killed again and again goes on each time from where it was."""
    user = User(SAMPLINGS[1])
    await user.attach(server)
    await user.ask("undisturbed")
    expected = await user.read_end("undisturbed")
    await user.ask("hunted")
    for tokens in (20, 50, 90):
        await user.read_tokens("hunted", tokens)
        await asyncio.to_thread(server.kill)
        await user.drop()
        await asyncio.to_thread(server.start)
        await user.attach(server)
    assert await user.read_end("hunted") == expected
    await user.drop()

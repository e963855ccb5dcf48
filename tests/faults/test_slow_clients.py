"""Clients that fall behind, and come level again, are cut off meanwhile, or stand still; and a server that does."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect

from tests.faults.askers import ClientAsker, FrameAsker, Server
from tests.faults.journal import Journal, Lost
from tests.faults.judge import Question, judge
from tests.faults.streaming_server import StreamingServer
from tests.support.model_client import ModelClient

TIMEOUT_S = 30
SIZE_BYTES = 4000
COUNT = 250
"""Of such an answer the kernel holds a small part."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StreamingServer]:
    server = StreamingServer(tmp_path_factory.mktemp("server"))
    server.start()
    try:
        yield server
    finally:
        server.kill()


class Dawdler:
    """A client with little room for what it does not read, and no window: only its socket holds the server back."""

    def __init__(self, server: StreamingServer) -> None:
        self._server = server
        self.model = ModelClient()

    async def attach(self) -> dict[str, Any]:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self._server.port))
        self.line = await connect(self._server.ws_url, sock=sock, compression=None, max_queue=1, ping_interval=None)
        await self.line.send(json.dumps(self.model.hello(window=None)))
        return await self.read()

    async def ask(self, request_id: str) -> None:
        await ask(self.line, request_id)

    async def read(self) -> dict[str, Any]:
        async with asyncio.timeout(TIMEOUT_S):
            message = json.loads(await self.line.recv())
        self.model.receive(message)
        return message

    async def read_tokens(self, request_id: str, count: int) -> None:
        while self.model.next_index.get(request_id, 0) < count:
            await self.read()

    async def read_end(self, request_id: str) -> str:
        while request_id not in self.model.terminals:
            await self.read()
        return self.model.texts[request_id]

    async def drop(self) -> None:
        self.line.transport.abort()
        await self.line.wait_closed()


async def ask(line: ClientConnection, request_id: str) -> None:
    config = {"max_new_tokens": COUNT, "seed": 1}
    message = {"type": "inference", "request_id": request_id, "input_ids": [SIZE_BYTES], "config": config}
    await line.send(json.dumps(message))


def answer() -> str:
    return "".join(str(number % 10) * SIZE_BYTES for number in range(COUNT))


async def let_engine_finish(server: StreamingServer) -> None:
    """Another client asks for as much and reads it: what was running before has come to its end too."""
    async with connect(server.ws_url, compression=None, max_size=2**23) as line, asyncio.timeout(TIMEOUT_S):
        await line.send("{}")
        await ask(line, "beside")
        while json.loads(await line.recv())["type"] != "done":
            pass


async def test_a_client_that_falls_behind_comes_level_again(server: StreamingServer) -> None:
    """Twice in one session: the rest comes from the log, then live again, without a seam."""
    dawdler = Dawdler(server)
    await dawdler.attach()
    for number in range(2):
        request_id = f"behind-{number}"
        await dawdler.ask(request_id)
        await dawdler.read_tokens(request_id, COUNT // 4)
        await let_engine_finish(server)
        await dawdler.ask(f"level-{number}")

        assert await dawdler.read_end(request_id) == answer()
        assert await dawdler.read_end(f"level-{number}") == answer()
    await dawdler.drop()


async def test_a_client_that_is_cut_off_far_behind_goes_on_where_it_was(server: StreamingServer) -> None:
    """What was in the buffers between is lost with the connection, and comes again."""
    dawdler = Dawdler(server)
    await dawdler.attach()
    await dawdler.ask("a")
    await dawdler.read_tokens("a", COUNT // 4)
    await let_engine_finish(server)
    await dawdler.drop()
    behind = dawdler.model.last_seq
    welcome = await dawdler.attach()

    assert (welcome["status"], welcome["head_seq"] > behind + COUNT // 4) == ("resumed", True)
    assert await dawdler.read_end("a") == answer()
    await dawdler.drop()


@pytest.mark.parametrize("kind", [ClientAsker, FrameAsker])
async def test_a_server_that_stands_still_is_waited_for(
    kind: type[ClientAsker | FrameAsker], server: StreamingServer
) -> None:
    """SIGSTOP in mid-answer, for longer than the client believes in a silent connection; then it goes on."""
    questions = [Question("q-0", "20", 400)]
    journal = Journal()
    asker = kind(Server(server.ws_url), journal, random.Random(1), heartbeat_s=0.1)
    asking = asyncio.create_task(asker.run(questions))
    async with asyncio.timeout(TIMEOUT_S):
        while journal.last is None or journal.last.index < 20:  # noqa: ASYNC110 - the other task reads
            await asyncio.sleep(0.002)
        server.signal(signal.SIGSTOP)
        while not any(isinstance(each, Lost) for each in journal.entries):  # noqa: ASYNC110 - likewise
            await asyncio.sleep(0.01)
        server.signal(signal.SIGCONT)
        await asking
    verdict = judge(journal.entries, questions)

    assert verdict.is_good, verdict
    assert verdict.cuts_in_answers >= 1

"""Sessions of a server that is killed, failed or restored under them, each followed over any number of connections.

Every message goes through `ModelClient`, which fails at the first one that is missing, doubled, or says something else
than before, and is counted in the run's `Tally`.
"""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.faults.killable_server import KillableServer
from tests.faults.spoken import spoken
from tests.faults.tally import Audit, Tally
from tests.support.model_client import ModelClient

TIMEOUT_S = 60


class User:
    """One session and its owner.

    Args:
        server: where the session lives.
        tally: of the run.
        question: what is asked each time, without its id.
        tokens: how many tokens an answer has.
        expected: the text of an answer; what the first one says, if it is not known before.
        room_bytes: in the socket's buffer, for what is not read yet; None: as much as the system gives.
    """

    def __init__(
        self,
        server: KillableServer,
        tally: Tally,
        question: dict[str, Any],
        *,
        tokens: int,
        expected: str | None = None,
        room_bytes: int | None = None,
    ) -> None:
        self.server = server
        self.model = ModelClient()
        self.expected = expected
        self.resumes: list[dict[str, Any]] = []
        self.line: ClientConnection | None = None
        self._question = question
        self._tokens = tokens
        self._room_bytes = room_bytes
        self._audit = Audit(tally)

    @property
    def session_id(self) -> str:
        assert self.model.session_id is not None
        return self.model.session_id

    async def attach(self) -> dict[str, Any]:
        """Comes in, with the position it has; returns the welcome, or what came in its place."""
        self.line = await self._connect()
        hello = self.model.hello(window=None)
        await self.send({**hello, "auth": self.server.token} if self.server.token else hello)
        return await self.read()

    async def ask(self, request_id: str) -> None:
        self.model.story.has_asked = True
        await self.send({"type": "inference", "request_id": request_id, **self._question})

    async def ask_until_accepted(self, request_id: str) -> None:
        """Asks, and asks again, which is answered when the first is on the disk."""
        await self.ask(request_id)
        await self.ask(request_id)
        assert (await self.read_until("queue"))["request_id"] == request_id

    async def ack(self, *, all_but: int = 0) -> None:
        seq = max(self.model.last_seq - all_but, self.model.acked)
        self.model.ack(seq)
        await self.send({"type": "ack", "seq": seq})

    async def read(self) -> dict[str, Any]:
        assert self.line is not None
        async with asyncio.timeout(TIMEOUT_S):
            message = json.loads(await self.line.recv())
        self._audit.hear(message)
        self.model.receive(message)
        if message.get("code") == "resumed_after_restart":
            self.resumes.append(message)
        return message

    async def read_until(self, kind: str) -> dict[str, Any]:
        while (message := await self.read())["type"] != kind:
            pass
        return message

    async def read_tokens(self, request_id: str, count: int) -> None:
        while self.model.next_index.get(request_id, 0) < count:
            await self.read()

    async def read_end(self, request_id: str, *, acknowledge: bool = False) -> None:
        """Reads to the request's end, acknowledging what it reads where asked to; the answer must be the known one."""
        while request_id not in self.model.terminals:
            message = await self.read()
            assert message["type"] != "error" or "seq" in message, message  # a refusal: nothing would come any more
            if acknowledge:
                await self.ack()
        assert self.model.terminals[request_id] in ("length", "stop")
        assert self.model.next_index[request_id] == self._tokens
        text = self.model.texts[request_id]
        if self.expected is None:
            self.expected = text
        self._audit.judge(text, self.expected)
        assert text == self.expected

    async def read_away(self) -> tuple[dict[str, Any], int]:
        """Reads until the server closes the connection: the last message, and the close code."""
        message: dict[str, Any] = {}
        assert self.line is not None
        try:
            while True:
                message = await self.read()
        except ConnectionClosed:
            assert self.line.close_code is not None
            return message, self.line.close_code

    async def drop(self) -> None:
        """Cuts the connection, if there is one."""
        if self.line is not None:
            self.line.transport.abort()
            await self.line.wait_closed()
            self.line = None

    async def send(self, message: dict[str, Any]) -> None:
        assert self.line is not None
        await self.line.send(json.dumps(message))

    async def _connect(self) -> ClientConnection:
        if self._room_bytes is None:
            return await connect(self.server.ws_url, compression=None, max_size=2**23)
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._room_bytes)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.server.port))
        return await connect(self.server.ws_url, sock=sock, compression=None, max_queue=1, ping_interval=None)


def scripted(
    server: KillableServer, tally: Tally, *, tokens: int = 400, size_bytes: int = 1024, room_bytes: int | None = None
) -> User:
    """One who asks a `StreamingServer`."""
    question = {"prompt": {"system": "", "user": str(size_bytes)}, "config": {"max_new_tokens": tokens, "seed": 1}}
    expected = spoken(tokens, size_bytes)
    return User(server, tally, question, tokens=tokens, expected=expected, room_bytes=room_bytes)


async def kill(*users: User, tally: Tally, kind: str) -> None:
    """Kills the server of these users."""
    await asyncio.to_thread(users[0].server.kill)
    tally.kills[kind] += 1
    for user in users:
        await user.drop()


async def kill_and_return(*users: User, tally: Tally, kind: str) -> list[dict[str, Any]]:
    """Kills the server, starts it again, and brings everybody back; returns their welcomes."""
    await kill(*users, tally=tally, kind=kind)
    await asyncio.to_thread(users[0].server.start)
    return [await user.attach() for user in users]

"""Two kinds of users who ask, are cut off, come back and go on: one with the product's client, one with bare frames.

Both keep a journal and go on from it, in whatever process. Neither is told when or how it will be cut off. Invariant:
what an asker acknowledges is in its journal.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from llmws.client import Backoff, Client, Connected, Disconnected, Generation, Position
from tests.faults.journal import Acknowledged, Asked, Journal, Lost, Opened, Seen
from tests.faults.judge import Question
from tests.support.model_client import ModelClient

PATIENCE_S = 60.0
"""Longer than any fault lasts. Who waits in vain fails, and says where."""


class Address(NamedTuple):
    """Where to ask, and with which token."""

    url: str
    token: str | None = None


class ClientAsker:
    """A program with `llmws.client`."""

    def __init__(self, address: Address, journal: Journal, chance: random.Random, *, heartbeat_s: float = 20.0) -> None:
        self._address = address
        self._journal = journal
        self._chance = chance
        self._heartbeat_s = heartbeat_s
        self._lost_s: float | None = None

    async def run(self, questions: Iterable[Question]) -> None:
        """Asks what the journal has no end of; returns when everything has ended."""
        last = self._journal.last
        client = Client(
            self._address.url,
            self._address.token,
            session_id=self._journal.session_id,
            position=None if last is None else Position(epoch=last.epoch, last_seq=last.seq),
            connect_timeout_s=PATIENCE_S,
            reconnect_timeout_s=PATIENCE_S,
            heartbeat_s=self._heartbeat_s,
            backoff=Backoff(base_s=0.01, cap_s=0.2, jitter=self._chance.random),
            listen=self._listen,
        )
        async with client:
            async for answer in client.collect():
                await self._read(answer)
            for question in questions:
                if question.request_id not in self._journal.ended:
                    self._journal.note(Asked(question.request_id))
                    await self._read(
                        client.generate(
                            question.prompt, request_id=question.request_id, max_tokens=question.count, seed=1
                        )
                    )

    async def _read(self, answer: Generation) -> None:
        events = aiter(answer)
        while True:
            async with asyncio.timeout(PATIENCE_S):
                event = await anext(events, None)
            if event is None:
                return
            if self._chance.random() < 0.03:
                await asyncio.sleep(0.02)  # so that more has arrived than was read
            if isinstance(event.seq, int):
                self._journal.see(event)

    def _listen(self, notice: object) -> None:
        if isinstance(notice, Disconnected) and self._lost_s is None:
            self._lost_s = time.monotonic()
            self._journal.note(Lost(notice.reason))
        elif isinstance(notice, Connected):
            waited_ms = None if self._lost_s is None else (time.monotonic() - self._lost_s) * 1000
            self._lost_s = None
            self._journal.note(Opened(notice.welcome.session_id, notice.welcome.epoch, waited_ms))


class FrameAsker:
    """A program that somebody else wrote: bare frames, and a model of the protocol that fails at the first misstep.

    It acknowledges seldom, so that much of the session stays in the server's log, and asks again whatever it is not
    sure of: the same id runs once.
    """

    def __init__(self, address: Address, journal: Journal, chance: random.Random, *, heartbeat_s: float = 20.0) -> None:
        self._address = address
        self._journal = journal
        self._chance = chance
        self._heartbeat_s = heartbeat_s
        self._model = ModelClient()
        self._lost_s: float | None = None
        for entry in journal.entries:
            match entry:
                case Opened(session_id, epoch):
                    self._enter(session_id, epoch)
                case Seen():
                    self._model.receive(entry.message())
                case Acknowledged(seq):
                    self._model.ack(seq)

    async def run(self, questions: Iterable[Question]) -> None:
        """See `ClientAsker.run`."""
        left = iter(questions)
        question = self._next(left)
        while question is not None:
            try:
                line = await self._connect()
            except (OSError, WebSocketException) as error:
                self._lose(repr(error))
                await asyncio.sleep(self._chance.random() * 0.1)
                continue
            try:
                await self._greet(line)
                while question is not None:
                    await self._ask(line, question)
                    question = self._next(left)
            except (OSError, WebSocketException) as error:
                self._lose(repr(error))
            finally:
                line.transport.abort()

    def _next(self, left: Iterable[Question]) -> Question | None:
        return next((each for each in left if each.request_id not in self._model.terminals), None)

    async def _connect(self) -> ClientConnection:
        return await connect(
            self._address.url,
            compression=None,
            max_size=2**23,
            open_timeout=2,
            ping_interval=self._heartbeat_s,
            ping_timeout=self._heartbeat_s,
            close_timeout=0.1,
            proxy=None,
        )

    async def _greet(self, line: ClientConnection) -> None:
        hello = self._model.hello(window=None)
        await line.send(json.dumps({**hello, "auth": self._address.token} if self._address.token else hello))
        welcome = await self._receive(line)
        assert welcome["type"] == "welcome", welcome
        waited_ms = None if self._lost_s is None else (time.monotonic() - self._lost_s) * 1000
        self._lost_s = None
        self._journal.note(Opened(welcome["session_id"], welcome["epoch"], waited_ms))

    async def _ask(self, line: ClientConnection, question: Question) -> None:
        self._journal.note(Asked(question.request_id))
        await line.send(
            json.dumps(
                {
                    "type": "inference",
                    "request_id": question.request_id,
                    "prompt": question.prompt,
                    "config": {"max_new_tokens": question.count, "seed": 1},
                }
            )
        )
        while question.request_id not in self._model.terminals:
            await self._receive(line)
        self._model.story.payloads.clear()  # for comparing what several clients of a session are told
        if self._chance.random() < 0.2:
            self._journal.note(Acknowledged(self._model.last_seq))
            self._model.ack(self._model.last_seq)
            await line.send(json.dumps({"type": "ack", "seq": self._model.last_seq}))

    async def _receive(self, line: ClientConnection) -> dict[str, Any]:
        try:
            async with asyncio.timeout(PATIENCE_S):
                message = json.loads(await line.recv())
        except TimeoutError:
            raise AssertionError(f"nothing came for {PATIENCE_S:g} s") from None
        self._model.receive(message)
        if "seq" in message and "epoch" in message:
            # What was accepted has to be there after a kill of the server; what was not may be gone with its session.
            self._model.story.has_asked = True
            self._journal.see(message)
        assert message["type"] != "error", message
        return message

    def _enter(self, session_id: str, epoch: int) -> None:
        """What a welcome said, in an earlier process."""
        model = self._model
        if session_id != model.session_id:
            model.session_id, model.epoch, model.last_seq = session_id, epoch, 0

    def _lose(self, why: str) -> None:
        if self._lost_s is None:
            self._lost_s = time.monotonic()
            self._journal.note(Lost(why))

"""Who uses the simulated server: people with several devices that believe nothing, and programs with the real client.

Each belongs to a principal with one session. Devices speak through the real WebSocket library and check every frame
against the protocol (`ModelClient`); programs check that what `llmws.client` hands out is what the model said.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal, Protocol

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from llmws.client import Client
from llmws.client.answer import Reset
from llmws.client.backoff import Backoff
from llmws.client.connection import Connected, Notice
from llmws.client.errors import (
    GenerationError,
    RequestRejectedError,
    ServerFaultError,
    TakenOverError,
    UnreachableError,
    WithdrawnError,
)
from llmws.client.generation import Generation
from llmws.protocol import CloseCode
from llmws.protocol import messages as m
from tests.faults.simulation.loop import VirtualLoop
from tests.faults.simulation.script import breaks_off, whole_text
from tests.support.model_client import ModelClient, Story

URL = "ws://localhost:8765/v1/ws"
SECRET = "whereabouts of the treasure"
MOST_ASKED = 25
REFUSALS = {"queue_full", "rate_limited", "no_model", "model_loading", "duplicate", "buffer_full"}
TRANSIENT = {1000, 1005, 1006, 1011, 1012, 4409, 4500, 4503, 4504, 4510}
"""How a connection may end; 4409, for the other device has the session now."""
FINISHED = {"stop", "length", "cancelled", "interrupted"}
ENDS = {"stop", "length", "cancelled", "interrupted", "model_failed", "buffer_full", "storage_failed"}


class World(Protocol):
    """What people know of the simulation."""

    loop: VirtualLoop
    seen: Counter[str]

    has_forgotten: bool
    """Whether a loss of power may have taken events that were sent, though no request and no end."""

    @property
    def is_calm(self) -> bool: ...

    def note(self, who: str, what: str) -> None: ...

    def kept(self, session_id: str, requests: set[str]) -> set[str]: ...

    async def come_up(self) -> None: ...


class Questions:
    """What a principal has asked, and how each ended."""

    def __init__(self, world: World, name: str, rng: random.Random) -> None:
        self.asked: dict[str, dict[str, Any]] = {}
        self.ends: dict[str, str] = {}
        self.cancelled: set[str] = set()
        self._world = world
        self._name = name
        self._rng = rng

    @property
    def open(self) -> list[str]:
        return [request_id for request_id in self.asked if request_id not in self.ends]

    def new(self) -> dict[str, Any]:
        number = len(self.asked) + 1
        request = self.asked[f"{self._name}.{number}"] = {
            "request_id": f"{self._name}.{number}",
            "prompt": f"{self._name}, {number}: what are the {SECRET}?",
            "config": {"max_new_tokens": self._rng.choice((1, 10, 1000)), "do_sample": self._rng.random() < 0.5},
        }
        return request

    def check(self, request_id: str, text: str, end: str | None) -> None:
        """What came of an answer is what the model said, up to where it was ended. `end` None: that was not seen."""
        question = self.asked[request_id]["prompt"]
        whole = whole_text(question)
        assert end is None or end in ENDS, f"{request_id} ended in {end}"
        is_whole = end == "stop" or (end == "model_failed" and breaks_off(question))
        is_right = text == whole if is_whole else whole.startswith(text)
        self._world.seen["wrong"] += not is_right
        assert is_right, f"{request_id}: wrong text"
        assert end != "cancelled" or request_id in self.cancelled


# --- people --------------------------------------------------------------------------------------------------------


class Person:
    """A session on two devices that take it from each other, and on a third that watches."""

    def __init__(self, world: World, name: str, rng: random.Random) -> None:
        self.world = world
        self.name = name
        self.story = Story()
        self.questions = Questions(world, name, rng)
        self.accepted: set[str] = set()
        self._lines: list[list[str]] = []
        self._starts: dict[str, tuple[int, int]] = {}
        self._history: dict[str, Any] | None = None
        self.devices = [
            Device(self, kind, mode, random.Random(f"{rng.random()}"))
            for kind, mode in (("phone", "takeover"), ("laptop", "takeover"), ("page", "observe"))
        ]

    async def live(self) -> None:
        """Uses the session until the world is calm; then every device reads it to its end, and the first says so."""
        async with asyncio.TaskGroup() as tasks:
            for device in self.devices:
                tasks.create_task(device.live())
        phone = self.devices[0]
        await phone.visit_until(lambda: not self.questions.open)
        for device in self.devices[1:]:
            if self.story.has_asked:
                await device.visit_until(lambda device=device: device.model.last_seq >= phone.model.last_seq)
        if self.story.has_asked:
            await phone.visit_until(lambda: self.story.floor >= phone.model.last_seq and phone.acked_all)
            self._history = None
            await phone.visit_until(lambda: self._history is not None)
            self._compare_history()
        self._check_order()
        for device in self.devices:
            for request_id in device.model.started:
                # A device that was away when the end was acknowledged has only the beginning.
                end = device.model.terminals.get(request_id)
                self.questions.check(request_id, device.model.texts.get(request_id, ""), end)

    def take(self, message: dict[str, Any]) -> None:
        """What a message means for the questions, whichever device it came to."""
        request_id = message.get("request_id")
        questions = self.questions
        if message["type"] == "welcome":
            self._lines.append([each["request_id"] for each in message["requests"]])
        elif message["type"] == "history":
            self._history = message
        if request_id is None:
            return
        if "seq" in message or message["type"] == "queue":
            self.story.has_asked = True
            self.accepted.add(request_id)
        if message["type"] == "start":
            position = message["epoch"], message["seq"]
            self._starts[request_id] = max(position, self._starts.get(request_id, position))
        if message["type"] in ("done", "error") and "seq" in message:
            questions.ends[request_id] = message.get("finish_reason") or message["code"]
        elif message["type"] == "error":
            code = message["code"]
            is_late_cancel = code == "bad_request" and request_id in questions.cancelled
            assert is_late_cancel or code in REFUSALS, f"refused: {message}"
            if code == "duplicate":
                questions.ends.setdefault(request_id, "known")

    def _check_order(self) -> None:
        """Whoever waited before another has started before it."""
        for line in self._lines:
            starts = [self._starts[each] for each in line if each in self._starts]
            assert starts == sorted(starts), f"out of turn: {line}"

    def _compare_history(self) -> None:
        """The conversation has every question once, and says of each answer what was said as it came."""
        assert self._history is not None
        messages, ends = self._history["messages"], self.questions.ends
        asked = [each["request_id"] for each in messages if each["role"] == "user"]
        assert sorted(asked) == sorted(self.questions.asked), "the conversation has other questions"
        answers = {each["request_id"]: each for each in messages if each["role"] == "assistant"}
        assert len(asked) + len(answers) == len(messages), "an answer is twice in the conversation"
        for request_id, answer in answers.items():
            assert ends[request_id] in (answer["finish_reason"], "known")
            self.questions.check(request_id, answer["content"], answer["finish_reason"])
        for model in (device.model for device in self.devices):
            for request_id in model.started:
                if model.terminals.get(request_id) in FINISHED:
                    assert answers[request_id]["content"] == model.texts.get(request_id, ""), f"{request_id} differs"


class Device:
    """One of a person's devices, over all its connections."""

    def __init__(self, person: Person, kind: str, mode: Literal["takeover", "observe"], rng: random.Random) -> None:
        self.model = ModelClient(person.story, mode)
        self.acked_all = False
        self._person = person
        self._world = person.world
        self._name = f"{person.name}'s {kind}"
        self._is_first = kind == "phone"
        self._rng = rng
        self._welcomed = asyncio.Event()
        self._owed: set[str] = set()

    async def live(self) -> None:
        while not self._world.is_calm:
            await asyncio.sleep(self._rng.expovariate(1 / self._rng.choice((0.2, 1, 10))))
            await self._world.come_up()
            if self._is_first or self._person.story.has_asked:
                await self.visit(self._rng.expovariate(1 / 20))

    async def visit_until(self, done: Callable[[], bool]) -> None:
        while not done():
            await self.visit(5.0, done)

    async def visit(self, seconds: float, done: Callable[[], bool] = lambda: False) -> None:
        """Connects, uses the session for a while, and leaves in one way or another."""
        try:
            socket = await connect(URL, compression=None, proxy=None, close_timeout=2)
        except (OSError, InvalidHandshake, TimeoutError):
            await asyncio.sleep(self._rng.random())
            await self._world.come_up()
            return
        try:
            async with asyncio.timeout(seconds):
                await self._use(socket, done)
        except (ConnectionClosed, TimeoutError):
            pass
        finally:
            if self._rng.random() < 0.5:
                socket.transport.abort()
            await socket.close()
        self._world.note(self._name, f"closed {socket.close_code}")
        assert socket.close_code in TRANSIENT, f"closed with {socket.close_code}"
        if socket.close_code == CloseCode.TAKEN_OVER and not self._world.is_calm:
            await asyncio.sleep(self._rng.expovariate(1 / 20))

    async def _use(self, socket: ClientConnection, done: Callable[[], bool]) -> None:
        """Says hello, reads what comes, with pauses, and acts meanwhile."""
        self._welcomed.clear()
        window = None if self._world.is_calm else self._rng.choice((None, 1, 5, 50))
        self._owed = set(self._person.accepted)
        await self._say(socket, {**self.model.hello(window=window), "auth": self._person.name})
        acting = asyncio.create_task(self._act(socket))
        try:
            while not done():
                self._take(json.loads(await socket.recv()))
                if self._rng.random() < 0.01 and not self._world.is_calm:
                    await asyncio.sleep(self._rng.expovariate(1 / 10))
        finally:
            acting.cancel()
            await asyncio.wait([acting])
            if not acting.cancelled():
                acting.result()

    def _take(self, message: dict[str, Any]) -> None:
        world = self._world
        world.note(self._name, json.dumps(message))
        if "seq" in message and "epoch" in message:
            known = self.model.story.payloads.get((message["epoch"], message["seq"]), message)
            world.seen["events"] += 1
            world.seen["wrong"] += known != message
            world.seen["lost"] += message["seq"] > self.model.last_seq + 1
            world.seen["duplicated"] += message["seq"] <= self.model.last_seq
        self.model.story.has_lost_power = world.has_forgotten
        self.model.receive(message)
        if message["type"] == "welcome":
            forgotten = self._owed - world.kept(message["session_id"], self._owed)
            assert not forgotten, f"forgotten, though accepted: {forgotten}"
            world.seen[{"resumed": "resumes", "reset": "resets", "new": "new sessions"}[message["status"]]] += 1
            self._welcomed.set()
        if message["type"] == "ack_received":
            self.acked_all = message["floor_seq"] >= self.model.last_seq
        self._person.take(message)

    async def _say(self, socket: ClientConnection, message: dict[str, Any]) -> None:
        self._world.note(self._name, f"> {json.dumps(message)}")
        await socket.send(json.dumps(message))

    async def _act(self, socket: ClientConnection) -> None:
        try:
            await self._welcomed.wait()
            questions = self._person.questions
            if self.model.mode == "takeover":
                for request_id in questions.open:
                    await self._say(socket, {"type": "inference", **questions.asked[request_id]})
            while True:
                await asyncio.sleep(0.2 if self._world.is_calm else self._rng.expovariate(1 / 1.5))
                await self._do_something(socket)
        except ConnectionClosed:
            pass

    async def _do_something(self, socket: ClientConnection) -> None:
        questions, chance = self._person.questions, self._rng.random()
        if self._world.is_calm or chance < 0.45:
            seq = self.model.last_seq if self._world.is_calm else self._rng.randint(0, self.model.last_seq)
            self.model.ack(seq)
            await self._say(socket, {"type": "ack", "seq": seq})
            if self._world.is_calm:
                await self._say(socket, {"type": "history", "limit": 200})
        elif chance < 0.75:
            if self.model.mode == "takeover" and len(questions.asked) < MOST_ASKED:
                await self._say(socket, {"type": "inference", **questions.new()})
        elif chance < 0.82:
            if questions.open:
                request_id = self._rng.choice(questions.open)
                questions.cancelled.add(request_id)
                await self._say(socket, {"type": "cancel", "request_id": request_id})
        elif chance < 0.9:
            await self._say(socket, {"type": "history", "limit": 5})
        else:
            await self._say(socket, {"type": "ping"})


# --- programs ------------------------------------------------------------------------------------------------------


class Program:
    """A program that uses the real client, keeps its position, and goes on from there."""

    def __init__(self, world: World, name: str, rng: random.Random) -> None:
        self.questions = Questions(world, name, rng)
        self.session_id: str | None = None
        self._world = world
        self._name = name
        self._rng = rng
        self._position: m.Position | None = None
        self._pieces: dict[str, dict[int, str]] = {}
        self._needless_resets: list[str | None] = []

    async def live(self) -> None:
        while not (self._world.is_calm and not self.questions.open):
            if not self._world.is_calm:
                await asyncio.sleep(self._rng.expovariate(1 / self._rng.choice((0.2, 1, 10))))
            await self._world.come_up()
            await self._visit()
        assert self._needless_resets == []
        for request_id, end in self.questions.ends.items():
            self.questions.check(request_id, "".join(self._pieces.get(request_id, {}).values()), end)

    async def _visit(self) -> None:
        client = Client(
            URL,
            self._name,
            session_id=self.session_id,
            position=self._position,
            window=self._rng.choice((1, 10, 1024)),
            connect_timeout_s=15,
            reconnect_timeout_s=self._rng.choice((5, 60)),
            backoff=Backoff(jitter=self._rng.random),
            listen=self._hear,
        )
        has_read_on = True
        try:
            await client.open()
            async with asyncio.timeout(60 if self._world.is_calm else self._rng.expovariate(1 / 30)):
                await self._use(client)
        except (TimeoutError, TakenOverError):
            has_read_on = False  # taken over by a hello of one's own that was long on its way
        except (UnreachableError, ServerFaultError):
            await self._world.come_up()
        finally:
            self.session_id, self._position = client.session_id or self.session_id, client.position or self._position
            # Who stops reading in the middle must not acknowledge what comes meanwhile: it counts as read.
            await client.close(ack=has_read_on and self._rng.random() < 0.7)

    def _hear(self, notice: Notice) -> None:
        """What was sent is taken back by a loss of power alone: else no position that this program had is unknown."""
        if isinstance(notice, Connected) and notice.welcome.status == "reset":
            self._world.seen["resets"] += 1
            if notice.welcome.reason not in ("below_floor", self._world.has_forgotten and "client_ahead"):
                self._needless_resets.append(notice.welcome.reason)

    async def _use(self, client: Client) -> None:
        async for generation in client.collect():
            await self._read(generation)
        for request_id in self.questions.open:
            await self._read(self._ask(client, self.questions.asked[request_id]))
        while not self._world.is_calm and len(self.questions.asked) < MOST_ASKED:
            several = [self._ask(client, self.questions.new()) for _ in range(self._rng.randint(1, 3))]
            for generation in several:
                if self._rng.random() < 0.15:
                    self.questions.cancelled.add(generation.request_id)
                    generation.cancel()
                await self._read(generation)
            await asyncio.sleep(self._rng.expovariate(1 / 3))

    def _ask(self, client: Client, request: dict[str, Any]) -> Generation:
        return client.generate(
            request["prompt"], request_id=request["request_id"], config=m.Sampling(**request["config"])
        )

    async def _read(self, generation: Generation) -> None:
        """Reads an answer. A new client may repeat what one read out of turn; in itself it is without a gap."""
        request_id, world = generation.request_id, self._world
        pieces = self._pieces.setdefault(request_id, {})
        next_index: int | None = None
        refused: RequestRejectedError | None = None
        try:
            async for event in generation:
                world.note(self._name, repr(event))
                if self._rng.random() < 0.05 and not world.is_calm:
                    await asyncio.sleep(self._rng.expovariate(1))  # meanwhile more arrives than is read
                world.seen["events"] += not isinstance(event, m.Queue)
                match event:
                    case m.Token():
                        assert next_index in (None, event.index), "a token was lost or repeated"
                        # A snapshot's part has no ids.
                        next_index = event.index + len(event.ids) if event.ids else None
                        self._pieces[request_id] = pieces = {
                            at: each for at, each in pieces.items() if at < event.index
                        }
                        pieces[event.index] = event.data
                    case Reset():
                        self._pieces[request_id] = pieces = {-1: event.text}
                        next_index = None
                    case m.Done():
                        self._end(request_id, event.finish_reason)
        except WithdrawnError:
            pass
        except GenerationError as error:
            self._end(request_id, error.code)
        except RequestRejectedError as error:
            refused = error
        assert refused is None or refused.code in REFUSALS, f"refused: {refused}"
        if refused is not None and refused.code == "duplicate":
            # What the client took back had reached the server. Anything else would have been acknowledged unread.
            assert request_id in self.questions.cancelled
            self._end(request_id, "cancelled")

    def _end(self, request_id: str, end: str) -> None:
        assert self.questions.ends.setdefault(request_id, end) == end, "an answer ended twice"

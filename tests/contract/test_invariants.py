"""The fifteen invariants of the protocol, a test each, as a client sees them. Source: PROTOCOL.md, "Invariants".

Small on purpose: one scene that breaks when the invariant does. The property tests look for scenes nobody thought of,
and `tools/mutants` plants a fault for each invariant that its test must notice. "hub" is the pure hub, "socket" a
real server process; where a scene needs to hold the disk or look beside the protocol, only one of them can play it.
"""

from __future__ import annotations

import base64
import copy
import http.client
import json
import random
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from llmws.session import events as e
from llmws.session.rules import Rules
from tests.support.model_client import ModelClient, Story
from tests.support.stages import Client, HubStage, SocketStage, Stage

COUNT = {"input_ids": [9]}
"""Asks for numbers, one a step."""

HELLO = {"prompt": {"system": "", "user": "hi"}}
"""Asks for `Hello` in two steps: events 1 to 4 of a fresh session."""

APART: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
"""The same, of which the conversation knows nothing."""


@pytest.fixture(params=["hub", "socket"])
async def stage(request, tmp_path) -> AsyncIterator[Stage]:
    made: Any = HubStage() if request.param == "hub" else SocketStage(tmp_path)
    if request.param == "socket":
        await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def hub() -> AsyncIterator[HubStage]:
    made = HubStage()
    yield made
    await made.stop()


class User:
    """One client of one session, over any number of connections. It applies events as the protocol says."""

    def __init__(
        self, stage: Stage, story: Story | None = None, mode: Literal["takeover", "observe"] = "takeover"
    ) -> None:
        self.stage = stage
        self.model = ModelClient(story or Story(), mode)
        self.events: list[dict[str, Any]] = []
        self.line: Client | None = None

    async def attach(self, *, window: int | None = None) -> dict[str, Any]:
        """A new connection that goes on where the last one ended; returns its welcome."""
        self.line = await self.stage.connect()
        await self.send({**self.model.hello(window=window), "auth": self.stage.token})
        return await self.next()

    async def send(self, message: dict[str, Any]) -> None:
        assert self.line is not None
        if message["type"] == "ack":
            self.model.ack(message.get("seq"))
        await self.line.send(message)

    async def ask(self, request_id: str, what: dict[str, Any] = HELLO, **config: Any) -> None:
        self.model.story.has_asked = True
        await self.send({"type": "inference", "request_id": request_id, **what, "config": {"seed": 1, **config}})

    async def next(self) -> dict[str, Any]:
        assert self.line is not None
        message = await self.line.receive()
        self.model.receive(message)
        if "seq" in message and "epoch" in message:
            self.events.append(message)
        return message

    async def until(self, enough: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        while not enough(message := await self.next()):
            pass
        return message

    async def read_to(self, seq: int) -> None:
        """Reads until the event with this seq has come."""
        while self.model.last_seq < seq:
            await self.next()

    async def step(self) -> None:
        """After a restart: reads that the answer goes on, and its next token."""
        await self.until(lambda message: message.get("code") == "resumed_after_restart")
        await self.stage.step()
        await self.until(lambda message: message["type"] == "token")

    async def nothing_comes(self) -> bool:
        """Whether nothing is on its way before the answer to a ping."""
        await self.send({"type": "ping"})
        return (await self.next())["type"] == "pong"


async def replay(user: User) -> list[dict[str, Any]]:
    """The session's whole log, as an observer who knows nothing is told it."""
    other = User(user.stage, user.model.story, "observe")
    await other.attach()
    await other.until(lambda message: message.get("code") == "caught_up")
    return other.events


def names(events: list[dict[str, Any]]) -> list[tuple[int, int]]:
    return [(event["epoch"], event["seq"]) for event in events]


def terminals(events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(event["request_id"], event["type"]) for event in events if event["type"] in ("done", "error")]


# --- 1 to 4: the log is what happened ------------------------------------------------------------------------------


async def test_invariant_01_what_a_client_applied_is_a_contiguous_run_of_the_log(stage):
    """The line is cut after every event; `ModelClient` fails at the first one out of place."""
    user = User(stage)
    await user.attach()
    await user.ask("a", COUNT, max_new_tokens=8)
    for seq in range(1, 10):
        await user.read_to(seq)
        await user.line.cut()
        await stage.step()
        assert (await user.attach())["status"] == "resumed"
    await user.read_to(10)

    assert names(user.events) == [(user.model.epoch, seq) for seq in range(1, 11)]
    assert user.events == await replay(user)


async def test_invariant_02_with_time_enough_a_client_reaches_the_end(stage):
    """One that was away, and one that takes two events at a time; both are told when they are level."""
    slow, away = User(stage), User(stage)
    for user in (slow, away):
        await user.attach(window=2)
        await user.ask("a", COUNT, max_new_tokens=8)
        await user.read_to(1)
    await away.line.cut()
    for _ in range(8):
        await stage.step()
    await away.attach()
    await away.until(lambda message: message.get("code") == "caught_up")
    for seq in range(1, 11):
        await slow.read_to(seq)
        await slow.send({"type": "ack", "seq": seq})
    await away.read_to(10)

    assert [terminals(user.events) for user in (slow, away)] == [[("a", "done")]] * 2


async def test_invariant_03_nothing_is_sent_before_it_is_written(hub):
    user = User(hub)
    await user.attach()
    await user.ask("a", COUNT, max_new_tokens=4)
    await user.read_to(1)
    hub.is_store_stuck = True
    await hub.step()
    await hub.step()
    hub.post(e.Drained(max(hub.clients)))
    await user.send({"type": "ack", "seq": 1})
    assert await user.nothing_comes()  # not even that the acknowledgement was taken: a kill would undo it
    hub.is_store_stuck = False
    hub.post(e.Tick())
    await user.until(lambda message: message["type"] == "ack_received")
    await user.read_to(3)


async def test_invariant_03_what_was_sent_survives_a_kill(stage):
    """Killed the moment after each event came: the position is never ahead of the log."""
    user = User(stage)
    await user.attach()
    await user.ask("a", COUNT, max_new_tokens=3)
    await user.read_to(1)
    for _ in range(3):
        await stage.restart()
        assert (await user.attach())["status"] == "resumed"
        await user.step()
    await user.until(lambda message: message["type"] == "done")

    assert user.events == await replay(user)


async def test_invariant_04_a_name_never_stands_for_two_events(hub):
    """Not even when the disk is set back: what follows has other names, and who saw more is told."""
    user = User(hub)
    await user.attach()
    await user.ask("a", COUNT, max_new_tokens=8)
    await hub.step()
    await user.read_to(2)
    backup = copy.deepcopy(hub.disk)
    await hub.step()
    await user.read_to(3)
    lost = user.events[-1]
    hub.disk = backup
    await hub.restart()
    await hub.step()
    other = await replay(user)

    assert other[1] == user.events[1]
    assert other[2]["seq"] == lost["seq"]
    assert other[2]["epoch"] > lost["epoch"]
    user.line = await hub.connect()
    await user.send({**user.model.hello(window=None), "auth": hub.token})
    welcome = await user.line.receive()
    assert (welcome["status"], welcome["reason"]) == ("reset", "client_ahead")


# --- 5: acknowledgement --------------------------------------------------------------------------------------------


async def test_invariant_05_the_floor_never_passes_the_owners_ack(hub):
    """Acks from beyond what was sent, from the past, from an observer, and the same after a restart."""
    user = User(hub)
    await user.attach(window=3)
    await user.ask("a", COUNT, max_new_tokens=8)
    for _ in range(8):
        await hub.step()
    await user.read_to(3)
    observer = User(hub, user.model.story, "observe")
    await observer.attach()
    await observer.read_to(10)
    await observer.send({"type": "ack", "seq": 10})
    await user.send({"type": "ack", "seq": 2})
    await user.until(lambda message: message["type"] == "ack_received")
    await user.line.send({"type": "ack", "seq": 9})
    assert (await user.until(lambda message: message["type"] == "error"))["code"] == "bad_request"
    await user.line.send({"type": "ack", "seq": 1})
    hub.clock.now_s += 1
    hub.post(e.Tick())
    assert (await user.until(lambda message: message["type"] == "ack_received"))["floor_seq"] == 2
    await hub.restart()
    welcome = await user.attach()

    assert (welcome["floor_seq"], welcome["head_seq"]) == (2, 10)


# --- 6 to 9: requests ----------------------------------------------------------------------------------------------


async def test_invariant_06_every_request_ends_once(stage):
    """Told, stopped by a cancel, cancelled in the queue, and impossible.

    `ModelClient` checks the rest: nothing follows an end, indices join, the text's hash is right.
    """
    user = User(stage)
    await user.attach()
    await user.ask("told")
    await user.ask("stopped", COUNT, max_new_tokens=90)
    await user.ask("waiting")
    await user.ask("impossible", {"input_ids": [4] * 64})
    await user.read_to(1)
    for _ in range(2):
        await stage.step()
    await user.read_to(5)
    await stage.step()
    await user.read_to(6)
    for request_id in ("waiting", "stopped", "stopped", "waiting"):
        await user.send({"type": "cancel", "request_id": request_id})
    await user.until(lambda message: message.get("request_id") == "impossible" and message["type"] == "error")
    await stage.step()

    assert terminals(user.events) == [
        ("told", "done"),
        ("waiting", "done"),
        ("stopped", "done"),
        ("impossible", "error"),
    ]
    assert [event["finish_reason"] for event in user.events if event["type"] == "done"] == [
        "stop",
        "cancelled",
        "cancelled",
    ]
    assert user.events == await replay(user)


async def test_invariant_07_requests_start_in_order_one_at_a_time(stage):
    user = User(stage)
    await user.attach()
    for request_id in "abc":
        await user.ask(request_id)
    for start in (1, 5, 9):
        await user.read_to(start)
        for _ in range(2):
            await stage.step()
    await user.read_to(12)

    story = [(event["type"], event["request_id"]) for event in user.events if event["type"] != "token"]
    assert story == [(kind, each) for each in "abc" for kind in ("start", "done")]


async def test_invariant_08_the_same_request_runs_once(stage):
    """Sent again while open, when done, after a restart, when acknowledged and dropped, and after another restart."""
    user = User(stage)
    await user.attach()
    await user.ask("a", APART)
    await user.ask("a", APART)
    await user.read_to(1)
    await stage.step()
    await user.ask("a", APART)
    await stage.step()
    await user.read_to(4)
    await user.ask("a", APART)
    await stage.restart()
    await user.attach()
    await user.ask("a", APART)
    assert (await user.until(lambda message: message["type"] == "queue"))["position"] == 0
    await user.send({"type": "ack", "seq": 4})
    await user.until(lambda message: message["type"] == "ack_received")
    for _ in range(2):
        await user.ask("a", APART)
        assert (await user.until(lambda message: message["type"] == "error"))["code"] == "duplicate"
        await stage.restart()
        await user.attach()

    assert [event["type"] for event in user.events] == ["start", "token", "token", "done"]


async def test_invariant_09_kills_do_not_change_the_text(stage):
    """A kill after each token."""
    user = User(stage)
    await user.attach()
    await user.ask("whole", COUNT, max_new_tokens=4)
    await user.read_to(1)
    for _ in range(4):
        await stage.step()
    await user.read_to(6)
    await user.ask("killed", COUNT, max_new_tokens=4)
    await user.read_to(7)
    for _ in range(4):
        await stage.restart()
        await user.attach()
        await user.step()
    await user.until(lambda message: message["type"] == "done")

    assert user.model.texts["killed"] == user.model.texts["whole"] == "1 2 3 4 "
    assert [event["from_index"] for event in user.events if event["type"] == "log"] == [0, 1, 2, 3]


# --- 10: bounds ----------------------------------------------------------------------------------------------------


async def test_invariant_10_no_more_is_in_flight_than_the_window(hub):
    """Live, after an ack, and replayed; `ModelClient` fails at the first event beyond."""
    user = User(hub)
    await user.attach(window=3)
    await user.ask("a", COUNT, max_new_tokens=20)
    for _ in range(20):
        await hub.step()
    await user.read_to(3)
    assert await user.nothing_comes()
    await user.send({"type": "ack", "seq": 2})
    await user.read_to(5)
    assert await user.nothing_comes()
    await user.line.cut()
    await user.attach(window=4)
    await user.read_to(9)
    assert await user.nothing_comes()


async def test_invariant_10_a_client_that_takes_nothing_costs_no_memory(hub):
    """Frames that are on the disk are also kept in memory up to a bound, and without a client not at all."""
    user = User(hub)
    await user.attach(window=0)
    for number in range(12):
        await user.ask(f"r{number}", COUNT, max_new_tokens=60)
        for _ in range(60):
            await hub.step()
    log = hub.hub._state.sessions[user.model.story.session_id].log

    def held_bytes() -> int:
        frames = (log.frame(seq) for seq in range(1, log.last_seq + 1))
        return sum(len(frame) for frame in frames if frame is not None)

    written_bytes = sum(
        len(record.value) for record in hub.disk.sessions[user.model.story.session_id].records["buffer"]
    )
    assert written_bytes > Rules().tail_bytes >= held_bytes() > 0
    await user.line.cut()
    assert held_bytes() == 0


# --- 11 to 13: who hears what --------------------------------------------------------------------------------------


async def test_invariant_11_a_connection_that_was_taken_over_hears_and_does_nothing_more(hub):
    first = User(hub)
    second = User(hub, first.model.story)
    await first.attach()
    await first.ask("a", COUNT, max_new_tokens=8)
    await hub.step()
    await first.read_to(2)
    old = first.line
    await second.attach()
    for each in ({"type": "ack", "seq": 2}, {"type": "cancel", "request_id": "a"}):
        await first.line.send(each)
        old.close_code, code = None, old.close_code  # as if its close had not reached it yet
        await old.send(each)
        old.close_code = code
    await hub.step()
    await second.read_to(3)
    hub.post(e.Detach(old.number))  # the late death of the old socket
    await hub.step()
    await second.read_to(4)

    assert old.close_code == 4409
    assert list(old.frames) == []
    assert second.model.terminals == {}
    assert (await second.attach())["floor_seq"] == 0


STRANGERS: list[list[Any]] = [
    ["ping", {"type": "hello", "auth": "wrong"}],
    ["ping", {"type": "hello"}],
    [{}],
    [{"session_id": "<S>"}],
    [{"type": "hello", "auth": "wrong", "session_id": "<S>", "mode": "observe"}],
    [{"type": "list_sessions"}],
    [{"type": "ack", "seq": 1}],
    ["not JSON"],
    [b"\x00\xff"],
]


@pytest.mark.parametrize("frames", STRANGERS, ids=str)
async def test_invariant_12_a_stranger_hears_a_pong_one_error_and_a_close(hub, frames):
    """Also one who knows the session's id, and who goes on talking after the close."""
    user = User(hub)
    await user.attach()
    await user.ask("a")
    stranger = await hub.connect()
    for frame in frames:
        message = {"type": "ping"} if frame == "ping" else frame
        if isinstance(message, dict) and "session_id" in message:
            message = {**message, "session_id": user.model.story.session_id}
        await stranger.send(message)
    code = await stranger.closed()
    await stranger.send({"type": "hello", "auth": hub.token})
    await hub.step()
    heard = [json.loads(frame)["type"] for frame in stranger.frames]

    assert heard == ["pong"] * frames.count("ping") + ["error"]
    assert code in (4400, 4401)
    assert user.line.close_code is None


async def test_invariant_12_a_foreign_page_hears_an_http_error(tmp_path):
    stage = SocketStage(tmp_path)
    await stage.start()
    try:
        line = http.client.HTTPConnection("127.0.0.1", stage.ready["port"], timeout=10)
        upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
        key = base64.b64encode(bytes(16)).decode()
        line.request("GET", "/v1/ws", headers={**upgrade, "Sec-WebSocket-Key": key, "Origin": "https://evil.example"})
        assert line.getresponse().status == 403
        line.close()
    finally:
        await stage.stop()


CANARY = "xylographical-canary"


async def test_invariant_13_the_disk_holds_no_word_of_prompt_or_answer(tmp_path):
    """While it runs, when it is done, after a kill, and after the buffer was dropped."""
    stage = SocketStage(tmp_path)
    await stage.start()
    state = tmp_path / "state"
    try:
        user = User(stage)
        await user.attach()
        await user.ask("req-" + CANARY, {"prompt": {"system": CANARY, "user": CANARY}})
        await user.read_to(1)
        await stage.step()
        await user.read_to(2)
        assert _plaintext(state) == []
        await stage.restart()
        await user.attach()
        await user.step()
        await user.until(lambda message: message["type"] == "done")
        assert _plaintext(state) == []
        await user.send({"type": "ack"})
        await user.until(lambda message: message["type"] == "ack_received")
        assert _plaintext(state) == []
    finally:
        await stage.stop()


def _plaintext(state: Path) -> list[str]:
    """Files in which something of the conversation can be read, plain or in one of base64's three alignments."""
    words = [CANARY.encode(), b'"Hello"', b'"He"', b"finish_reason"]
    words += [base64.b64encode(bytes(shift) + CANARY.encode())[4:-4] for shift in range(3)]
    files = [path for path in state.rglob("*") if path.is_file()]
    assert any(path.parent.parent.name == "sessions" for path in files)
    return [path.name for path in files if any(word in path.read_bytes() for word in words)]


# --- 14: recovery --------------------------------------------------------------------------------------------------


async def test_invariant_14_whatever_the_bytes_a_log_opens_as_a_true_prefix(tmp_path):
    """Cut anywhere, a bit flipped anywhere, lines lost, doubled and exchanged, and plain noise."""
    from llmws.store.folder import Site, open_session
    from llmws.store.keys import load_keys

    stage = SocketStage(tmp_path)
    await stage.start()
    try:
        user = User(stage)
        await user.attach()
        await user.ask("a", COUNT, max_new_tokens=5)
        await user.read_to(1)
        for _ in range(5):
            await stage.step()
        await user.read_to(7)
    finally:
        await stage.stop()
    folder = tmp_path / "state" / "sessions" / str(user.model.story.session_id)
    good = (folder / "buffer.jsonl").read_bytes()
    kept = shutil.copytree(folder, tmp_path / "kept")
    site = Site(state=tmp_path / "state", keys=load_keys(tmp_path / "state", key_file=None))

    def opened(data: bytes) -> Any:
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
        (folder / "buffer.jsonl").write_bytes(data)
        found = open_session(site, folder.name)
        assert found is not None
        found[0].close(found[1].meta)
        return found[1]

    whole = opened(good).records
    assert len(whole) == 9
    for damaged in _damages(good, random.Random(14)):
        found = opened(damaged)
        assert found.records == whole[: len(found.records)]
        survivors = set(good.splitlines()[1 + len(found.records) :]) & set(damaged.splitlines())
        assert found.corrupt_epoch or not survivors, "more was lost, in silence, than a torn last write"


def _damages(good: bytes, chance: random.Random) -> list[bytes]:
    lines = good.splitlines(keepends=True)
    cuts = [good[: chance.randrange(len(good))] for _ in range(25)]
    flips = []
    for _ in range(50):
        at = chance.randrange(len(good))
        flips.append(good[:at] + bytes([good[at] ^ (1 << chance.randrange(8))]) + good[at + 1 :])
    shuffled = [b"".join(lines[:n] + lines[n + 1 :]) for n in range(len(lines) - 1)]
    shuffled += [b"".join([*lines[:n], lines[n], *lines[n:]]) for n in range(1, len(lines))]
    shuffled += [b"".join([*lines[:n], lines[n + 1], lines[n], *lines[n + 2 :]]) for n in range(len(lines) - 1)]
    noise = [b"", b"\n" * 50, chance.randbytes(300), good + chance.randbytes(300), b"{" * 300]
    return cuts + flips + shuffled + noise


# --- 15: the end ---------------------------------------------------------------------------------------------------


async def test_invariant_15_an_expired_session_leaves_nothing():
    """Neither on the disk, where its files held its keys, nor in memory; its id is then like one that never was."""
    hub = HubStage(session_ttl_s=600.0)
    user = User(hub)
    await user.attach()
    await user.ask("a", COUNT, max_new_tokens=2)
    for _ in range(2):
        await hub.step()
    await user.read_to(4)
    await user.line.cut()
    for _ in range(12):
        hub.clock.now_s += 61
        hub.post(e.Tick())

    assert (hub.disk.sessions, hub.disk.deleted) == ({}, set())
    assert (hub.hub._state.sessions, hub.hub._state.detached_s, hub.engine.keys) == ({}, {}, [])
    other = await hub.connect()
    await other.send({"type": "hello", "auth": hub.token, "session_id": user.model.story.session_id})
    welcome = await other.receive()
    assert (welcome["status"], welcome["reason"]) == ("new", "session_unknown")
    await hub.stop()

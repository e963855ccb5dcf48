"""`kill -9` at the worst moments: while a log is compacted or dropped, twice in a request, just after an end.

The engine says what its script says, so a start takes half a second and many kills fit; `test_kill_server.py` kills a
server with a real model.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed

from tests.faults.streaming_server import StreamingServer, running
from tests.faults.tally import Tally
from tests.faults.users import User, kill, kill_and_return, scripted

COUNT = 400
START_S = 0.6
"""Well after this a server listens, and has opened what was unfinished."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[StreamingServer]:
    with running(tmp_path) as server:
        yield server


@pytest.fixture
async def users(request: pytest.FixtureRequest, server: StreamingServer, tally: Tally) -> AsyncIterator[list[User]]:
    """Eight, in sessions of their own; the parameter is how large a token is to be."""
    size_bytes = getattr(request, "param", 1024)
    users = [scripted(server, tally, tokens=COUNT, size_bytes=size_bytes) for _ in range(8)]
    yield users
    for user in users:
        await user.drop()


@pytest.fixture
async def user(users: list[User]) -> User:
    """The first, attached."""
    await users[0].attach()
    return users[0]


def wait_for_draft(server: StreamingServer) -> bool:
    """Returns when the log is being written anew; False when it was not in half a second."""
    (session,) = (server.state / "sessions").iterdir()
    draft = str(session / "buffer.jsonl.new")
    ends_s = time.monotonic() + 0.5
    while time.monotonic() < ends_s:
        if os.access(draft, os.F_OK):
            server.signal(signal.SIGKILL)
            return True
    return False


async def test_killed_while_the_log_is_compacted(server: StreamingServer, user: User, tally: Tally) -> None:
    """A client acknowledges as it reads, so the log is written anew several times a second.

    The kill comes at the sight of the draft, or somewhere near.
    """
    kind = "log being compacted"
    chance = random.Random(3)
    for number in range(tally.share(kind)):
        request_id = f"kill-{number}"
        await user.ask(request_id)
        await user.read_tokens(request_id, chance.randrange(1, COUNT // 2))
        watch = asyncio.create_task(asyncio.to_thread(wait_for_draft, server))
        with contextlib.suppress(ConnectionClosed):
            while not watch.done() and request_id not in user.model.terminals:
                await user.ack(all_but=100)
                await user.read()
        tally.heard["drafts seen"] += await watch
        (welcome,) = await kill_and_return(user, tally=tally, kind=kind)
        assert welcome["status"] == "resumed"
        await user.read_end(request_id, acknowledge=True)


async def test_killed_while_the_buffer_is_dropped(user: User, tally: Tally) -> None:
    """Everything is acknowledged and the server dies somewhere on the way from the ack to its answer."""
    kind = "log being dropped"
    chance = random.Random(4)
    for number in range(tally.share(kind)):
        request_id = f"kill-{number}"
        await user.ask(request_id)
        await user.read_end(request_id)
        await user.ack()
        await asyncio.sleep(chance.random() * 0.02)  # where on the way
        (welcome,) = await kill_and_return(user, tally=tally, kind=kind)
        assert (welcome["status"], welcome["head_seq"]) == ("resumed", user.model.last_seq)
        await user.ask(request_id)
        answer = await user.read()
        while answer["type"] == "log":
            answer = await user.read()
        assert (answer["type"], answer.get("code")) in (("queue", None), ("error", "duplicate"))


async def test_killed_again_and_again_in_one_request(user: User, tally: Tally) -> None:
    """By turns right after the restart, before a new token, and some tokens on."""
    kind = "one request again and again"
    chance = random.Random(6)
    kills, number = tally.share(kind), 0
    while kills:
        request_id, cuts = f"kill-{number}", min(kills, 4)
        resumes = len(user.resumes)
        await user.ask(request_id)
        for cut in range(cuts):
            if cut % 2:
                while len(user.resumes) == resumes:
                    await user.read()
            else:
                await user.read_tokens(request_id, user.model.next_index.get(request_id, 0) + chance.randrange(1, 100))
            await kill_and_return(user, tally=tally, kind=kind)
        await user.read_end(request_id)
        # The last kill may have come after the end was written.
        assert len(user.resumes) - resumes in (cuts, cuts - 1)
        kills, number = kills - cuts, number + 1


async def test_killed_right_after_the_end_was_received(user: User, tally: Tally) -> None:
    """The end stands: nothing of the request comes again, and asked again it does not run again."""
    kind = "right after the end"
    for number in range(tally.share(kind)):
        request_id = f"kill-{number}"
        await user.ask(request_id)
        await user.read_end(request_id)
        seq = user.model.last_seq
        (welcome,) = await kill_and_return(user, tally=tally, kind=kind)
        assert (welcome["status"], welcome["head_seq"], welcome["requests"]) == ("resumed", seq, [])
        assert (await user.read())["code"] == "caught_up"
        await user.ask(request_id)
        assert (await user.read())["type"] == "queue"
    await user.ask("next")
    await user.read_end("next")

    assert user.model.started == [*(f"kill-{number}" for number in range(tally.share(kind))), "next"]
    assert user.resumes == []


@pytest.mark.parametrize("users", [512], indirect=True)  # a hundred answers of more would fill a conversation
async def test_killed_while_several_sessions_stream(users: list[User], tally: Tally) -> None:
    """Eight of them, one with two requests in line; nobody gets anything of another."""
    kind = "eight sessions streaming"
    chance = random.Random(5)
    for user in users:
        await user.attach()
    for number in range(tally.share(kind)):
        keys = [f"kill-{number}", f"next-{number}"]
        for user in users:
            await user.ask(keys[0])
        await users[0].ask(keys[1])
        await users[chance.randrange(8)].read_tokens(keys[0], chance.randrange(1, COUNT - 100))
        await kill_and_return(*users, tally=tally, kind=kind)
        for user in users:
            await user.ask(keys[0])  # as every client does: the kill may have come before it was accepted
        await users[0].ask(keys[1])
        await asyncio.gather(*(user.read_end(keys[0]) for user in users))
        await users[0].read_end(keys[1])
        if number % 10 == 9:
            for user in users:
                await user.ack()
    assert users[0].model.started == [key for n in range(tally.share(kind)) for key in (f"kill-{n}", f"next-{n}")]


async def test_killed_while_it_starts_and_recovers(server: StreamingServer, user: User, tally: Tally) -> None:
    """With an answer to go on with in its log; what the dead one had mended, half mended or not begun makes no odds."""
    kind = "starting and recovering"
    chance = random.Random(7)
    for number in range(tally.share(kind)):
        if number % 5 == 0:
            await user.ask(f"kill-{number}")
            await user.read_tokens(f"kill-{number}", 50)
            await asyncio.to_thread(server.kill)
            await user.drop()
        server.launch()
        await asyncio.sleep(chance.random() * START_S)  # how far it has come
        await kill(user, tally=tally, kind=kind)
        if number % 5 == 4 or number + 1 == tally.share(kind):
            await asyncio.to_thread(server.start)
            assert (await user.attach())["status"] == "resumed"
            await user.read_end(f"kill-{number - number % 5}")
            await user.ack()


async def test_killed_while_a_prompt_is_rendered(server: StreamingServer, user: User, tally: Tally) -> None:
    """Accepted, but without a start: the request waits in the log, and the next process gives it its turn."""
    kind = "prompt being rendered"
    for number in range(tally.share(kind)):
        server.tell("hold")
        await user.ask_until_accepted(f"kill-{number}")
        (welcome,) = await kill_and_return(user, tally=tally, kind=kind)
        assert [each["request_id"] for each in welcome["requests"]] == [f"kill-{number}"]
        await user.read_end(f"kill-{number}")
    assert user.resumes == []


async def test_killed_while_nothing_happens(user: User, tally: Tally) -> None:
    """All is acknowledged: there is no log, and the numbers go on all the same."""
    kind = "idle"
    for number in range(tally.share(kind)):
        await user.ask(f"kill-{number}")
        await user.read_end(f"kill-{number}")
        await user.ack()
        await user.read_until("ack_received")
        (welcome,) = await kill_and_return(user, tally=tally, kind=kind)
        assert (welcome["status"], welcome["head_seq"]) == ("resumed", user.model.last_seq)

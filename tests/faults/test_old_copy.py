"""Somebody puts an old copy of the state folder back: whoever has seen more is told, and starts over from the copy.

That the files were replaced shows in none of them. It shows in the position that a client comes back with, also when
the copy has grown longer than what the client had seen.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.faults.streaming_server import StreamingServer, running
from tests.faults.tally import Tally
from tests.faults.users import User, scripted
from tests.support.model_client import Story

TOKENS = 60


@pytest.fixture
def server(tmp_path: Path) -> Iterator[StreamingServer]:
    with running(tmp_path) as server:
        yield server


@pytest.fixture
async def users(server: StreamingServer) -> AsyncIterator[list[User]]:
    """One who is ahead of the copy, and one who comes when it is in place. Both count for nobody."""
    users = [scripted(server, Tally(0), tokens=TOKENS) for _ in range(2)]
    yield users
    for user in users:
        await user.drop()


@pytest.mark.parametrize(
    ("copied", "grown"),
    [("in the middle of an answer", True), ("after an answer", False), ("before a kill", True)],
    ids=["copied in mid-answer, grown longer", "copied after an answer", "copied before a kill, grown longer"],
)
async def test_a_client_that_is_ahead_of_the_copy_starts_over(
    copied: str, grown: bool, server: StreamingServer, users: list[User]
) -> None:
    """It gets the answers that the copy has, and agrees from then on with whoever knows nothing else."""
    ahead, late = users
    await ahead.attach()
    await ahead.ask("before")
    await ahead.read_tokens("before", 20)
    if copied != "in the middle of an answer":
        await ahead.read_end("before")
    copy = server.folder / "copy"
    shutil.copytree(server.state, copy)
    if copied == "before a kill":
        await restart(server, ahead)
        await ahead.attach()
    await ahead.read_end("before")
    await ahead.ask("lost")
    await ahead.read_end("lost")
    await restart(server, ahead, copy=copy)

    late.model.session_id = ahead.session_id
    late.model.story.has_asked = True
    await late.attach()
    await late.read_end("before")
    if grown:
        for request_id in ("instead", "more"):
            await late.ask(request_id)
            await late.read_end(request_id)
        assert late.model.last_seq > ahead.model.last_seq
    await late.drop()

    lost_seq = ahead.model.last_seq
    ahead.model.story = Story()
    ahead.model.session_id = late.session_id
    ahead.model.story.has_asked = ahead.model.story.is_old_copy = True
    welcome = await ahead.attach()
    reason = "unknown_epoch" if copied == "before a kill" else "client_ahead"
    assert (welcome["status"], welcome["reason"]) == ("reset", reason)
    assert (late.model.last_seq > lost_seq) == grown
    await ahead.read_until("snapshot")
    late.model.mode = "observe"
    await late.attach()
    await ahead.ask("after")
    await asyncio.gather(*(user.read_end("after") for user in users))

    assert ahead.model.last_seq == late.model.last_seq
    ended = {request_id: late.model.texts[request_id] for request_id in late.model.terminals}
    assert {request_id: ahead.model.texts[request_id] for request_id in ahead.model.terminals} == ended
    assert list(ended) == ["before", *(["instead", "more"] if grown else []), "after"]


async def test_a_client_that_the_copy_knows_goes_on_in_it(server: StreamingServer, users: list[User]) -> None:
    """The copy has all that the client has seen: nothing starts over."""
    user, _ = users
    await user.attach()
    await user.ask("before")
    await user.read_end("before")
    copy = server.folder / "copy"
    shutil.copytree(server.state, copy)
    await restart(server, user, copy=copy)

    assert (await user.attach())["status"] == "resumed"
    await user.ask("after")
    await user.read_end("after")


async def restart(server: StreamingServer, user: User, *, copy: Path | None = None) -> None:
    """Kills the server and starts it again, perhaps on other files."""
    server.kill()
    await user.drop()
    if copy is not None:
        shutil.rmtree(server.state)
        shutil.copytree(copy, server.state)
    await asyncio.to_thread(server.start)

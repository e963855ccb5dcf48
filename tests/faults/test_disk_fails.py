"""A disk that is full or fails while answers are streamed: nobody is told what is not stored, and nothing told is lost.

The session whose files fail is sent away, the others go on, and when the disk is well again the answer goes on from
where it was. The faults are the test's own in one session's files, and once the kernel's.
"""

from __future__ import annotations

import resource
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.streaming_server import StreamingServer, running
from tests.faults.tally import Tally
from tests.faults.users import User, scripted


@pytest.fixture
def server(tmp_path: Path) -> Iterator[StreamingServer]:
    with running(tmp_path, "--steered") as server:
        yield server


@pytest.fixture
async def users(server: StreamingServer, tally: Tally) -> AsyncIterator[list[User]]:
    """Two, in sessions of their own: one to be hurt, and another."""
    users = [scripted(server, tally) for _ in range(2)]
    for user in users:
        await user.attach()
    yield users
    for user in users:
        await user.drop()


async def assert_sent_away(user: User, last: dict[str, Any] | None = None) -> None:
    """The user is told why, by an error that is no event, and the connection is closed."""
    message, close_code = await user.read_away()
    message = message or last or {}
    assert (message["type"], message["code"], message.get("seq"), close_code) == ("error", "storage_failed", None, 4500)
    await user.drop()


@pytest.mark.parametrize("fault", ["full", "unwritable", "unsyncable"])
async def test_files_that_fail_in_the_middle_of_an_answer_end_the_connection_and_not_the_answer(
    fault: str, server: StreamingServer, users: list[User]
) -> None:
    hurt, other = users
    for user in users:
        await user.ask("a")
        await user.read_tokens("a", 20)
    server.tell("fail", fault, hurt.session_id)
    await assert_sent_away(hurt)
    # As long as it lasts nobody gets in.
    await assert_sent_away(hurt, await hurt.attach())
    await other.read_end("a")
    server.tell("free")

    assert (await hurt.attach())["status"] == "resumed"
    await hurt.read_end("a")
    for user in users:
        await user.ask("b")
        await user.read_end("b")
        assert user.model.started == ["a", "b"]


@pytest.mark.parametrize("fault", ["full", "unwritable", "unsyncable"])
async def test_a_request_that_cannot_be_stored_is_not_accepted(
    fault: str, server: StreamingServer, users: list[User]
) -> None:
    """Neither the first of a session, nor a later one. It may be on the disk all the same; asked again it runs once."""
    hurt, other = users
    server.tell("fail", fault, hurt.session_id)
    await hurt.ask("a")
    await assert_sent_away(hurt)
    server.tell("free")
    await other.ask("a")
    await other.read_end("a")
    server.tell("fail", fault, other.session_id)
    await other.ask("b")
    await assert_sent_away(other)
    server.tell("free")

    hurt.model.story.has_asked = False
    for user in users:
        await user.attach()
        await user.ask("b")
        await user.read_end("b")
        assert user.model.started.count("b") == 1


async def test_a_server_that_can_write_nothing_at_all_lives_and_goes_on_when_it_can(
    server: StreamingServer, users: list[User]
) -> None:
    """The kernel refuses every byte: first beyond a size that both logs reach in mid-answer, then all."""
    for user in users:
        await user.ask("a")
        await user.read_tokens("a", 20)
    server.limit_file_bytes(200 * 1024)
    for user in users:
        await assert_sent_away(user)
        assert 20 < user.model.next_index["a"] < 200
    server.limit_file_bytes(0)
    for user in users:
        await assert_sent_away(user, await user.attach())
    server.limit_file_bytes(resource.RLIM_INFINITY)

    for user in users:
        assert (await user.attach())["status"] == "resumed"
        await user.read_end("a")
        assert user.model.started == ["a"]

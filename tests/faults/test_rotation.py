"""Master keys come and go, by the real commands, beside a server that streams sessions and is killed again and again.

Every answer comes whole whatever key its log begins, goes on and ends under, and a key that is gone is missed nowhere.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from llmws.store.rotation import open_site, references
from tests.faults.streaming_server import START_TIMEOUT_S, StreamingServer, running
from tests.faults.tally import Tally
from tests.faults.users import User, scripted
from tests.support.paths import ROOT

KIND = "keys being rotated"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[StreamingServer]:
    # Slow, so that the commands come in the middle of the answers.
    with running(tmp_path, "--step-s", "0.005") as server:
        yield server


@pytest.fixture
async def users(server: StreamingServer, tally: Tally) -> AsyncIterator[list[User]]:
    users = [scripted(server, tally, tokens=200) for _ in range(3)]
    yield users
    for user in users:
        await user.drop()


async def keys(server: StreamingServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs `llmws keys`."""
    places = ["--state-dir", str(server.state), "--config", str(server.folder / "config.json")]
    command = [sys.executable, "-m", "llmws", "keys", *arguments, *places]
    return await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
    )


async def test_keys_are_rotated_and_retired_under_load_and_kills(
    server: StreamingServer, users: list[User], tally: Tally
) -> None:
    """A key is refused to go as long as anything needs it, and gone, it is missed by nobody."""
    chance = random.Random(9)
    key_file = server.state / "keys" / "master.key"
    newest = 1
    for user in users:
        await user.attach()
    for _ in range(max(1, tally.share(KIND) // 3 - 2)):
        request_id = f"under-{newest}"
        for user in users:
            await user.ask(request_id)
        await users[0].read_tokens(request_id, 1)
        assert (await keys(server, "rotate")).returncode == 0
        newest += 1
        await kill_while_it_starts(server, users, tally, chance)
        refused = [await keys(server, "retire", str(kid)) for kid in (newest - 1, newest)]
        assert f"key {newest - 1} is needed by" in refused[0].stderr
        assert "seals what is new" in refused[1].stderr
        for user in users:
            assert (await user.attach())["status"] == "resumed"
        await asyncio.gather(*(user.read_end(request_id, acknowledge=newest % 2 == 0) for user in users))
    for user in users:
        await user.ack()
    # A session that has a buffer is opened at the start, and one that is open stays under its key.
    await asyncio.to_thread(wait_until, lambda: not any(server.state.glob("sessions/*/buffer.jsonl")))

    await kill_while_it_starts(server, users, tally, chance)
    site = open_site(server.state, key_file)
    await asyncio.to_thread(wait_until, lambda: set(references(site)) == {newest})
    soon = await keys(server, "retire", "1")
    assert (soon.returncode, "may not have noticed" in soon.stderr) == (1, True)
    for kid in range(1, newest):
        os.utime(key_file, (time.time() - 600,) * 2)  # as if the newest key were so old
        assert (await keys(server, "retire", str(kid))).returncode == 0
    await kill_while_it_starts(server, users, tally, chance)
    for user in users:
        assert (await user.attach())["status"] == "resumed"
        await user.ask("last")
        await user.read_end("last")


async def kill_while_it_starts(server: StreamingServer, users: list[User], tally: Tally, chance: random.Random) -> None:
    """Kills the server, the next one somewhere in its start, and leaves the one after that."""
    for _ in range(2):
        await asyncio.to_thread(server.kill)
        tally.kills[KIND] += 1
        server.launch()
        await asyncio.sleep(chance.random())  # how far it has come
    for user in users:
        await user.drop()
    await asyncio.to_thread(server.kill)
    tally.kills[KIND] += 1
    await asyncio.to_thread(server.start)


def wait_until(holds: Callable[[], bool]) -> None:
    ends_s = time.monotonic() + START_TIMEOUT_S
    while not holds():
        assert time.monotonic() < ends_s
        time.sleep(0.02)

"""The wall clock jumps, by an hour and by millennia, both ways: nothing expires, and every position stays good.

Epochs are counted on from the newest one where the clock has gone back, so that they never come twice.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.faults.streaming_server import StreamingServer, running
from tests.faults.tally import Tally
from tests.faults.users import User, scripted

YEAR_S = 365.25 * 86_400.0
SHIFTS_S = [0.0, 3600.0, -10 * YEAR_S, 2000 * YEAR_S, 1 - time.time(), 0.0]
"""Now, in an hour, ten years ago, about the year 4000, 1970, and now again."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[StreamingServer]:
    with running(tmp_path, "--steered") as server:
        yield server


@pytest.fixture
async def user(server: StreamingServer, tally: Tally) -> AsyncIterator[User]:
    user = scripted(server, tally, tokens=120)
    yield user
    await user.drop()


def restart(server: StreamingServer, shift_s: float) -> None:
    server.kill()
    server.arguments = ("--steered", "--clock-shift", str(shift_s))
    server.start()


async def test_answers_go_on_over_jumps_of_the_clock(server: StreamingServer, user: User) -> None:
    """While tokens are streamed, while the log is compacted and dropped, and between one process and the next."""
    epochs = [(await user.attach())["epoch"]]
    for number, (now_s, next_s) in enumerate(itertools.pairwise(SHIFTS_S)):
        kept, dropped = f"kept-{number}", f"dropped-{number}"
        await user.ask(dropped)
        await user.read_tokens(dropped, 20)
        server.tell("jump", next_s)
        await user.read_end(dropped, acknowledge=True)
        await user.ask(kept)
        await user.read_tokens(kept, 20)
        server.tell("jump", now_s)
        await user.read_tokens(kept, 40)
        await user.drop()
        restart(server, next_s)
        welcome = await user.attach()
        assert welcome["status"] == "resumed"
        epochs.append(welcome["epoch"])
        await user.read_end(kept, acknowledge=True)
        # Both questions and both answers of each round.
        assert await messages_of(user) == 4 * (number + 1)

    assert epochs == sorted(set(epochs))


async def messages_of(user: User) -> int:
    """How many messages the server lists for the user's session."""
    await user.send({"type": "list_sessions"})
    listed = await user.read_until("sessions")
    return next(each["messages"] for each in listed["sessions"] if each["session_id"] == user.session_id)

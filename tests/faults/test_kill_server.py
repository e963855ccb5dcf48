"""`kill -9` of a real server with a real model: nothing lost, nothing twice, the same text."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.tally import Tally
from tests.faults.users import User, kill, kill_and_return
from tests.support.real_server import RealServer

QUESTION = "How does llmws keep my answer when the connection drops?"
SAMPLINGS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 2.0, "seed": 1},
    {"temperature": 1.8, "seed": 2, "top_k": 0, "top_p": 1.0},
    {"temperature": 2.0, "seed": 3, "repetition_penalty": 1.2, "min_p": 0.01},
]
TOKENS = 160
LOADING_S = 2.0
"""The model is loaded somewhat later."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RealServer]:
    server = RealServer(tmp_path, "--model", "llmws-guide")
    server.start()
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
async def users(server: RealServer, tally: Tally) -> AsyncIterator[list[User]]:
    """One for each sampling, in sessions of their own."""
    # Past the end of the answer on purpose, so that there is always a middle to be killed in.
    config = {"max_new_tokens": TOKENS, "ignore_eos": True}
    question = {"messages": [{"role": "user", "content": QUESTION}]}
    users = [
        User(server, tally, {**question, "config": {**sampling, **config}}, tokens=TOKENS) for sampling in SAMPLINGS
    ]
    yield users
    for user in users:
        await user.drop()


async def test_killed_answers_equal_undisturbed_ones(users: list[User], tally: Tally) -> None:
    """Every stream of every kill: contiguous events, one end, and the text of the run without a kill."""
    kind = "guide model, greedy and seeded"
    for user in users:
        await user.attach()
        await user.ask("undisturbed")
    for user in users:
        await user.read_end("undisturbed")
    assert len({user.expected for user in users}) == len(users), "the samplings are meant to differ"

    chance = random.Random(20_26)
    for number, chosen in zip(range(tally.share(kind)), itertools.cycle(users), strict=False):
        request_id = f"kill-{number}"
        for user in users:
            await user.ask(request_id)
        await chosen.read_tokens(request_id, chance.randrange(1, TOKENS - 40))
        await kill_and_return(*users, tally=tally, kind=kind)
        for user in users:
            await user.ask(request_id)  # as every client does: the kill may have come before it was accepted
        for user in users:
            await user.read_end(request_id)
    resumes = [each for user in users for each in user.resumes]
    assert all(each["exact"] for each in resumes)
    assert len(resumes) >= tally.share(kind), "too few kills hit an answer in the middle"


async def test_one_answer_killed_again_and_again(server: RealServer, users: list[User], tally: Tally) -> None:
    """It goes on each time from where it was; killed before that, it has not begun: the prompt is being rendered.

    The server that comes next is killed too, while it loads the model.
    """
    kinds = [f"guide model, {each}" for each in ("one answer again and again", "prompt being rendered", "being loaded")]
    user = users[1]
    chance = random.Random(8)
    await user.attach()
    await user.ask("undisturbed")
    await user.read_end("undisturbed")
    hunted, unrendered, _ = map(tally.share, kinds)
    for number in range(unrendered):
        request_id = f"kill-{number}"
        await user.ask_until_accepted(request_id)
        await kill(user, tally=tally, kind=kinds[1])
        await asyncio.to_thread(server.start)
        await asyncio.sleep(chance.random() * LOADING_S)  # how far it has come
        await kill(user, tally=tally, kind=kinds[2])
        await asyncio.to_thread(server.start)
        await user.attach()
        for cut in range(hunted // unrendered):
            await user.read_tokens(request_id, 30 + 80 * cut)
            await kill_and_return(user, tally=tally, kind=kinds[0])
        await user.read_end(request_id)

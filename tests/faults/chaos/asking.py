"""One process of users who ask and ask until they are told that it is enough; it may be killed at any moment.

As a program: python -m tests.faults.chaos.asking PLAN, a `Plan` in JSON. Exits 0 when every one of them has the end of
everything that it asked. Invariant: what an earlier process of the same users has written down is never asked or seen
again.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tests.faults.askers import Address, ClientAsker, FrameAsker
from tests.faults.journal import Journal
from tests.faults.judge import Question


class UserPlan(msgspec.Struct, frozen=True):
    """One client: `url` is its own way to the server."""

    name: str
    url: str
    has_product_client: bool


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a process is told.

    Attributes:
        folder: of the journals, and of the file `enough` that ends the asking.
        prompts: what is asked; empty for numbers that the scripted engine understands.
        most_tokens: of an answer.
        heartbeat_s: how soon they notice that a connection is dead.
    """

    users: list[UserPlan]
    folder: str
    seed: str
    token: str | None
    prompts: list[str]
    most_tokens: int
    heartbeat_s: float

    def questions(self, user: UserPlan) -> Iterator[Question]:
        """All that this user may ask; the same in every process."""
        for number in itertools.count():
            question = Question.draw(f"{self.seed}/{user.name}", number, most_tokens=self.most_tokens)
            if self.prompts:
                question = msgspec.structs.replace(question, prompt=self.prompts[number % len(self.prompts)])
            yield question


def journal_path(folder: Path, user: UserPlan) -> Path:
    """Where a user's journal is."""
    return folder / f"{user.name}.jsonl"


def open_questions(plan: Plan, user: UserPlan, journal: Journal) -> Iterator[Question]:
    """What is still to be asked, or asked again: one, everything that was begun, and more until it is enough."""
    enough = Path(plan.folder) / "enough"
    for question in plan.questions(user):
        if journal.asked and question.request_id not in journal.asked and enough.exists():
            return
        yield question


async def be(user: UserPlan, plan: Plan) -> None:
    """Lives through one user's part."""
    journal = Journal(journal_path(Path(plan.folder), user))
    chance = random.Random(f"{plan.seed}/{user.name}/{os.getpid()}")
    kind = ClientAsker if user.has_product_client else FrameAsker
    asker = kind(Address(user.url, plan.token), journal, chance, heartbeat_s=plan.heartbeat_s)
    await asker.run(open_questions(plan, user, journal))
    journal.close()


async def be_all(plan: Plan) -> None:
    """Lives through everybody's part; the first who fails ends all."""
    async with asyncio.TaskGroup() as group:
        for user in plan.users:
            group.create_task(be(user, plan))


if __name__ == "__main__":
    asyncio.run(be_all(msgspec.json.decode(sys.argv[1], type=Plan)))

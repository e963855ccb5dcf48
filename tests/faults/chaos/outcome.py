"""One run of the chaos from beginning to end, and what it came to.

Knows neither sockets nor processes. Invariant: nothing is believed of the users' or the server's own checks; what each
has in the end is compared here.
"""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import msgspec

from tests.faults.askers import Address
from tests.faults.chaos.account import differences, fetch
from tests.faults.chaos.asking import Plan, UserPlan, journal_path
from tests.faults.chaos.storm import Storm, Weather
from tests.faults.journal import AnyEntry, Asked, Opened, read
from tests.faults.judge import Verdict, judge
from tests.faults.killable_server import KillableServer

HEARTBEAT_S = 1.0
"""Of the clients: a black hole is to be found out while the storm blows."""
MOST_ROUNDS = 10
"""A busy machine needs more than one, if they are short."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of a run.

    Attributes:
        verdict: of all users together.
        struck: how many connections came to which harm.
        server_kills, users_kills: how often each was killed with -9.
        logged: unacknowledged events that the server still had and that were compared.
        differences: what a user has otherwise than the server.
    """

    verdict: Verdict
    struck: dict[str, int]
    server_kills: int
    users_kills: int
    logged: int
    differences: list[str]

    @property
    def is_good(self) -> bool:
        """Whether nobody lost, got twice or got wrong anything."""
        return self.verdict.is_good and not self.differences

    @property
    def has_hit(self) -> bool:
        """Whether every kind of harm struck answers in the middle, and there was something to compare."""
        return self.verdict.has_been_hit and self.logged > 0

    def __str__(self) -> str:
        verdict = self.verdict
        waits_ms = sorted(verdict.waits_ms) or [0.0]
        complaints = "".join(f"\n  {each}" for each in (*verdict.wrong, *self.differences)[:20])
        return (
            f"{', '.join(f'{count} {name}' for name, count in self.struck.items())}\n"
            f"{self.server_kills} kills of the server, which went on with {verdict.continued} answers; "
            f"{self.users_kills} of client processes, which hit {verdict.kills} clients, "
            f"{verdict.kills_in_answers} of them in the middle of an answer\n"
            f"{verdict.cuts} connections lost, {verdict.cuts_in_answers} of them in the middle of an answer; "
            f"reattached in p50 {_quantile(waits_ms, 0.5):.0f} ms, p99 {_quantile(waits_ms, 0.99):.0f} ms\n"
            f"{verdict.answers} answers, {verdict.events} events, {verdict.tokens} tokens, "
            f"{self.logged} events still in the server's log: {verdict.lost} lost, {verdict.duplicated} duplicated, "
            f"{len(verdict.wrong)} wrong, {len(self.differences)} otherwise than the server has it{complaints}"
        )


def _quantile(values: list[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))]


async def chaos(
    server: KillableServer,
    folder: Path,
    *,
    clients: int,
    processes: int,
    seconds: float,
    seed: int,
    weather: Weather,
    most_tokens: int,
    prompts: tuple[str, ...] = (),
) -> Outcome:
    """Lets a storm pass over a server that runs, and looks at what is left.

    Args:
        server: started; it is killed and started again, and runs at the end.
        folder: of the users' journals.
        clients: how many, every second one with the product's client.
        processes: how many the clients are spread over.
        seconds: how long the storm blows; again and again if it has not hit every kind of victim by then.
        seed: decides everything but the timing.
        weather: how often what is killed.
        most_tokens: of an answer.
        prompts: what is asked; none for a scripted engine.
    """
    users = [UserPlan(f"user-{number:02}", "", number % 2 == 0) for number in range(clients)]
    plan = Plan(
        users=users,
        folder=str(folder),
        seed=str(seed),
        token=server.token,
        prompts=list(prompts),
        most_tokens=most_tokens,
        heartbeat_s=HEARTBEAT_S,
    )
    async with Storm(server, plan, processes=processes, chance=random.Random(seed), weather=weather) as storm:
        for _ in range(MOST_ROUNDS):
            await storm.blow(seconds)
            if _so_far(plan, folder).has_been_hit:
                break
        await storm.end()
    # Read by a process that remembers nothing: what it says is what was on the disk.
    server.kill()
    server.start()
    total, logged, found = Verdict(), 0, []
    for user in users:
        entries = read(journal_path(folder, user))
        account = await fetch(Address(server.ws_url, server.token), _session_of(entries))
        total += _judge(plan, user, entries)
        logged += len(account.events)
        found += [f"{user.name}: {each}" for each in differences(account, entries)]
    return Outcome(
        verdict=total,
        struck=storm.struck,
        server_kills=storm.server_kills,
        users_kills=storm.users_kills,
        logged=logged,
        differences=found,
    )


def _session_of(entries: list[AnyEntry]) -> str:
    return next(each.session_id for each in reversed(entries) if isinstance(each, Opened))


def _judge(plan: Plan, user: UserPlan, entries: list[AnyEntry]) -> Verdict:
    """Judges what the user has asked, as its processes were told to."""
    count = len({each.request_id for each in entries if isinstance(each, Asked)})
    return judge(entries, list(itertools.islice(plan.questions(user), count)), is_scripted=not plan.prompts)


def _so_far(plan: Plan, folder: Path) -> Verdict:
    """What the users have been through, while they are at it."""
    return sum((_judge(plan, user, read(journal_path(folder, user))) for user in plan.users), Verdict())

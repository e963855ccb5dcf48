"""Whatever a network does to connections, every user gets every token of every answer, once and in order.

Each run is a seed: a user, what is asked, and what happens to the first connections. `--network-seed N` repeats one.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from llmws.client import ClientError
from tests.faults.askers import Address, ClientAsker, FrameAsker
from tests.faults.journal import Journal
from tests.faults.judge import Question, Verdict, judge
from tests.faults.streaming_server import StreamingServer, running
from tests.support.fault_proxy import UNHARMED, Fault, FaultProxy, Treatment, draw

pytestmark = pytest.mark.network

SIDE_BY_SIDE = 8
QUESTIONS = 3
MOST_TOKENS = 80
REACH_BYTES = 12_000
LASTING_S = 0.4
RUN_TIMEOUT_S = 30


class Run(NamedTuple):
    """What one seed came to."""

    seed: int
    verdict: Verdict
    struck: Counter[str]
    error: str = ""

    @property
    def is_good(self) -> bool:
        return self.verdict.is_good and not self.error


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StreamingServer]:
    with running(tmp_path_factory.mktemp("server")) as server:
        yield server


def treatments(chance: random.Random) -> list[Treatment]:
    """What happens to a run's first connections; those after them are not harmed."""
    return [draw(chance, reach_bytes=REACH_BYTES, lasting_s=LASTING_S) for _ in range(chance.randint(2, 6))]


async def run(seed: int, server: StreamingServer) -> Run:
    """One user and its network."""
    chance = random.Random(seed)
    harm = treatments(chance)
    questions = [Question.draw(str(seed), number, most_tokens=MOST_TOKENS) for number in range(QUESTIONS)]
    journal = Journal()
    error = ""
    async with FaultProxy(
        lambda: server.port, lambda number: harm[number] if number < len(harm) else UNHARMED, chance=chance
    ) as proxy:
        asker = (ClientAsker, FrameAsker)[seed % 2](Address(proxy.url), journal, random.Random(seed))
        try:
            async with asyncio.timeout(RUN_TIMEOUT_S):
                await asker.run(questions)
        except (AssertionError, ClientError, TimeoutError) as failure:
            error = repr(failure)
        struck = proxy.struck
    return Run(seed, judge(journal.entries, questions), struck, error)


async def test_every_token_comes_once_whatever_the_network_does(
    server: StreamingServer, network_runs: int, network_seed: int | None
) -> None:
    """Product's client and bare frames in turns, several sessions side by side."""
    seeds = iter(range(network_runs) if network_seed is None else [network_seed])
    runs: list[Run] = []

    async def go_through() -> None:
        for seed in seeds:
            runs.append(await run(seed, server))  # noqa: PERF401 - several loops take from the same seeds

    await asyncio.gather(*(go_through() for _ in range(SIDE_BY_SIDE)))
    total = sum((each.verdict for each in runs), Verdict())
    struck = sum((each.struck for each in runs), Counter())
    print(report(runs, total, struck))

    assert [each for each in runs if not each.is_good] == []
    if network_seed is None:
        assert total.cuts_in_answers >= len(runs) // 2, "too few faults hit an answer in the middle"
        assert set(Fault) <= set(struck), "some fault never struck"


@pytest.mark.parametrize("kind", [ClientAsker, FrameAsker])
async def test_a_black_hole_is_left_although_nothing_ever_tells_of_it(
    kind: type[ClientAsker | FrameAsker], server: StreamingServer
) -> None:
    """Neither side hears of the other again; the client's own heartbeat finds that out, and it comes in elsewhere."""
    questions = [Question("q-0", "10", 200)]
    journal = Journal()
    endless = Treatment(fault=Fault.BLACK_HOLE, after_bytes=5000, lasting_s=3600)
    async with FaultProxy(lambda: server.port, lambda number: endless if number == 0 else UNHARMED) as proxy:
        async with asyncio.timeout(RUN_TIMEOUT_S):
            await kind(Address(proxy.url), journal, random.Random(1), heartbeat_s=0.2).run(questions)

    verdict = judge(journal.entries, questions)
    assert verdict.is_good, verdict
    assert (verdict.cuts, verdict.cuts_in_answers) == (1, 1)


def report(runs: list[Run], total: Verdict, struck: Counter[str]) -> str:
    harms = ", ".join(f"{count} {name}" for name, count in sorted(struck.items()))
    failed = "".join(f"\n  seed {each.seed}: {each.error or each.verdict}" for each in runs if not each.is_good)
    return (
        f"{len(runs)} runs, {total.answers} answers, {total.tokens} tokens; {harms};\n"
        f"{total.cuts} reconnects, {total.cuts_in_answers} of them in the middle of an answer: "
        f"{total.lost} lost, {total.duplicated} duplicated, {len(total.wrong)} wrong{failed}"
    )

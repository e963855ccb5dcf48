"""`kill -9` of clients in mid-answer: what the next process of the same user gets is exactly what was missing."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from llm_cli.show import PIECE_CHARS
from tests.faults.chaos.asking import Plan, UserPlan, journal_path
from tests.faults.chaos.storm import UsersProcess
from tests.faults.journal import Asked, read
from tests.faults.judge import judge
from tests.faults.spoken import spoken
from tests.faults.streaming_server import StreamingServer, running
from tests.support.paths import ROOT
from tests.support.terminal import command, environment

pytestmark = pytest.mark.network

TIMEOUT_S = 30
SIZE_BYTES = 10
COUNT = 400
ANSWER = spoken(COUNT, SIZE_BYTES)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StreamingServer]:
    with running(tmp_path_factory.mktemp("server")) as server:
        yield server


async def grows(path: Path, done: Callable[[], bool]) -> None:
    """Waits until what a process writes to a file is enough."""
    async with asyncio.timeout(TIMEOUT_S):
        while not (path.exists() and done()):  # noqa: ASYNC110 - another process writes
            await asyncio.sleep(0.002)


def is_dead(process: psutil.Process) -> bool:
    """Whether it does nothing any more, reaped or not."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class OneShot:
    """A user who asks with `llm` and, whenever it was killed, lets it go on; all output ends up in one file."""

    def __init__(self, folder: Path, url: str) -> None:
        self._folder = folder
        self._url = url
        self.output = folder / "output"
        self.output.touch()

    @property
    def shown(self) -> str:
        """What was shown so far; the line's end is no part of the answer."""
        return self.output.read_text().rstrip("\n")

    async def start(self, *arguments: str) -> None:
        with self.output.open("ab") as out, (self._folder / "complaints").open("ab") as complaints:
            self._process = await asyncio.create_subprocess_exec(
                *command(arguments),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=complaints,
                env=environment(self._folder),
                cwd=ROOT,
            )

    async def ask(self) -> None:
        await self.start("--url", self._url, "--max-tokens", str(COUNT), "--seed", "1", str(SIZE_BYTES))

    async def kill_at(self, size_bytes: int, *, and_its_scribe: bool = False) -> None:
        """`kill -9` as soon as so much is shown."""
        await grows(self.output, lambda: self.output.stat().st_size >= size_bytes)
        victims = psutil.Process(self._process.pid).children() if and_its_scribe else []
        self._process.kill()
        for victim in victims:
            victim.kill()
        await self._process.wait()
        async with asyncio.timeout(TIMEOUT_S):
            while not all(map(is_dead, victims)):  # noqa: ASYNC110 - other processes die
                await asyncio.sleep(0.002)

    async def go_on(self) -> None:
        await self.start("--continue")

    async def end(self) -> int:
        async with asyncio.timeout(TIMEOUT_S):
            return await self._process.wait()


async def test_llm_shows_what_is_missing_and_no_more(
    server: StreamingServer, tmp_path: Path, client_kills: int
) -> None:
    """Killed again and again, also while it goes on: what is shown over all processes is the answer."""
    chance = random.Random(1)
    kills = cut = lost = repeated = wrong = 0
    for number in range((client_kills + 1) // 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        user = OneShot(folder, server.ws_url)
        await user.ask()
        for size_bytes in sorted(chance.randrange(1, len(ANSWER) // 2) for _ in range(2)):
            await user.kill_at(size_bytes)
            kills += 1
            cut += len(user.shown) < len(ANSWER)
            await user.go_on()
        assert await user.end() == 0
        lost += max(0, len(ANSWER) - len(user.shown))
        repeated += max(0, len(user.shown) - len(ANSWER))
        wrong += user.shown != ANSWER
    print(f"{kills} kills of llm, {cut} in mid-answer: {lost} characters lost, {repeated} repeated, {wrong} wrong")
    assert (lost, repeated, wrong) == (0, 0, 0)
    assert cut >= client_kills // 2, "too few kills came in the middle"


async def test_nothing_is_lost_either_when_the_scribe_dies_with_it(server: StreamingServer, tmp_path: Path) -> None:
    """Then the last piece may come again, and nothing more."""
    user = OneShot(tmp_path, server.ws_url)
    await user.ask()
    await user.kill_at(len(ANSWER) // 3, and_its_scribe=True)
    shown = user.shown
    await user.go_on()
    assert await user.end() == 0
    rest = user.shown.removeprefix(shown)

    assert ANSWER.startswith(shown)
    assert ANSWER.endswith(rest)
    assert len(ANSWER) <= len(shown) + len(rest) <= len(ANSWER) + PIECE_CHARS


@pytest.mark.parametrize("has_product_client", [True, False], ids=["llmws.client", "bare frames"])
async def test_a_program_goes_on_from_its_journal(
    server: StreamingServer, tmp_path: Path, client_kills: int, has_product_client: bool
) -> None:
    """Killed at a random event, it is told everything after what it had written down, and nothing else."""
    user = UserPlan("user", server.ws_url, has_product_client)
    plan = Plan(
        users=[user],
        folder=str(tmp_path),
        seed="journal",
        token=None,
        prompts=[],
        most_tokens=COUNT,
        heartbeat_s=20.0,
    )
    journal = journal_path(tmp_path, user)
    chance = random.Random(2)
    process = UsersProcess(plan, tmp_path / "log")
    try:
        for _ in range(client_kills):
            enough_bytes = (journal.stat().st_size if journal.exists() else 0) + chance.randrange(100, 30_000)
            await grows(journal, lambda size=enough_bytes: journal.stat().st_size >= size)
            assert process.status is None, process.log()
            await asyncio.to_thread(process.kill_and_start)
        (tmp_path / "enough").touch()
        async with asyncio.timeout(TIMEOUT_S):
            while process.status is None:  # noqa: ASYNC110 - another process ends
                await asyncio.sleep(0.01)
        assert process.status == 0, process.log()
    finally:
        process.end()
    entries = read(journal)
    asked = list(dict.fromkeys(each.request_id for each in entries if isinstance(each, Asked)))
    verdict = judge(entries, list(itertools.islice(plan.questions(user), len(asked))))

    print(f"{verdict.kills} kills of a program: {verdict.lost} lost, {verdict.duplicated} repeated")
    assert verdict.is_good, verdict
    assert verdict.kills == client_kills
    assert verdict.kills_in_answers >= client_kills // 2

"""Clients that fall behind, and come level again, are cut off meanwhile, or stand still; and a server that does."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.faults.askers import Address, ClientAsker, FrameAsker
from tests.faults.journal import Journal, Lost
from tests.faults.judge import Question, judge
from tests.faults.spoken import spoken
from tests.faults.streaming_server import StreamingServer, running
from tests.faults.tally import Tally
from tests.faults.users import User, scripted

TIMEOUT_S = 30
SIZE_BYTES = 4000
COUNT = 250
"""Of such an answer the kernel holds a small part."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StreamingServer]:
    with running(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
async def dawdler(server: StreamingServer) -> AsyncIterator[User]:
    """Has little room for what it does not read, and no window: only its socket holds the server back."""
    dawdler = scripted(server, Tally(0), tokens=COUNT, size_bytes=SIZE_BYTES, room_bytes=4096)
    await dawdler.attach()
    yield dawdler
    await dawdler.drop()


async def let_engine_finish(server: StreamingServer) -> None:
    """Another client asks for as much and reads it: what was running before has come to its end too."""
    beside = scripted(server, Tally(0), tokens=COUNT, size_bytes=SIZE_BYTES)
    await beside.attach()
    await beside.ask("beside")
    await beside.read_end("beside")
    await beside.drop()


async def test_a_client_that_falls_behind_comes_level_again(server: StreamingServer, dawdler: User) -> None:
    """Twice in one session: the rest comes from the log, then live again, without a seam."""
    for number in range(2):
        behind, level = f"behind-{number}", f"level-{number}"
        await dawdler.ask(behind)
        await dawdler.read_tokens(behind, COUNT // 4)
        await let_engine_finish(server)
        await dawdler.ask(level)
        await dawdler.read_end(behind)
        await dawdler.read_end(level)

        assert {dawdler.model.texts[each] for each in (behind, level)} == {spoken(COUNT, SIZE_BYTES)}


async def test_a_client_that_is_cut_off_far_behind_goes_on_where_it_was(server: StreamingServer, dawdler: User) -> None:
    """What was in the buffers between is lost with the connection, and comes again."""
    await dawdler.ask("a")
    await dawdler.read_tokens("a", COUNT // 4)
    await let_engine_finish(server)
    await dawdler.drop()
    behind = dawdler.model.last_seq
    welcome = await dawdler.attach()
    await dawdler.read_end("a")

    assert (welcome["status"], welcome["head_seq"] > behind + COUNT // 4) == ("resumed", True)
    assert dawdler.model.texts["a"] == spoken(COUNT, SIZE_BYTES)


@pytest.mark.parametrize("kind", [ClientAsker, FrameAsker])
async def test_a_server_that_stands_still_is_waited_for(
    kind: type[ClientAsker | FrameAsker], server: StreamingServer
) -> None:
    """SIGSTOP in mid-answer, for longer than the client believes in a silent connection; then it goes on."""
    questions = [Question("q-0", "20", 400)]
    journal = Journal()
    asker = kind(Address(server.ws_url), journal, random.Random(1), heartbeat_s=0.1)
    asking = asyncio.create_task(asker.run(questions))
    async with asyncio.timeout(TIMEOUT_S):
        while journal.last is None or journal.last.index < 20:  # noqa: ASYNC110 - the other task reads
            await asyncio.sleep(0.002)
        server.signal(signal.SIGSTOP)
        while not any(isinstance(each, Lost) for each in journal.entries):  # noqa: ASYNC110 - likewise
            await asyncio.sleep(0.01)
        server.signal(signal.SIGCONT)
        await asking
    verdict = judge(journal.entries, questions)

    assert verdict.is_good, verdict
    assert verdict.cuts_in_answers >= 1

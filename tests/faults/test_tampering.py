"""Whoever can write to the disk, but has no key: every bit of a real session's files, every line in every wrong place.

The files come from a real server that was killed in the middle of an answer, twice. What may come back is judged line
by line, by a rule that knows nothing of the format: lines count up to the first that is not where it was, and any true
record after that shows that the file was tampered with.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import random
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from llmws.errors import StorageError
from llmws.store.folder import LOGS, META_NAME, Site, open_session
from llmws.store.keys import KeyRing, load_keys
from llmws.store.meta import open_meta
from llmws.store.record import HEADER_START, LogKeys
from llmws.store.recovery import Recovered, recover
from llmws.store_api import LogName, Opened
from tests.faults.streaming_server import StreamingServer, running
from tests.faults.tally import Tally
from tests.faults.users import kill, kill_and_return, scripted
from tests.unit.store.simulated_disk import SimulatedDisk, SimulatedFile


class Stored:
    """A session as a killed server left it."""

    def __init__(self, session_id: str, keys: KeyRing, files: dict[str, bytes], older_meta: bytes) -> None:
        self.session_id = session_id
        self.older_meta = older_meta
        self.files = files
        self._keys = keys
        self._session = uuid.UUID(session_id).bytes
        self.meta = open_meta(files[META_NAME], self._session, keys)
        self.truth = {log: self.recover(log, self.text(log)) for log in LOGS}

    def keys(self, log: LogName) -> LogKeys:
        return LogKeys(self._session, log, self._keys.get)

    def text(self, log: LogName) -> bytes:
        return self.files[f"{log}.jsonl"]

    def recover(self, log: LogName, data: bytes) -> Recovered:
        return recover(data, keys=self.keys(log), state=getattr(self.meta, log))

    def judge(self, log: LogName, data: bytes) -> tuple[int, bool]:
        """How many records may come back from bytes that stand in the log's place, and whether they are corrupt."""
        true, found = lines(self.text(log)), lines(data)
        same = list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(true, found, strict=False)))
        records = {line for line in true if is_record(line)}
        return sum(is_record(line) for line, _ in same), not records.isdisjoint(found[len(same) :])

    def check(self, log: LogName, data: bytes) -> tuple[int, bool]:
        """Holds recovery to that; returns what it found in numbers."""
        found = self.recover(log, data)
        count, is_corrupt = self.judge(log, data)
        assert (found.records, found.corrupt) == (self.truth[log].records[:count], is_corrupt)
        return count, is_corrupt

    def open(self, name: str, data: bytes) -> Opened | None:
        """Opens the session with other bytes in one file."""
        disk = SimulatedDisk(random.Random(1))
        folder = f"/state/sessions/{self.session_id}"
        disk.names_now |= {"/state/sessions": None, "/state/deleted": None, folder: None}
        for each, content in {**self.files, name: data}.items():
            disk.names_now[f"{folder}/{each}"] = file = SimulatedFile()
            file.data = file.synced = content
        site = Site(state=Path("/state"), keys=self._keys, disk=disk, now_ms=lambda: 2**42)
        opened = open_session(site, self.session_id)
        return None if opened is None else opened[1]


@pytest.fixture
def opened_stride(request: pytest.FixtureRequest) -> int:
    """An opening takes much longer than the reading of a log, so in the short profile some of the bits must do."""
    return 1 if request.config.getoption("--every-bit") else 29


@pytest.fixture(scope="module")
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Stored]:
    """Two sessions of one server."""
    tokens = 12 if request.config.getoption("--every-bit") else 3
    with running(tmp_path_factory.mktemp("tampering")) as server:
        older_metas = asyncio.run(_live_through_two_kills(server, tokens))
    keys = load_keys(server.state)
    return [
        Stored(
            each, keys, {path.name: path.read_bytes() for path in (server.state / "sessions" / each).iterdir()}, older
        )
        for each, older in older_metas.items()
    ]


async def _live_through_two_kills(server: StreamingServer, tokens: int) -> dict[str, bytes]:
    """Returns the meta of each session as it was in the first life."""
    tally = Tally(0)
    users = [scripted(server, tally, tokens=tokens, size_bytes=4) for _ in range(2)]
    for user in users:
        await user.attach()
        await user.ask("first")
        await user.read_tokens("first", tokens // 2)
    older = {user.session_id: (server.state / "sessions" / user.session_id / META_NAME).read_bytes() for user in users}
    await kill_and_return(*users, tally=tally, kind="")
    for user in users:
        await user.read_end("first")
        await user.ask("second")
        await user.read_tokens("second", tokens // 2)
    await kill(*users, tally=tally, kind="")
    return older


@pytest.mark.parametrize("log", LOGS)
def test_every_flipped_bit_of_a_log_leaves_a_true_prefix(stored: list[Stored], log: LogName) -> None:
    """It is torn only where the end is hit; everywhere else what follows shows that this was no torn write."""
    session = stored[0]
    text = session.text(log)
    whole, _ = session.check(log, text)
    seen: Counter[str] = Counter()
    for flipped in flips(text):
        count, is_corrupt = session.check(log, flipped)
        assert count < whole
        seen["corrupt" if is_corrupt else "torn"] += 1
    report(f"{log}.jsonl", seen)
    # The last line, or the line feed without which the one before runs into it.
    assert seen["torn"] == 8 * (len(lines(text)[-1]) + 1)


@pytest.mark.parametrize("log", LOGS)
def test_a_session_with_a_flipped_bit_in_a_log_opens_and_says_so(
    stored: list[Stored], log: LogName, opened_stride: int
) -> None:
    """What was on the disk for certain is missed even at the end; of the rest a torn end is cut off without a word."""
    session = stored[0]
    text = session.text(log)
    whole = session.open(f"{log}.jsonl", text)
    assert whole is not None
    durable_n = getattr(session.meta, log).durable_n
    seen: Counter[str] = Counter()
    for flipped in itertools.islice(flips(text), 0, None, opened_stride):
        opened = session.open(f"{log}.jsonl", flipped)
        assert opened is not None
        count, is_corrupt = session.judge(log, flipped)
        is_told = is_corrupt or count < durable_n
        if log == "buffer":
            assert (opened.records, opened.conversation) == (whole.records[:count], whole.conversation)
            assert opened.corrupt_epoch == (opened.epoch if is_told else 0)
        else:
            assert (opened.records, opened.conversation) == (whole.records, whole.conversation[:count])
            assert opened.is_conversation_damaged == is_told
        seen["told" if is_told else "torn"] += 1
    report(f"sessions opened with a flipped bit in {log}.jsonl", seen)


def test_every_flipped_bit_of_meta_is_refused(stored: list[Stored], opened_stride: int) -> None:
    """Whose session it is stands there, so it is nobody's."""
    seen: Counter[str] = Counter()
    for flipped in itertools.islice(flips(stored[0].files[META_NAME]), 0, None, opened_stride):
        try:
            seen["refused"] += stored[0].open(META_NAME, flipped) is None
        except StorageError:
            seen["refused, for a key that is not there"] += 1
        seen["tried"] += 1
    report(META_NAME, seen)
    assert seen["tried"] == seen["refused"] + seen["refused, for a key that is not there"]


@pytest.mark.parametrize("log", LOGS)
def test_lines_in_any_other_order_leave_a_true_prefix(stored: list[Stored], log: LogName) -> None:
    """Every two exchanged, every run of them removed, every one repeated everywhere: headers and records alike."""
    session = stored[0]
    true = lines(session.text(log))
    seen: Counter[str] = Counter()
    for i, j in itertools.combinations(range(len(true) + 1), 2):
        removed = [*true[:i], *true[j:]]
        exchanged = list(true)
        exchanged[i], exchanged[j - 1] = true[j - 1], true[i]
        repeated = [[*true[:at], true[again], *true[at:]] for at, again in ((i, j - 1), (j, i))]
        for changed in (removed, exchanged, *repeated):
            session.check(log, b"".join(changed))
        seen.update(removed=1, exchanged=1, repeated=2)
    report(f"{log}.jsonl", seen)


@pytest.mark.parametrize("log", LOGS)
def test_lines_from_elsewhere_leave_a_true_prefix(stored: list[Stored], log: LogName) -> None:
    """Of another session, of the other log, and of a segment that a failed write gave up, in every place."""
    session, other = stored
    true = lines(session.text(log))
    other_log: LogName = "conversation" if log == "buffer" else "buffer"
    given_up = given_up_lines(session, log)
    foreign = [*lines(other.text(log)), *lines(session.text(other_log)), *given_up]
    for at, line in itertools.product(range(len(true)), foreign):
        session.check(log, b"".join([*true[:at], line, *true[at:]]))
        session.check(log, b"".join([*true[:at], line, *true[at + 1 :]]))
    assert session.check(log, other.text(log)) == session.check(log, session.text(other_log)) == (0, False)
    report(f"{log}.jsonl", Counter({"spliced": 2 * len(true) * len(foreign)}))


@pytest.mark.parametrize("log", LOGS)
def test_a_log_whose_end_a_power_loss_has_filled_with_zeros_is_torn(stored: list[Stored], log: LogName) -> None:
    """The file's new size reached the disk, its bytes did not, from any byte on."""
    text = stored[0].text(log)
    for cut in range(len(text)):
        _, is_corrupt = stored[0].check(log, text[:cut] + bytes(len(text) - cut))
        assert not is_corrupt
    report(f"{log}.jsonl", Counter({"ends of zeros": len(text)}))


@pytest.mark.parametrize("log", LOGS)
def test_a_block_of_zeros_in_the_middle_of_a_log_is_noticed(stored: list[Stored], log: LogName) -> None:
    """Later blocks reached the disk, this one did not."""
    text = stored[0].text(log)
    starts = range(0, len(text), 16)
    whole, _ = stored[0].check(log, text)
    for start in starts:
        count, _ = stored[0].check(log, text[:start] + bytes(len(text[start : start + 64])) + text[start + 64 :])
        assert count < whole
    report(f"{log}.jsonl", Counter({"blocks of zeros": len(starts)}))


@pytest.mark.parametrize("log", LOGS)
def test_a_clean_end_that_lacks_what_was_on_the_disk_for_certain_is_told(stored: list[Stored], log: LogName) -> None:
    """Lines that were cut off leave no trace in the file; meta knows of those that an opening or a sync had settled."""
    session = stored[0]
    true = lines(session.text(log))
    durable_n = getattr(session.meta, log).durable_n
    seen: Counter[bool] = Counter()
    for kept in range(len(true) + 1):
        opened = session.open(f"{log}.jsonl", b"".join(true[:kept]))
        assert opened is not None
        is_told = opened.corrupt_epoch == opened.epoch if log == "buffer" else opened.is_conversation_damaged
        assert is_told == (sum(map(is_record, true[:kept])) < durable_n)
        seen[is_told] += 1
    assert min(seen[True], seen[False]) > 0


def test_the_meta_of_another_session_is_refused(stored: list[Stored]) -> None:
    session, other = stored
    assert session.open(META_NAME, other.files[META_NAME]) is None


def test_beside_an_older_meta_the_newer_logs_count(stored: list[Stored]) -> None:
    """No promise is kept by hiding what came since; epochs are counted on from the newest that the log names."""
    session = stored[0]
    whole, opened = session.open(META_NAME, session.files[META_NAME]), session.open(META_NAME, session.older_meta)
    assert whole is not None
    assert opened is not None
    assert session.older_meta != session.files[META_NAME]
    assert (opened.records, opened.conversation) == (whole.records, whole.conversation)
    assert (opened.epoch, opened.corrupt_epoch, opened.ends) == (whole.epoch, 0, whole.ends)


async def test_a_client_whose_log_was_tampered_with_is_told(tmp_path: Path) -> None:
    server = StreamingServer(tmp_path)
    await asyncio.to_thread(server.start)
    tally = Tally(0)
    user = scripted(server, tally, tokens=30, size_bytes=4)
    try:
        await user.attach()
        await user.ask("a")
        await user.read_end("a")
        await kill(user, tally=tally, kind="")
        path = server.state / "sessions" / user.session_id / "buffer.jsonl"
        flipped = bytearray(path.read_bytes())
        flipped[len(flipped) // 2] ^= 1
        path.write_bytes(flipped)
        await asyncio.to_thread(server.start)
        user.model.story.is_old_copy = True
        welcome = await user.attach()
        assert (welcome["status"], welcome["reason"]) == ("reset", "log_corrupt")
    finally:
        await user.drop()
        await asyncio.to_thread(server.kill)


def lines(data: bytes) -> list[bytes]:
    return list(io.BytesIO(data))


def is_record(line: bytes) -> bool:
    return not line.startswith(HEADER_START)


def flips(data: bytes) -> Iterator[bytes]:
    """The data with each of its bits flipped in turn."""
    flipped = bytearray(data)
    for position in range(len(data)):
        for bit in range(8):
            flipped[position] ^= 1 << bit
            yield bytes(flipped)
            flipped[position] ^= 1 << bit


def given_up_lines(session: Stored, log: LogName) -> list[bytes]:
    """Other records in the places of the true ones, from segments that differ from theirs in the salt alone."""
    given_up: list[bytes] = []
    for cipher, end in session.truth[log].ciphers:
        twin = session.keys(log).cipher(msgspec.structs.replace(cipher.segment, salt=bytes(32)))
        assert twin is not None
        records = session.truth[log].records
        given_up += [
            twin.seal(msgspec.structs.replace(record, value=record.value[:-1] + b" }"))
            for record in records
            if cipher.segment.base < record.n <= end
        ]
    return given_up


def report(name: str, seen: Counter[str]) -> None:
    print(f"{name}: " + ", ".join(f"{count} {what}" for what, count in seen.items()))

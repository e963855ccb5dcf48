"""Thousands of histories on a simulated disk: torn writes, full disks, failed syncs, kills and power losses.

A kill loses nothing that was written, a power loss everything that was not synced, or a part of it; either comes
between any two system calls, also while what it left is mended. `--store-faults N` goes on until N faults were
injected, and prints what they did. The planted mutants that this must kill are listed in tools/mutants.
"""

import itertools
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from llmws.store.folder import Site, create_session, delete_session, open_session, prepare, reseal_session
from llmws.store.rotation import references
from llmws.store_api import LogName, Opened, Record, SessionMeta
from tests.unit.store.simulated_disk import CrashError, SimulatedDisk
from tests.unit.store.turning_ring import TurningRing

ID = "6f1c2d3e-4a5b-4c6d-8e7f-901122334455"
META = SessionMeta(owner="local", created_s=1.0, last_activity_s=2.0)


class Story:
    """One log as its owner knows it.

    Attributes:
        appended: every record handed over, by number; a lost one may be followed by another of its number.
        written, durable: the newest numbers that were reported so.
    """

    def __init__(self) -> None:
        self.appended: dict[int, Record] = {}
        self.next_n = 1
        self.written = self.durable = 0

    def add(self, records: list[Record]) -> None:
        self.appended.update({record.n: record for record in records})
        self.next_n = records[-1].n + 1


class History:
    """A session's life on a simulated disk, and what its owner was told meanwhile."""

    def __init__(self, seed: int, *, fault_rate: float) -> None:
        self.rng = random.Random(seed)
        self.disk = SimulatedDisk(self.rng)
        self.fault_rate = fault_rate
        self.seen: Counter[str] = Counter()
        self.now_ms = 1_000_000
        self.keys = TurningRing({1: b"\1" * 32})
        self.site = Site(
            state=Path("/state"),
            keys=self.keys,
            disk=self.disk,
            now_ms=lambda: self.now_ms,
            random=self.rng.randbytes,
        )
        prepare(self.site)
        self.folder = create_session(self.site, ID, 1, META)
        self.ledger_key = self.folder.ledger_key
        self.epoch = 1
        self.told_ends: dict[int, int] = {}
        self.buffer, self.conversation = Story(), Story()
        self.first_n = self.first_n_wanted = 1
        self.meta = self.meta_wanted = META
        self.seq = self.titles = 0
        self.disk.fault_rate = fault_rate
        self.steps = [
            *[self.append] * 6, *[self.say] * 2, self.sync, self.compact, self.keep, self.drop, self.read, self.release,
            self.reopen, self.rotate, self.retire,
        ]  # fmt: skip

    # --- what a hub does ---------------------------------------------------------------------------------------------

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step()

    def step(self) -> None:
        try:
            self.rng.choice(self.steps)()
        except OSError:
            self.seen["sessions failed"] += 1
            self.folder.release()
            if self.rng.random() < 0.5:
                raise CrashError from None  # before it could be opened again
            self.open_after_failure(self.buffer.written, self.conversation.written)

    def append(self) -> None:
        records = []
        for n in range(self.buffer.next_n, self.buffer.next_n + self.rng.randint(1, 4)):
            self.seq += 1
            value = b'{"seq":%d,"data":"%x"}' % (self.seq, self.rng.getrandbits(self.rng.choice([8, 64, 512])))
            records.append(Record(n=n, kind="event", value=value, seq=self.seq))
        self.buffer.add(records)
        self.folder.logs["buffer"].append(records)
        self.buffer.written = records[-1].n

    def say(self) -> None:
        value = b'{"content":"%x"}' % self.rng.getrandbits(64)
        record = Record(n=self.conversation.next_n, kind="message", value=value)
        self.conversation.add([record])
        self.folder.logs["conversation"].append([record])
        self.conversation.written = record.n

    def sync(self) -> None:
        log: LogName = self.rng.choice(["buffer", "conversation"])
        self.folder.logs[log].sync()
        story = self.buffer if log == "buffer" else self.conversation
        story.durable = story.written

    def next_meta(self) -> SessionMeta:
        self.titles += 1
        self.meta_wanted = msgspec.structs.replace(META, last_seq=self.seq, title=f"title {self.titles}")
        return self.meta_wanted

    def settle(self) -> None:
        """What an operation with a meta has made durable."""
        self.meta = self.meta_wanted
        self.first_n = self.first_n_wanted
        for story in (self.buffer, self.conversation):
            story.durable = story.written

    def keep(self) -> None:
        self.folder.keep(self.next_meta())
        self.settle()

    def compact(self) -> None:
        if self.buffer.next_n > self.first_n:
            self.first_n_wanted = self.rng.randint(self.first_n, self.buffer.next_n - 1)
            self.folder.compact(self.first_n_wanted, self.next_meta())
            self.settle()

    def drop(self) -> None:
        self.first_n_wanted = self.buffer.next_n
        self.folder.drop_buffer(self.next_meta())
        self.settle()

    def read(self) -> None:
        log = self.folder.logs["buffer"]
        numbers = range(self.first_n, self.buffer.next_n)
        after = self.rng.choice([0, self.seq, *(self.buffer.appended[n].seq for n in numbers)])
        expected = [record for n in numbers if (record := self.buffer.appended[n]).seq > after]
        got = log.read_events(after, self.rng.choice([1, 200, 10**6]))
        self.seen["wrong"] += got != [(record.seq, record.value) for record in expected[: len(got)]]
        self.seen["lost"] += bool(expected) and not got

    def release(self) -> None:
        self.folder.release()

    def reopen(self) -> None:
        self.folder.close(self.next_meta())
        self.settle()
        if self.rng.random() < 0.3:
            reseal_session(self.site, ID)
        self.open(self.buffer.written, self.conversation.written, had_failed=False)

    def rotate(self) -> None:
        self.keys.add()

    def retire(self) -> None:
        with self.no_faults():
            needed = references(self.site)
        for kid in self.keys.kids[:-1]:
            if not needed[kid]:
                self.keys.remove(kid)
                self.seen["keys retired"] += 1

    # --- what must hold ----------------------------------------------------------------------------------------------

    def open(self, buffer_n: int, conversation_n: int, *, had_failed: bool) -> None:
        """Opens the session and holds it to what was promised: all records up to these numbers are there."""
        opened = open_session(self.site, ID, had_failed=had_failed)
        assert opened is not None
        self.folder, answer = opened
        self.check_buffer(answer, buffer_n)
        self.seen["lost"] += max(conversation_n - (answer.next_conversation_n - 1), 0)
        self.seen["wrong"] += wrong(answer.conversation, self.conversation, range(1, answer.next_conversation_n))
        self.check_epochs(answer)
        assert answer.meta in (self.meta, self.meta_wanted)
        assert answer.ledger_key == self.ledger_key
        self.meta = self.meta_wanted = answer.meta
        for story, next_n in ((self.buffer, answer.next_n), (self.conversation, answer.next_conversation_n)):
            story.next_n = next_n
            story.written = story.durable = next_n - 1

    def check_buffer(self, answer: Opened, kept_n: int) -> None:
        first_n = answer.next_n - len(answer.records)
        assert first_n in (self.first_n, self.first_n_wanted), "the log begins where it was last cut"
        self.seen["lost"] += max(kept_n - (answer.next_n - 1), 0)
        self.seen["wrong"] += wrong(answer.records, self.buffer, range(first_n, answer.next_n))
        self.first_n = self.first_n_wanted = first_n

    def check_epochs(self, answer: Opened) -> None:
        assert answer.corrupt_epoch == 0, "a crash is never taken for damage"
        assert answer.epoch > self.epoch
        newest = self.buffer.appended.get(answer.next_n - 1)
        last_seq = newest.seq if newest else 0
        assert answer.ends[-1][1] == last_seq, "no event is claimed that is not there, or was not before it was dropped"
        assert answer.meta.last_seq <= last_seq
        assert list(answer.ends) == sorted(answer.ends)
        assert all(self.told_ends.get(epoch, end) == end for epoch, end in answer.ends), "an end, once told, stands"
        self.told_ends.update(answer.ends)
        self.epoch = answer.epoch
        self.seq = last_seq

    # --- crashes -----------------------------------------------------------------------------------------------------

    def crash(self) -> None:
        """Runs until the fuse blows, and opens the session, perhaps after more crashes while it is opened."""
        self.disk.fuse = self.rng.randint(1, 60)
        with suppress(CrashError):
            self.run(30)
        kept = self.fall((self.buffer.written, self.conversation.written))
        had_failed = False
        for _ in range(20):
            self.now_ms += self.rng.choice([-5, 0, 1, 1000])
            self.disk.fuse = self.rng.randint(1, 40)
            try:
                self.open(*kept, had_failed=had_failed)
            except CrashError:
                kept = self.fall(kept)
                had_failed = False
            except OSError:
                had_failed = True
            else:
                return
        self.disk.fuse = 10**9
        self.open_after_failure(*kept)

    def fall(self, kept: tuple[int, int]) -> tuple[int, int]:
        """Crashes. Returns up to which numbers the logs must still be there, of those in `kept`."""
        if self.rng.random() < 0.5:
            dropped = self.disk.kill()
        else:
            dropped = True
            self.disk.lose_power()
        return (self.buffer.durable, self.conversation.durable) if dropped else kept

    def open_after_failure(self, *kept: int) -> None:
        """Opens the session in the process that it failed in."""
        for _ in range(20):
            with suppress(OSError):
                self.open(*kept, had_failed=True)
                return
        with self.no_faults():
            self.open(*kept, had_failed=True)

    @contextmanager
    def no_faults(self) -> Iterator[None]:
        rate, self.disk.fault_rate = self.disk.fault_rate, 0.0
        try:
            yield
        finally:
            self.disk.fault_rate = rate

    def delete(self) -> None:
        """Deletes the session, with crashes and faults in between, and with or without a tombstone that stays."""
        keep_tombstone = self.rng.random() < 0.5
        self.folder.release()
        for _ in range(20):
            self.disk.fuse = self.rng.randint(1, 12)
            try:
                delete_session(self.site, ID, keep_tombstone=keep_tombstone)
                break
            except OSError:
                pass
            except CrashError:
                self.fall((0, 0))
        self.disk.fuse, self.disk.fault_rate = 10**9, 0.0
        prepare(self.site)
        delete_session(self.site, ID, keep_tombstone=keep_tombstone)
        self.disk.lose_power()
        prepare(self.site)
        assert open_session(self.site, ID) is None
        assert self.disk.names(self.site.sessions) == []
        assert self.disk.names(self.site.deleted) == ([ID] if keep_tombstone else [])


def wrong(records: tuple[Record, ...], story: Story, numbers: range) -> int:
    """How many records are not what was appended under their number."""
    return sum(record != story.appended.get(n) for record, n in itertools.zip_longest(records, numbers))


def test_no_fault_loses_what_was_acknowledged_or_invents_anything(store_faults):
    seen: Counter[str] = Counter()
    for seed in itertools.count():
        history = History(seed, fault_rate=(0.0, 0.01, 0.05)[seed % 3])
        for _ in range(8):
            history.crash()
        history.delete()
        seen.update(history.seen, histories=1, faults=history.disk.faults, nonces=history.disk.nonces_reused)
        if seen["faults"] >= store_faults:
            break
    print(
        f"\n{seen['faults']} faults injected in {seen['histories']} histories: "
        f"{seen['lost']} acknowledged records lost, {seen['wrong']} wrong payloads, {seen['nonces']} nonces reused; "
        f"{seen['sessions failed']} sessions failed and were opened again, {seen['keys retired']} keys were retired"
    )
    assert (seen["lost"], seen["wrong"], seen["nonces"]) == (0, 0, 0)
    assert seen["sessions failed"] > 0
    assert seen["keys retired"] > 0


SCRIPT = ["append", "say", "sync", "append", "compact", "append", "keep", "say", "rotate", "reopen", "append", "drop"]


@pytest.mark.parametrize("seed", range(3))
def test_a_crash_at_every_boundary_of_a_script_loses_nothing(seed):
    """Not by chance: the same steps, cut short after the first system call, after the second, and so on to the end."""
    for fuse in itertools.count(1):
        history = History(seed, fault_rate=0.0)
        history.disk.fuse = fuse
        try:
            for name in SCRIPT:
                getattr(history, name)()
            return
        except CrashError:
            kept = history.fall((history.buffer.written, history.conversation.written))
            history.disk.fuse = 10**9
            history.open(*kept, had_failed=False)
            assert history.seen.total() == 0
            assert history.disk.nonces_reused == 0


@pytest.mark.parametrize("seed", range(2))
def test_a_failed_sync_is_not_forgotten_by_the_next_process(seed):
    """Each fdatasync of a script fails in its turn; then come a kill, one at any point of the opening, a power loss."""
    for sync_fuse in itertools.count(1):
        for fuse in itertools.count(1):
            history = History(seed, fault_rate=0.0)
            history.disk.sync_fuse = sync_fuse
            try:
                for name in SCRIPT:
                    getattr(history, name)()
                return
            except OSError:
                history.disk.kill()
            kept = (history.buffer.written, history.conversation.written)
            history.disk.fuse = fuse
            crashed = False
            try:
                history.open(*kept, had_failed=False)
            except CrashError:
                crashed = True
                history.disk.kill()
                history.disk.fuse = 10**9
                history.open(*kept, had_failed=False)
            history.disk.lose_power()
            history.disk.fuse = 10**9
            history.open(history.buffer.durable, history.conversation.durable, had_failed=False)
            assert history.seen.total() == 0
            if not crashed:
                break

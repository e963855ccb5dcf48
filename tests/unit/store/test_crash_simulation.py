"""Thousands of histories on a simulated disk, each cut short by a kill or a power loss between any two system calls.

The disk keeps apart what the kernel holds and what is on the medium: a kill loses nothing that was written, a power
loss everything that was not synced, or a part of it. Mutants that this kills, each planted once: no fdatasync before
meta at an opening; meta after the unlink of a drop; a torn end kept, after a crash and after a short write; the
folder not synced after a new file or a rename; a draft renamed before it is synced; an epoch that is not above the
last; the key of the last opening used again.
"""

import json
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from llmws.store.folder import Site, create_session, open_session, prepare
from llmws.store.keys import KeyRing
from llmws.store_api import Record, SessionMeta

ID = "6f1c2d3e-4a5b-4c6d-8e7f-901122334455"
META = SessionMeta(owner="local", created_s=1.0, last_activity_s=2.0)
BUFFER = f"/state/sessions/{ID}/buffer.jsonl"


class CrashError(BaseException):
    """The machine stopped. No `except` for errors may catch it."""


class SimulatedFile:
    def __init__(self) -> None:
        self.data = b""
        self.synced = b""


class SimulatedDisk:
    """A disk that dies at the `fuse`-th change, with that change not done, done or, of a write, half done."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.fuse = 10**9
        self.short_writes = 0.0
        self.names_now: dict[str, SimulatedFile | None] = {"/state": None}
        self.names_synced = dict(self.names_now)
        self.handles: dict[int, SimulatedFile] = {}
        self.sealed: list[tuple[str, bytes]] = []

    def _change(self, do: Callable[[], None]) -> None:
        self.fuse -= 1
        if self.fuse == 0:
            if self.rng.random() < 0.5:
                do()
            raise CrashError
        do()

    def kill(self) -> None:
        self.handles.clear()

    def lose_power(self) -> None:
        """Of each folder's changes and each file's bytes that were not synced, none, some or all are on the medium."""
        self.handles.clear()
        for folder in {str(Path(name).parent) for name in {*self.names_now, *self.names_synced}}:
            kept = self.names_now if self.rng.random() < 0.5 else self.names_synced
            for names in (self.names_now, self.names_synced):
                for name in [name for name in names if str(Path(name).parent) == folder]:
                    if names is not kept:
                        del names[name]
            for name in [name for name in kept if str(Path(name).parent) == folder]:
                self.names_now[name] = self.names_synced[name] = kept[name]
        for file in filter(None, self.names_now.values()):
            if file.data.startswith(file.synced):
                more = file.data[len(file.synced) :]
                more = more[: self.rng.randint(0, len(more))]
                if self.rng.random() < 0.3:
                    more = more[: len(more) // 2] + bytes(len(more) - len(more) // 2)
                file.data = file.synced + more
            elif self.rng.random() < 0.5:
                file.data = file.synced
            file.synced = file.data

    def open(self, path: Path, *, create: bool) -> int:
        name = str(path)
        if name not in self.names_now:
            if not create:
                raise FileNotFoundError(name)
            made = SimulatedFile()
            self._change(lambda: self.names_now.update({name: made}))
        handle = max(self.handles, default=0) + 1
        self.handles[handle] = self.names_now[name]
        return handle

    def size_bytes(self, handle: int) -> int:
        return len(self.handles[handle].data)

    def read(self, handle: int, offset: int, count: int) -> bytes:
        return self.handles[handle].data[offset : offset + count]

    def write(self, handle: int, data: bytes) -> int:
        file = self.handles[handle]
        if self.names_now.get(BUFFER) is file:
            self.sealed.append((BUFFER, data))
        taken = len(data)
        if self.rng.random() < self.short_writes:
            taken = self.rng.randint(0, len(data) - 1)
        self.fuse -= 1
        if self.fuse == 0:
            file.data += data[: self.rng.randint(0, taken)]
            raise CrashError
        file.data += data[:taken]
        return taken

    def truncate(self, handle: int, size_bytes: int) -> None:
        file = self.handles[handle]
        self._change(lambda: setattr(file, "data", file.data[:size_bytes]))

    def sync(self, handle: int) -> None:
        file = self.handles[handle]
        self._change(lambda: setattr(file, "synced", file.data))

    def close(self, handle: int) -> None:
        del self.handles[handle]

    def exists(self, path: Path) -> bool:
        return str(path) in self.names_now

    def replace(self, source: Path, target: Path) -> None:
        self._change(lambda: self.names_now.update({str(target): self.names_now.pop(str(source))}))

    def unlink(self, path: Path) -> None:
        self._change(lambda: self.names_now.pop(str(path), None))

    def make_folder(self, path: Path) -> None:
        self._change(lambda: self.names_now.setdefault(str(path), None))

    def remove_folder(self, path: Path) -> None:
        self._change(lambda: self.names_now.pop(str(path), None))

    def names(self, folder: Path) -> list[str]:
        return [Path(name).name for name in self.names_now if Path(name).parent == folder]

    def sync_folder(self, path: Path) -> None:
        def sync() -> None:
            inside = [name for name in {*self.names_now, *self.names_synced} if Path(name).parent == path]
            for name in inside:
                if name in self.names_now:
                    self.names_synced[name] = self.names_now[name]
                else:
                    del self.names_synced[name]

        self._change(sync)


class History:
    """A session's life on a simulated disk, and what its owner was told meanwhile."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.disk = SimulatedDisk(self.rng)
        self.now_ms = 1_000_000
        self.site = Site(
            state=Path("/state"),
            keys=KeyRing({1: b"k" * 32}),
            disk=self.disk,
            now_ms=lambda: self.now_ms,
            random=self.rng.randbytes,
        )
        prepare(self.site)
        self.folder = create_session(self.site, ID, 1, META)
        self.epochs = [1]
        self.appended: dict[int, Record] = {}
        self.told_ends: dict[int, int] = {}
        self.next_n = 1
        self.first_n = 1
        self.first_n_wanted = 1
        self.written_n = self.durable_n = 0
        self.seq = 0
        self.disk.short_writes = 0.05

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.rng.choice([self.append, self.append, self.append, self.sync, self.drop, self.release, self.reopen])()

    def append(self) -> None:
        records = []
        for _ in range(self.rng.randint(1, 4)):
            self.seq += 1
            value = b'{"seq":%d,"data":"%x"}' % (self.seq, self.rng.getrandbits(self.rng.choice([8, 64, 512])))
            records.append(Record(n=self.next_n, kind="event", value=value, seq=self.seq))
            self.appended[self.next_n] = records[-1]
            self.next_n += 1
        self.folder.logs["buffer"].append(records)
        self.written_n = records[-1].n

    def sync(self) -> None:
        self.folder.logs["buffer"].sync()
        self.durable_n = self.written_n

    def drop(self) -> None:
        self.first_n_wanted = self.next_n
        self.folder.drop_buffer(msgspec.structs.replace(META, last_seq=self.seq, floor=self.seq))
        self.first_n = self.first_n_wanted
        self.durable_n = self.written_n

    def release(self) -> None:
        self.folder.release()

    def reopen(self) -> None:
        self.folder.close(msgspec.structs.replace(META, last_seq=self.seq))
        self.durable_n = self.written_n
        self.open(kept_n=self.written_n)

    def open(self, *, kept_n: int) -> None:
        """Opens the session and holds it to what was promised: every record up to `kept_n` is still there."""
        opened = open_session(self.site, ID)
        assert opened is not None
        self.folder, answer = opened
        numbers = [record.n for record in answer.records]
        first_n = answer.next_n - len(numbers)
        assert first_n in (self.first_n, self.first_n_wanted), "the log begins where it was last dropped"
        assert numbers == list(range(first_n, answer.next_n))
        assert answer.next_n > kept_n, "nothing that was promised is lost"
        assert all(record == self.appended[record.n] for record in answer.records)
        assert answer.corrupt_epoch == 0, "a crash is never taken for damage"
        assert answer.epoch > self.epochs[-1]
        last_seq = max([answer.meta.last_seq, *(record.seq for record in answer.records)])
        assert answer.ends[-1][1] == last_seq
        assert list(answer.ends) == sorted(answer.ends)
        assert all(self.told_ends.get(epoch, end) == end for epoch, end in answer.ends), "an end, once told, stands"
        self.told_ends.update(answer.ends)
        self.epochs.append(answer.epoch)
        self.first_n = self.first_n_wanted = first_n
        self.next_n = answer.next_n
        self.written_n = self.durable_n = answer.next_n - 1
        self.seq = last_seq

    def crash_and_recover(self) -> None:
        """Runs until the fuse blows, crashes, and opens the session, perhaps after more crashes while it is opened."""
        self.disk.fuse = self.rng.randint(1, 60)
        with suppress(CrashError, OSError):
            self.run(30)
        power_loss = self.rng.random() < 0.5
        kept_n = self.durable_n if power_loss else self.written_n
        for _ in range(20):
            if power_loss:
                self.disk.lose_power()
            else:
                self.disk.kill()
            self.now_ms += self.rng.choice([-5, 0, 1, 1000])
            self.disk.fuse = self.rng.randint(1, 40)
            try:
                self.open(kept_n=kept_n)
            except (CrashError, OSError):
                continue
            return
        self.disk.fuse, self.disk.short_writes = 10**9, 0.0
        self.open(kept_n=kept_n)
        self.disk.short_writes = 0.05


def nonces(disk: SimulatedDisk) -> dict[tuple[str, int], set[str]]:
    """Every ciphertext ever given to the disk, by salt and number, whether it arrived or not."""
    texts: dict[tuple[str, int], set[str]] = {}
    salt = ""
    for _, data in disk.sealed:
        for line in data.splitlines():
            fields = json.loads(line)
            salt = fields.get("salt", salt)
            if "n" in fields:
                texts.setdefault((salt, fields["n"]), set()).add(fields["data"])
    return texts


def test_no_crash_loses_what_was_promised_or_invents_anything():
    for seed in range(60):
        history = History(seed)
        for _ in range(8):
            history.crash_and_recover()
        assert all(len(texts) == 1 for texts in nonces(history.disk).values()), "one nonce, one plaintext"

"""What only the store on disk promises: threads, faults, file handles, and a process that is really killed."""

import errno
import os
import signal
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import msgspec
import pytest

from llmws.errors import ConfigError
from llmws.store.disk import OsDisk
from llmws.store.folder import Site
from llmws.store.keys import KeyRing
from llmws.store.writer import FileStore
from llmws.store_api import (
    Append,
    Close,
    Create,
    Created,
    Failed,
    Flushed,
    Open,
    Opened,
    Read,
    ReadResult,
    Record,
    SessionMeta,
)

ID = "6f1c2d3e-4a5b-4c6d-8e7f-901122334455"
OTHER = "00000000-0000-4000-8000-000000000000"
META = SessionMeta(owner="local", created_s=1.0, last_activity_s=2.0)
TIMEOUT_S = 20


def event(n: int) -> Record:
    return Record(n=n, kind="event", value=b'{"type":"token","seq":%d,"data":"x"}' % n, seq=n)


def append(*numbers: int, sync: bool = False, session_id: str = ID) -> Append:
    return Append(session_id=session_id, log="buffer", records=tuple(event(n) for n in numbers), sync=sync)


def create(session_id: str = ID) -> Create:
    return Create(session_id=session_id, epoch=7, meta=META)


class SteeredDisk:
    """The real disk, with a gate that fdatasync waits at, a count of writes, and an errno for the next fdatasync."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Event()
        self.writes = 0
        self.sync_error = 0
        self._disk = OsDisk()

    def __getattr__(self, name: str):
        return getattr(self._disk, name)

    def write(self, handle: int, data: bytes) -> int:
        self.writes += 1
        return self._disk.write(handle, data)

    def sync(self, handle: int) -> None:
        self.waiting.set()
        assert self.gate.wait(TIMEOUT_S)
        if self.sync_error:
            error, self.sync_error = self.sync_error, 0
            raise OSError(error, os.strerror(error))
        self._disk.sync(handle)


@pytest.fixture
def disk(file_world) -> SteeredDisk:
    steered = SteeredDisk()
    file_world.site = msgspec.structs.replace(file_world.site, disk=steered)
    return steered


def test_while_a_session_waits_for_the_disk_others_go_on_and_its_own_appends_become_one_write(file_world, disk):
    client = file_world.start()
    for session_id in (ID, OTHER):
        client.ask(create(session_id), Created)
    disk.gate.clear()
    disk.waiting.clear()
    client.submit(append(1, sync=True))
    assert disk.waiting.wait(TIMEOUT_S)
    client.submit(*(append(n) for n in range(2, 102)))
    client.submit(append(1, session_id=OTHER))
    client.wait(Flushed, lambda answer: answer.session_id == OTHER)
    writes = disk.writes
    disk.gate.set()
    flushed = client.wait(Flushed, lambda answer: answer.session_id == ID and answer.written > 1)
    assert (flushed.written, flushed.durable) == (101, 1)
    assert disk.writes == writes + 1


def test_a_failed_fdatasync_fails_the_session_and_no_other(file_world, disk):
    client = file_world.start()
    for session_id in (ID, OTHER):
        client.ask(create(session_id), Created)
    disk.sync_error = errno.EIO
    client.submit(append(1, sync=True))
    failed = client.wait(Failed)
    assert (failed.session_id, failed.message) == (ID, "the disk failed: Input/output error")
    client.submit(append(2), append(1, session_id=OTHER, sync=True))
    assert client.wait(Flushed, lambda answer: answer.durable == 1).session_id == OTHER
    assert client.ask(Open(session_id=ID), Opened).records == (event(1),)


def test_more_sessions_than_file_handles_may_be_open(file_world):
    client = file_world.start()
    session_ids = [str(uuid.UUID(int=(4 << 76) | (8 << 60) | number)) for number in range(170)]
    for session_id in session_ids:
        client.submit(create(session_id), append(1, session_id=session_id))
    client.wait(Flushed, lambda answer: answer.session_id == session_ids[-1])
    for session_id in session_ids:
        client.submit(append(2, session_id=session_id))
    for session_id in session_ids:
        client.ask(Read(session_id=session_id, ticket=1, after_seq=0, limit_bytes=10**6), ReadResult)
    held = [link for link in Path("/proc/self/fd").iterdir() if str(file_world.site.state) in _target(link)]
    assert len(held) <= 140
    for session_id in session_ids:
        client.submit(Close(session_id=session_id, meta=META), Open(session_id=session_id))
        assert client.wait(Opened).records == (event(1), event(2))


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except FileNotFoundError:
        return ""


def test_a_state_folder_that_cannot_be_used_stops_the_start(tmp_path):
    (tmp_path / "sessions").touch()
    with pytest.raises(ConfigError, match="sessions cannot be kept there"):
        FileStore(Site(state=tmp_path, keys=KeyRing({1: b"k" * 32})))


def test_everything_is_written_even_if_the_listener_has_gone(file_world):
    """The event loop that is to be woken may be closed while the last operations are carried out."""

    def gone() -> None:
        raise RuntimeError("Event loop is closed")

    store = FileStore(file_world.site)
    store.start(gone)
    for op in (create(), append(1), append(2, sync=True)):
        store.submit(op)
    store.close()
    assert file_world.start().ask(Open(session_id=ID), Opened).records == (event(1), event(2))


def test_a_closed_store_takes_no_more(file_world):
    store = file_world.start().store
    store.close()
    with pytest.raises(RuntimeError, match="closed"):
        store.submit(create())


WRITER = """
import sys, threading
from pathlib import Path
from llmws.store.folder import Site
from llmws.store.keys import KeyRing
from llmws.store.writer import FileStore
from llmws.store_api import Append, Create, Flushed, Open, Opened, Record, SessionMeta

ID = "6f1c2d3e-4a5b-4c6d-8e7f-901122334455"
store = FileStore(Site(state=Path(sys.argv[1]), keys=KeyRing({1: b"k" * 32})))
news = threading.Event()
store.start(news.set)
store.submit(Create(session_id=ID, epoch=7, meta=SessionMeta(owner="o", created_s=1.0, last_activity_s=1.0)))
n = 0
while True:
    for _ in range(20):
        n += 1
        record = Record(n=n, kind="event", value=b'{"type":"token","seq":%d,"data":"x"}' % n, seq=n)
        store.submit(Append(session_id=ID, log="buffer", records=(record,), sync=n % 7 == 0))
    news.wait(20)
    news.clear()
    for answer in store.take():
        if isinstance(answer, Flushed):
            print(answer.written, flush=True)
"""


@pytest.mark.parametrize("lines", [1, 40, 150])
def test_a_process_that_is_killed_while_it_writes_loses_nothing_it_had_reported(file_world, lines):
    command = [sys.executable, "-c", WRITER, str(file_world.site.state)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        reported = [int(child.stdout.readline()) for _ in range(lines)][-1]
        child.send_signal(signal.SIGKILL)
        reported = max([reported, *(int(line) for line in child.stdout.readlines() if line.endswith("\n"))])
    opened = file_world.start().ask(Open(session_id=ID), Opened)
    assert opened.records == tuple(event(n) for n in range(1, len(opened.records) + 1))
    assert len(opened.records) >= reported
    assert (opened.corrupt_epoch, opened.ends) == (0, ((7, len(opened.records)),))

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
from llmws.store.keys import KeyRing, load_keys, write_key_file
from llmws.store.log import SYNC_FAILED_NAME
from llmws.store.rotation import references
from llmws.store.writer import FileStore
from llmws.store_api import (
    Append,
    Close,
    Create,
    Created,
    DropBuffer,
    Failed,
    Flushed,
    Open,
    Opened,
    Read,
    ReadResult,
    Record,
    SessionMeta,
    Surveyed,
    Unknown,
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
    """The real disk, with a gate that fdatasync waits at, counts, and errnos for the next fdatasync and listing."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Event()
        self.writes = self.syncs = 0
        self.sync_error = self.names_error = 0
        self.opened: list[str] = []
        self.replaced: list[str] = []
        self._disk = OsDisk()

    def __getattr__(self, name: str):
        return getattr(self._disk, name)

    def write(self, handle: int, data: bytes) -> int:
        self.writes += 1
        return self._disk.write(handle, data)

    def open(self, path: Path, *, create: bool) -> int:
        self.opened.append(path.name)
        return self._disk.open(path, create=create)

    def replace(self, source: Path, target: Path) -> None:
        self.replaced.append(target.name)
        self._disk.replace(source, target)

    def names(self, folder: Path) -> list[str]:
        if self.names_error:
            error, self.names_error = self.names_error, 0
            raise OSError(error, os.strerror(error))
        return self._disk.names(folder)

    def sync(self, handle: int) -> None:
        self.syncs += 1
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
    assert (failed.session_id, failed.message) == (ID, "the server's disk failed: Input/output error")
    client.submit(append(2), append(1, session_id=OTHER, sync=True))
    assert client.wait(Flushed, lambda answer: answer.durable == 1).session_id == OTHER
    assert client.ask(Open(session_id=ID), Opened).records == (event(1),)


def test_without_room_for_more_threads_one_a_pool_does_all_the_work(file_world, disk, monkeypatch):
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    client = file_world.start()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    disk.gate.clear()
    client.submit(create())
    assert disk.waiting.wait(TIMEOUT_S)
    client.submit(create(OTHER))
    disk.gate.set()
    assert {client.wait(Created).session_id for _ in range(2)} == {ID, OTHER}
    client.submit(append(1, sync=True), append(1, sync=True, session_id=OTHER))
    synced = {client.wait(Flushed, lambda answer: answer.durable == 1).session_id for _ in range(2)}
    assert synced == {ID, OTHER}


def test_of_what_is_written_together_the_buffer_comes_first(file_world, disk):
    """Whatever the order of submission: what the conversation lacks after a crash is taken from the buffer."""
    client = file_world.start()
    client.submit(create(), said(1), append(1), said(2))
    client.wait(Flushed, lambda answer: (answer.log, answer.written) == ("conversation", 2))
    assert [name for name in disk.opened if name.endswith(".jsonl")] == ["buffer.jsonl", "conversation.jsonl"]


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


# --- durability: disk ----------------------------------------------------------------------------------------------


def test_at_disk_nothing_is_told_before_its_fdatasync_and_what_comes_meanwhile_shares_the_next(file_world, disk):
    file_world.durability = "disk"
    client = file_world.start()
    client.ask(create(), Created)
    disk.gate.clear()
    disk.waiting.clear()
    client.submit(append(1))
    assert disk.waiting.wait(TIMEOUT_S)
    client.submit(*(append(n) for n in range(2, 102)), Open(session_id=OTHER))
    assert client.wait(Unknown).session_id == OTHER
    assert client.passed == []
    writes, syncs = disk.writes, disk.syncs
    disk.gate.set()
    flushed = [client.wait(Flushed), client.wait(Flushed)]
    assert [(answer.written, answer.durable) for answer in flushed] == [(1, 1), (101, 101)]
    assert (disk.writes - writes, disk.syncs - syncs) == (1, 1)


def test_at_os_events_are_told_without_any_fdatasync(file_world, disk):
    client = file_world.start()
    client.ask(create(), Created)
    syncs = disk.syncs
    flushed = client.ask(append(1, 2), Flushed)
    assert (flushed.written, flushed.durable, disk.syncs - syncs) == (2, 0, 0)


def test_at_disk_a_failed_fdatasync_fails_the_session_and_tells_nothing(file_world, disk):
    file_world.durability = "disk"
    client = file_world.start()
    client.ask(create(), Created)
    disk.sync_error = errno.EIO
    client.submit(append(1))
    assert client.wait(Failed).message == "the server's disk failed: Input/output error"
    assert client.passed == []


# --- surveys, and master keys that change --------------------------------------------------------------------------


def survey(client) -> list[Surveyed]:
    client.store.survey()
    batches = [client.wait(Surveyed)]
    while not batches[-1].is_last:
        batches.append(client.wait(Surveyed))
    return batches


def test_a_survey_comes_in_batches(file_world):
    session_ids = {str(uuid.UUID(int=(4 << 76) | (8 << 60) | number)) for number in range(300)}
    client = file_world.start()
    client.submit(*map(create, sorted(session_ids)))
    batches = survey(client)
    while sum(len(batch.sessions) for batch in batches) < 300:  # the store still makes them
        batches = survey(client)
    assert [len(batch.sessions) for batch in batches] == [256, 44]
    assert {session_id for batch in batches for session_id, _ in batch.sessions} == session_ids


def test_a_survey_passes_over_what_it_cannot_read(file_world):
    client = file_world.start()
    for session_id in (ID, OTHER):
        client.ask(create(session_id), Created)
    sessions = file_world.site.sessions
    (sessions / OTHER / "meta.json").write_bytes(b"nonsense")
    (sessions / "not a session").mkdir()
    (sessions / ID.replace("6", "7", 1)).mkdir()
    assert survey(client) == [Surveyed(sessions=((ID, META),), is_last=True)]


def test_a_survey_of_a_folder_that_cannot_be_listed_is_answered(file_world, disk):
    client = file_world.start()
    client.ask(create(), Created)
    disk.names_error = errno.EIO
    assert survey(client) == [Surveyed(sessions=(), is_last=True)]
    assert len(survey(client)[0].sessions) == 1


def keys(*kids: int) -> dict[int, bytes]:
    return {kid: bytes([kid]) * 32 for kid in kids}


@pytest.fixture
def key_file(file_world, tmp_path) -> Path:
    """The world's keys come from this file."""
    path = tmp_path / "own.key"
    write_key_file(path, keys(1))
    ring = load_keys(tmp_path, key_file=path, environ={})
    file_world.site = msgspec.structs.replace(file_world.site, keys=ring)
    return path


def said(n: int, session_id: str = ID) -> Append:
    message = Record(n=n, kind="message", value=b'{"content":"hi"}')
    return Append(session_id=session_id, log="conversation", records=(message,), sync=False)


def close(client) -> None:
    """Closes the session, and waits for that by asking for what only an open one can give."""
    client.submit(Close(session_id=ID, meta=META))
    client.ask(Read(session_id=ID, ticket=1, after_seq=0, limit_bytes=1), Failed)


def test_a_running_store_takes_up_a_new_key_and_reseals_first_what_is_closed_then_what_closes(file_world, key_file):
    client = file_world.start()
    for session_id in (ID, OTHER):
        client.ask(create(session_id), Created)
        client.submit(said(1, session_id))
    close(client)
    write_key_file(key_file, keys(1, 2))
    third = ID.replace("6", "7", 1)
    client.submit(create(third))
    client.wait(Created)
    site = file_world.site
    assert references(site) == {1: 2, 2: 1}
    survey(client)
    client.store.survey()  # answered only when the sessions that nobody has open are resealed
    client.wait(Surveyed)
    assert references(site) == {1: 1, 2: 2}
    client.ask(append(1, session_id=OTHER), Flushed)
    client.submit(DropBuffer(session_id=OTHER, meta=META), Close(session_id=OTHER, meta=META))
    client.ask(Open(session_id=OTHER), Opened)
    assert references(site) == {2: 3}
    write_key_file(key_file, keys(2))
    opened = client.ask(Open(session_id=ID), Opened)
    assert [record.n for record in opened.conversation] == [1]


def test_a_session_without_its_key_fails_and_opens_again_when_the_key_is_back(file_world, key_file):
    client = file_world.start()
    client.ask(create(), Created)
    client.submit(append(1), said(1))
    close(client)
    write_key_file(key_file, keys(5))
    failed = client.ask(Open(session_id=ID), Failed)
    assert failed.message == "master key 1 is not in the key file; put it back"
    assert survey(client)[0].sessions == ()
    write_key_file(key_file, keys(1, 5))
    opened = client.ask(Open(session_id=ID), Opened)
    assert (opened.records, len(opened.conversation), opened.corrupt_epoch) == ((event(1),), 1, 0)


def test_a_reseal_that_fails_is_no_failure_of_the_session(file_world, key_file, disk):
    client = file_world.start()
    client.ask(create(), Created)
    client.submit(said(1))
    close(client)
    write_key_file(key_file, keys(1, 2))
    disk.sync_error = errno.EIO
    survey(client)
    survey(client)
    assert client.passed == []
    assert len(client.ask(Open(session_id=ID), Opened).conversation) == 1


def test_a_log_whose_fdatasync_failed_is_copied_by_a_reseal_too(file_world, key_file, disk):
    """The kernel may hold its pages for clean: a second fdatasync that succeeds would prove nothing."""
    client = file_world.start()
    client.ask(create(), Created)
    client.ask(append(1), Flushed)
    disk.sync_error = errno.EIO
    client.ask(append(2, sync=True), Failed)
    # As on a full disk, which takes no mark either: the process remembers by itself.
    (file_world.site.sessions / ID / SYNC_FAILED_NAME).unlink()
    write_key_file(key_file, keys(1, 2))
    disk.replaced.clear()
    survey(client)
    survey(client)
    assert disk.replaced == ["buffer.jsonl", "meta.json", "meta.json"]
    disk.replaced.clear()
    assert client.ask(Open(session_id=ID), Opened).records == (event(1), event(2))
    assert disk.replaced == ["meta.json"]


def test_a_conversation_that_a_reseal_found_damaged_is_told_to_the_next_that_opens_it_and_then_no_more(
    file_world, key_file
):
    client = file_world.start()
    client.ask(create(), Created)
    client.submit(said(1), said(2))
    close(client)
    path = file_world.site.sessions / ID / "conversation.jsonl"
    path.write_bytes(path.read_bytes().replace(b'{"n":1,', b'{"n":7,'))
    write_key_file(key_file, keys(1, 2))
    survey(client)
    survey(client)
    assert references(file_world.site) == {2: 1}
    told = []
    for _ in range(2):
        told.append(client.ask(Open(session_id=ID), Opened).is_conversation_damaged)
        close(client)
    assert told == [True, False]


def test_a_store_that_is_closed_in_the_middle_of_a_survey_stops(file_world):
    client = file_world.start()
    client.ask(create(), Created)
    for _ in range(50):
        client.store.survey()
    client.store.close()
    assert all(isinstance(answer, Surveyed) for answer in client.store.take())
    assert not [thread for thread in threading.enumerate() if thread.name == "llmws-survey"]


# --- the end -------------------------------------------------------------------------------------------------------


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

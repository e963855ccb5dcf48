"""New master keys, old ones, missing ones; and `llmws keys`, which changes them."""

import errno
import json
import os
import time
from contextlib import suppress

import msgspec
import pytest

from llmws.cli.main import main
from llmws.errors import StorageError
from llmws.store.folder import Site, create_session, delete_session, open_session, prepare, reseal_session
from llmws.store.keys import KeyRing, load_keys, read_key_file, write_key_file
from llmws.store.lock import hold_state_folder
from llmws.store.rotation import open_site, references, reseal_all
from llmws.store.survey import look_through
from llmws.store_api import Record, SessionMeta

ID = "6f1c2d3e-4a5b-4c6d-8e7f-901122334455"
OTHER = "00000000-0000-4000-8000-000000000000"
META = SessionMeta(owner="local", created_s=1.0, last_activity_s=2.0, title="a title")
OLD, BOTH, NEW = ({1: b"k" * 32}, {1: b"k" * 32, 2: b"n" * 32}, {2: b"n" * 32})


def message(n: int) -> Record:
    return Record(n=n, kind="message", value=b'{"role":"user","content":"hi %d"}' % n)


def event(n: int) -> Record:
    return Record(n=n, kind="event", value=b'{"seq":%d,"data":"x"}' % n, seq=n)


def messages(count: int) -> tuple[Record, ...]:
    return tuple(message(n) for n in range(1, count + 1))


def under(site: Site, keys: dict[int, bytes]) -> Site:
    return msgspec.structs.replace(site, keys=KeyRing(keys))


def conversed(site: Site, session_id: str = ID, *, count: int = 3) -> None:
    """A closed session with a conversation, written in two segments."""
    folder = create_session(site, session_id, 7, META)
    folder.logs["conversation"].append(messages(count)[:1])
    folder.close(META)
    folder, _ = open_session(site, session_id)
    folder.logs["conversation"].append(messages(count)[1:])
    folder.close(META)


def kids(path) -> list[int]:
    """Of the segments in a log."""
    return [json.loads(line)["kid"] for line in path.read_bytes().splitlines() if line.startswith(b'{"h"')]


def stale(site: Site) -> list[str]:
    return [look.session_id for look in look_through(site) if look.is_stale]


# --- resealing -----------------------------------------------------------------------------------------------------


def test_a_close_puts_the_conversation_in_one_segment_under_the_newest_key(site):
    conversed(site)
    path = site.sessions / ID / "conversation.jsonl"
    assert kids(path) == [1, 1]
    folder, before = open_session(under(site, BOTH), ID)
    folder.close(before.meta)
    assert kids(path) == [2]
    folder, after = open_session(under(site, NEW), ID)
    folder.release()
    assert (after.conversation, after.next_conversation_n) == (messages(3), 4)
    assert (after.ledger_key, after.meta) == (before.ledger_key, META)


def test_the_numbers_go_on_after_a_reseal(site):
    conversed(site)
    reseal_session(under(site, BOTH), ID)
    for n in (4, 5):
        folder, _ = open_session(under(site, NEW), ID)
        folder.logs["conversation"].append([message(n)])
        folder.close(META)
    folder, opened = open_session(under(site, NEW), ID)
    folder.release()
    assert opened.conversation == messages(5)
    assert references(site) == {2: 1}


def test_under_the_newest_key_nothing_is_sealed_again(site):
    conversed(site)
    before = (site.sessions / ID / "conversation.jsonl").read_bytes()
    reseal_session(site, ID)
    assert (site.sessions / ID / "conversation.jsonl").read_bytes() == before


def test_a_session_is_stale_until_it_is_resealed_however_it_ended(site):
    """Also when it was killed after meta came under the newest key, and with nothing in its conversation."""
    path = site.state / "master.key"
    write_key_file(path, OLD)
    site = msgspec.structs.replace(site, keys=load_keys(site.state, key_file=path, environ={}))
    for session_id in (ID, OTHER):
        folder = create_session(site, session_id, 7, META)
        assert stale(site) == []
    write_key_file(path, BOTH)
    site.keys.refresh()
    folder.keep(META)
    folder.release()
    assert set(stale(site)) == {ID, OTHER}
    for session_id in (ID, OTHER):
        reseal_session(site, session_id)
    assert (stale(site), references(site)) == ([], {2: 2})


@pytest.mark.parametrize("fault", [errno.ENOSPC, -7])
def test_without_room_a_conversation_stays_under_its_old_key(site, disk, fault):
    conversed(site)
    disk.faults["write"] = [0, 0, fault]
    reseal_session(under(site, BOTH), ID)
    assert kids(site.sessions / ID / "conversation.jsonl") == [1, 1]
    assert stale(under(site, BOTH)) == [ID]
    disk.faults["write"] = [0, 0, fault]
    assert reseal_all(under(site, BOTH)) == 1
    assert reseal_all(under(site, BOTH)) == 0
    folder, opened = open_session(under(site, NEW), ID)
    folder.release()
    assert opened.conversation == messages(3)


def test_what_a_reseal_finds_damaged_is_told_until_the_hub_that_heard_of_it_writes_meta(site):
    conversed(site)
    path = site.sessions / ID / "conversation.jsonl"
    path.write_bytes(path.read_bytes().replace(b'{"n":2,', b'{"n":7,'))
    both = under(site, BOTH)
    reseal_session(both, ID)
    for _ in range(2):
        folder, opened = open_session(both, ID)
        folder.mark_told()
        folder.release()
        assert (opened.conversation, opened.is_conversation_damaged) == (messages(1), True)
    folder.keep(META)
    folder.release()
    folder, opened = open_session(both, ID)
    folder.release()
    assert not opened.is_conversation_damaged


@pytest.mark.parametrize("call", ["write", "sync", "replace", "sync_folder", "truncate", "open", "read"])
def test_a_reseal_that_fails_anywhere_loses_nothing_and_can_be_repeated(site, disk, call):
    conversed(site)
    both = under(site, BOTH)
    for number in range(8):
        disk.faults[call] = [0] * number + [errno.EIO]
        with suppress(OSError):
            reseal_session(both, ID)
        disk.faults.clear()
        folder, opened = open_session(both, ID)
        folder.release()
        assert (opened.conversation, opened.corrupt_epoch) == (messages(3), 0)
    reseal_session(both, ID)
    assert stale(both) == []


def test_deleted_sessions_are_neither_looked_at_nor_do_they_need_keys(site, disk):
    for session_id, keep_tombstone in ((ID, True), (OTHER, False)):
        conversed(site, session_id)
        disk.faults["unlink"] = [errno.EIO]
        with pytest.raises(OSError, match="Input/output"):
            delete_session(site, session_id, keep_tombstone=keep_tombstone)
    assert len(list(site.sessions.iterdir())) == 2
    assert (list(look_through(site)), references(site)) == ([], {})


# --- missing keys --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ring", [NEW, {3: b"m" * 32}])
def test_without_its_key_a_session_fails_untouched_and_works_when_the_key_is_back(site, disk, ring):
    conversed(site)
    folder, _ = open_session(site, ID)
    folder.logs["buffer"].append([event(1)])
    folder.release()
    (site.sessions / ID / "buffer.jsonl.new").touch()
    before = {path.name: path.read_bytes() for path in (site.sessions / ID).iterdir()}
    with pytest.raises(StorageError, match="master key 1 is not in the key file; put it back"):
        open_session(under(site, ring), ID)
    assert {path.name: path.read_bytes() for path in (site.sessions / ID).iterdir()} == before
    folder, opened = open_session(under(site, {**ring, 1: b"k" * 32}), ID)
    folder.release()
    assert (opened.conversation, opened.records, opened.corrupt_epoch) == (messages(3), (event(1),), 0)


def test_a_key_that_only_the_oldest_of_many_segments_needs_is_missed_too(site):
    """A segment an opening, while the first event is not acknowledged."""
    create_session(site, ID, 7, META).release()
    for n in range(1, 68):
        folder, _ = open_session(site if n == 1 else under(site, BOTH), ID)
        folder.logs["buffer"].append([event(n)])
        folder.close(META)
    before = (site.sessions / ID / "buffer.jsonl").read_bytes()
    with pytest.raises(StorageError, match="master key 1 is not in the key file"):
        open_session(under(site, NEW), ID)
    assert (site.sessions / ID / "buffer.jsonl").read_bytes() == before


def test_an_open_session_whose_key_goes_keeps_writing_and_fails_at_the_next_segment(site):
    path = site.state / "master.key"
    write_key_file(path, BOTH)
    site = msgspec.structs.replace(site, keys=load_keys(site.state, key_file=path, environ={}))
    folder = create_session(site, ID, 7, META)
    folder.logs["buffer"].append([event(1)])
    write_key_file(path, OLD)
    site.keys.refresh()
    folder.logs["buffer"].append([event(2)])
    with pytest.raises(StorageError, match="master key 2 is not in the key file"):
        folder.drop_buffer(META)


# --- llmws keys ----------------------------------------------------------------------------------------------------


@pytest.fixture
def state(tmp_path, monkeypatch):
    """A state folder with key 1 and two sessions: one closed, one with an answer that is not acknowledged."""
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    folder = tmp_path / "state"
    folder.mkdir()
    site = Site(state=folder, keys=load_keys(folder))
    prepare(site)
    conversed(site)
    conversed(site, OTHER)
    session, _ = open_session(site, OTHER)
    session.logs["buffer"].append([event(1)])
    session.close(META)
    return folder


def keys_command(state, *arguments: object) -> int:
    config = state.parent / "config.json"
    return main(["keys", *map(str, arguments), "--state-dir", str(state), "--config", str(config)])


def settled(state) -> None:
    """The client of the other session acknowledges everything."""
    site = open_site(state, state / "keys" / "master.key")
    session, _ = open_session(site, OTHER)
    session.drop_buffer(META)
    session.close(META)


def test_rotate_and_retire_with_the_server_down(state, capsys):
    path = state / "keys" / "master.key"
    assert keys_command(state, "rotate") == 0
    assert "key 2 seals what is new; the conversations are under it" in capsys.readouterr().out
    assert (sorted(read_key_file(path)), path.stat().st_mode & 0o777) == ([1, 2], 0o600)
    assert keys_command(state, "list") == 0
    assert capsys.readouterr().out == "1\t1 session\n2\t2 sessions\tcurrent\n"
    assert keys_command(state, "retire", 1) == 1
    assert "key 1 is needed by 1 session." in capsys.readouterr().err
    settled(state)
    assert keys_command(state, "retire", 1) == 0
    assert "key 1 is removed" in capsys.readouterr().out
    assert sorted(read_key_file(path)) == [2]
    site = open_site(state, path)
    for session_id in (ID, OTHER):
        session, opened = open_session(site, session_id)
        session.release()
        assert (opened.conversation, opened.meta, opened.corrupt_epoch) == (messages(3), META, 0)


def test_beside_a_server_only_the_key_file_is_changed(state, capsys):
    before = {path: path.read_bytes() for path in state.glob("sessions/*/*")}
    lock = hold_state_folder(state)
    try:
        assert keys_command(state, "rotate") == 0
        assert "the running server brings the conversations under it" in capsys.readouterr().out
        assert keys_command(state, "retire", 1) == 1
        assert "key 1 is needed by 2 sessions." in capsys.readouterr().err
    finally:
        lock.close()
    assert {path: path.read_bytes() for path in state.glob("sessions/*/*")} == before


def test_beside_a_server_a_key_stays_until_the_server_has_noticed_the_next_one(state, capsys):
    path = state / "keys" / "master.key"
    settled(state)
    keys_command(state, "rotate")
    lock = hold_state_folder(state)
    try:
        assert keys_command(state, "retire", 1) == 1
        assert "the running server may not have noticed key 2 yet; try again" in capsys.readouterr().err
        os.utime(path, (time.time() - 121,) * 2)
        assert keys_command(state, "retire", 1) == 0
    finally:
        lock.close()
    assert sorted(read_key_file(path)) == [2]


def test_a_rotation_says_what_it_could_not_bring_under_the_new_key(state, capsys):
    (state / "sessions" / ID / "conversation.jsonl.new").mkdir()
    assert keys_command(state, "rotate") == 1
    shown = capsys.readouterr()
    assert shown.out == "key 2 seals what is new\n"
    assert "llmws: 1 session could not be brought under it; the server will try again" in shown.err


@pytest.mark.parametrize(("kid", "said"), [(1, "seals what is new"), (9, "there is no key 9")])
def test_the_current_key_and_one_that_is_not_there_cannot_be_retired(state, capsys, kid, said):
    assert keys_command(state, "retire", kid) == 1
    assert said in capsys.readouterr().err
    assert sorted(read_key_file(state / "keys" / "master.key")) == [1]


def test_a_session_that_cannot_be_read_keeps_the_keys_it_names(state, capsys):
    """Its files wait for whoever can repair them; without the key nobody could."""
    meta = state / "sessions" / ID / "meta.json"
    meta.write_bytes(meta.read_bytes().replace(b'"mac":"', b'"mac":"A', 1))
    settled(state)
    assert keys_command(state, "rotate") == 0
    assert keys_command(state, "retire", 1) == 1
    assert "needed by 1 session." in capsys.readouterr().err


def test_keys_that_systemd_passes_in_are_not_changed_here(state, capsys, monkeypatch):
    credentials = state.parent / "credentials"
    credentials.mkdir()
    (state / "keys" / "master.key").rename(credentials / "master.key")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    for arguments in (["list"], ["rotate"], ["retire", "1"]):
        assert keys_command(state, *arguments) == 78
        assert "come from $CREDENTIALS_DIRECTORY" in capsys.readouterr().err
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    assert keys_command(state, "rotate") == 78
    assert "there is no key file" in capsys.readouterr().err


def test_a_key_file_of_another_account_is_not_replaced(state, capsys, monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 54321)
    assert keys_command(state, "rotate") == 78
    assert "belongs to another account" in capsys.readouterr().err
    assert sorted(read_key_file(state / "keys" / "master.key")) == [1]


def test_no_key_is_ever_shown(state, capsys):
    keys_command(state, "rotate")
    keys_command(state, "list")
    shown = "".join(capsys.readouterr())
    assert not any(line.split()[1] in shown for line in (state / "keys" / "master.key").read_text().splitlines()[1:])

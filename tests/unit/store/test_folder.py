"""One session's folder: epochs, what meta knows, and every fault between two writes."""

import errno
import json
import os
from contextlib import suppress

import msgspec
import pytest

from llmws.errors import StorageError
from llmws.store.folder import (
    Site,
    create_session,
    delete_session,
    is_session_id,
    list_unfinished,
    open_session,
    prepare,
)
from llmws.store.keys import KeyRing
from llmws.store_api import Record, SessionMeta

ID = "6f1c2d3e-4a5b-4c6d-8e7f-901122334455"
META = SessionMeta(owner="local", created_s=1.0, last_activity_s=2.0)


def event(n: int, *, seq: int | None = None, text: str = "x") -> Record:
    seq = n if seq is None else seq
    return Record(n=n, kind="event", value=b'{"seq":%d,"data":"%b"}' % (seq, text.encode()), seq=seq)


def message(n: int) -> Record:
    return Record(n=n, kind="message", value=b'{"role":"user","content":"hi"}')


def events(*numbers: int) -> list[Record]:
    return [event(n) for n in numbers]


def with_seq(last_seq: int) -> SessionMeta:
    return msgspec.structs.replace(META, last_seq=last_seq, floor=last_seq)


def killed(site: Site, *, epoch: int = 7, numbers=(1, 2, 3)):
    """A session that appended these events and was killed. Returns the path of its folder."""
    folder = create_session(site, ID, epoch, META)
    if numbers:
        folder.logs["buffer"].append(events(*numbers))
    folder.release()
    return site.sessions / ID


def opened(site: Site):
    folder, answer = open_session(site, ID)
    folder.release()
    return answer


def salts(site: Site) -> list[str]:
    text = (site.sessions / ID / "buffer.jsonl").read_bytes()
    return [json.loads(line)["salt"] for line in text.splitlines() if line.startswith(b'{"h"')]


# --- epochs and numbers --------------------------------------------------------------------------------------------


def test_an_opening_takes_the_clock_as_epoch_and_lists_where_the_last_one_ended(site):
    killed(site)
    answer = opened(site)
    assert (answer.epoch, answer.ends, answer.next_n) == (1_000_000, ((7, 3),), 4)


def test_an_epoch_is_above_the_last_even_if_the_clock_went_back(site):
    killed(site, epoch=2_000_000)
    assert [opened(site).epoch, opened(site).epoch] == [2_000_001, 2_000_002]


def test_openings_without_events_end_where_the_one_before_did(site):
    killed(site)
    opened(site)
    opened(site)
    assert opened(site).ends == ((7, 3), (1_000_000, 3), (1_000_001, 3))


def test_only_the_newest_64_ends_are_kept(site):
    killed(site)
    for _ in range(70):
        answer = opened(site)
    assert len(answer.ends) == 64
    assert answer.ends[-1] == (answer.epoch - 1, 3)


def test_numbers_and_seqs_run_on_after_the_buffer_was_dropped(site):
    killed(site, numbers=(1, 2))
    folder, _ = open_session(site, ID)
    folder.drop_buffer(with_seq(2))
    folder.logs["buffer"].append(events(3, 4))
    folder.release()
    answer = opened(site)
    assert answer.records == tuple(events(3, 4))
    assert (answer.meta.last_seq, answer.ends) == (2, ((7, 2), (1_000_000, 4)))


def test_a_log_newer_than_the_meta_beside_it_is_believed(site):
    """An old copy of meta.json, put back beside a log that went on."""
    path = killed(site)
    old = (path / "meta.json").read_bytes()
    folder, _ = open_session(site, ID)
    folder.logs["buffer"].append(events(4, 5))
    folder.close(META)
    (path / "meta.json").write_bytes(old)
    answer = opened(site)
    assert answer.records == tuple(events(1, 2, 3, 4, 5))
    assert (answer.epoch, answer.ends, answer.corrupt_epoch) == (1_000_001, ((7, 3), (1_000_000, 5)), 0)


def test_the_conversation_has_numbers_of_its_own_and_survives_a_drop(site):
    folder = create_session(site, ID, 7, META)
    folder.logs["buffer"].append(events(1, 2))
    folder.logs["conversation"].append([message(1)])
    folder.drop_buffer(with_seq(2))
    folder.close(with_seq(2))
    answer = opened(site)
    assert (answer.records, answer.next_n) == ((), 3)
    assert (answer.conversation, answer.next_conversation_n) == ((message(1),), 2)


def test_the_ledger_key_outlives_a_new_master_key(site):
    killed(site)
    before = opened(site).ledger_key
    rotated = msgspec.structs.replace(site, keys=KeyRing({1: b"k" * 32, 2: b"n" * 32}))
    answer = opened(rotated)
    assert answer.ledger_key == before
    assert answer.records == tuple(events(1, 2, 3))
    with pytest.raises(StorageError, match="master key 2 is not in the key file"):
        open_session(site, ID)


# --- what is on disk -----------------------------------------------------------------------------------------------


def test_everything_is_readable_by_the_owner_only(site):
    folder = create_session(site, ID, 7, META)
    folder.logs["buffer"].append(events(1))
    folder.logs["conversation"].append([message(1)])
    folder.close(META)
    delete_session(site, "00000000-0000-4000-8000-000000000000")
    modes = {str(path.relative_to(site.state)): path.stat().st_mode & 0o777 for path in site.state.rglob("*")}
    assert modes == {
        "sessions": 0o700,
        f"sessions/{ID}": 0o700,
        f"sessions/{ID}/meta.json": 0o600,
        f"sessions/{ID}/buffer.jsonl": 0o600,
        f"sessions/{ID}/conversation.jsonl": 0o600,
        "deleted": 0o700,
        "deleted/00000000-0000-4000-8000-000000000000": 0o600,
    }


def test_no_value_is_readable_on_disk(site):
    folder = create_session(site, ID, 7, META)
    folder.logs["buffer"].append([event(1, text="a secret word")])
    folder.logs["conversation"].append([Record(n=1, kind="message", value=b'{"content":"a secret word"}')])
    folder.close(META)
    stored = b"".join(path.read_bytes() for path in site.state.rglob("*") if path.is_file())
    assert b"secret" not in stored
    assert b'"data":"' in stored


def test_a_session_without_records_has_no_log_files(site):
    create_session(site, ID, 7, META).close(META)
    assert [path.name for path in (site.sessions / ID).iterdir()] == ["meta.json"]
    assert list_unfinished(site) == []


def test_unfinished_sessions_are_those_with_a_buffer_newest_first(site):
    other = "00000000-0000-4000-8000-000000000000"
    killed(site)
    folder = create_session(site, other, 7, META)
    folder.logs["buffer"].append(events(1))
    (site.sessions / "not a session").mkdir()
    (site.sessions / "not a session" / "buffer.jsonl").touch()
    for name, time_ns in ((ID, 2), (other, 1)):
        path = site.sessions / name / "buffer.jsonl"
        os.utime(path, ns=(time_ns, time_ns))
    assert list_unfinished(site) == [ID, other]


@pytest.mark.parametrize("call", ["open", "write", "sync", "replace"])
def test_what_a_creation_that_failed_leaves_is_removed_at_once_or_at_the_next_start(site, disk, call):
    """On a full disk every attempt would leave a folder behind."""
    disk.faults[call] = [errno.ENOSPC]
    with pytest.raises(OSError, match="No space left"):
        create_session(site, ID, 7, META)
    assert list(site.sessions.iterdir()) == []
    disk.faults = {call: [errno.ENOSPC], "names": [errno.EIO]}
    with pytest.raises(OSError, match="No space left"):
        create_session(site, ID, 7, META)
    assert (site.sessions / ID).exists()
    prepare(site)
    assert list(site.sessions.iterdir()) == []
    create_session(site, ID, 8, META).release()
    prepare(site)
    assert opened(site).meta == META


def test_a_folder_with_anything_but_drafts_and_what_is_no_session_s_folder_stay(site):
    path = killed(site)
    (path / "meta.json").rename(path / "meta.json.new")
    (site.sessions / "not a session").mkdir()
    (site.sessions / "00000000-0000-4000-8000-000000000000").touch()
    prepare(site)
    assert {file.name for file in path.iterdir()} == {"buffer.jsonl", "meta.json.new"}
    assert len(list(site.sessions.iterdir())) == 3


# --- torn, damaged, forged -----------------------------------------------------------------------------------------


def test_a_torn_end_is_cut_off_and_the_log_goes_on_under_another_key(site):
    """The same n is sealed again with other text: with the old salt that would be one nonce for two plaintexts."""
    path = killed(site) / "buffer.jsonl"
    torn = path.read_bytes()[:-5]
    path.write_bytes(torn)
    folder, answer = open_session(site, ID)
    assert (answer.next_n, answer.ends, answer.corrupt_epoch) == (3, ((7, 2),), 0)
    assert torn.startswith(path.read_bytes())
    folder.logs["buffer"].append([event(3, text="other")])
    folder.release()
    assert opened(site).records == (*events(1, 2), event(3, text="other"))
    assert len(set(salts(site))) == 2
    assert not path.with_suffix(".corrupt").exists()


def test_a_damaged_log_is_kept_beside_its_true_prefix_and_older_positions_are_void(site):
    path = killed(site) / "buffer.jsonl"
    damaged = path.read_bytes().replace(b'{"n":2,"data":"', b'{"n":2,"data":"!')
    path.write_bytes(damaged)
    folder, answer = open_session(site, ID)
    assert (answer.records, answer.next_n, answer.corrupt_epoch) == (tuple(events(1)), 2, answer.epoch)
    assert path.with_suffix(".corrupt").read_bytes() == damaged
    folder.logs["buffer"].append(events(2))
    folder.release()
    again = opened(site)
    assert (again.records, again.corrupt_epoch) == (tuple(events(1, 2)), answer.epoch)


def test_a_log_cut_below_what_was_durable_voids_older_positions(site):
    """Cut after a whole line the file looks well; only meta knows that more was there."""
    path = killed(site) / "buffer.jsonl"
    opened(site)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    answer = opened(site)
    assert (answer.records, answer.corrupt_epoch) == (tuple(events(1, 2)), answer.epoch)


def test_a_log_that_is_gone_voids_older_positions(site):
    path = killed(site) / "buffer.jsonl"
    opened(site)
    path.unlink()
    answer = opened(site)
    assert (answer.records, answer.corrupt_epoch) == ((), answer.epoch)


def test_a_log_whose_master_key_is_gone_is_left_alone(site):
    """Without the key it would look torn from its first line on, and be cut down to nothing."""
    path = killed(site, numbers=()) / "buffer.jsonl"
    ring = {1: b"k" * 32, 2: b"n" * 32}
    folder, _ = open_session(msgspec.structs.replace(site, keys=KeyRing(ring)), ID)
    folder.logs["buffer"].append(events(1, 2))
    folder.close(META)
    before = path.read_bytes()
    ring[3] = b"m" * 32
    opened(msgspec.structs.replace(site, keys=KeyRing(ring)))
    del ring[2]
    with pytest.raises(StorageError, match="master key 2 is not in the key file"):
        open_session(msgspec.structs.replace(site, keys=KeyRing(ring)), ID)
    assert path.read_bytes() == before


def test_a_conversation_copied_over_the_buffer_is_not_taken_for_one(site):
    folder = create_session(site, ID, 7, META)
    folder.logs["buffer"].append(events(1, 2))
    folder.logs["conversation"].append([message(1), message(2)])
    folder.close(META)
    path = site.sessions / ID
    copied = (path / "conversation.jsonl").read_bytes()
    (path / "buffer.jsonl").write_bytes(copied)
    answer = opened(site)
    assert (path / "buffer.corrupt").read_bytes() == copied
    assert not (path / "buffer.jsonl").exists()
    assert (answer.records, answer.corrupt_epoch) == ((), answer.epoch)
    assert answer.conversation == (message(1), message(2))


def test_a_damaged_conversation_keeps_its_true_prefix_and_leaves_positions_alone(site):
    folder = create_session(site, ID, 7, META)
    folder.logs["buffer"].append(events(1))
    folder.logs["conversation"].append([message(1), message(2), message(3)])
    folder.close(META)
    path = site.sessions / ID / "conversation.jsonl"
    damaged = path.read_bytes().replace(b'{"n":2,', b'{"n":7,')
    path.write_bytes(damaged)
    answer = opened(site)
    assert (answer.conversation, answer.next_conversation_n) == ((message(1),), 2)
    assert (answer.records, answer.corrupt_epoch) == (tuple(events(1)), 0)
    assert path.with_suffix(".corrupt").read_bytes() == damaged


def test_a_session_folder_under_another_id_is_unknown(site):
    killed(site).rename(site.sessions / "00000000-0000-4000-8000-000000000000")
    assert open_session(site, "00000000-0000-4000-8000-000000000000") is None


def test_a_meta_that_was_changed_is_not_believed(site):
    path = killed(site) / "meta.json"
    meta = bytearray(path.read_bytes())
    for position in range(0, len(meta), 16):
        meta[position] ^= 1
        path.write_bytes(meta)
        assert open_session(site, ID) is None
        meta[position] ^= 1


@pytest.mark.parametrize("text", [b"", b"{}", b'{"kid":1,"mac":"","body":{}}\n', b"\xff" * 100, b"[" * 100_000])
def test_a_meta_that_is_something_else_makes_the_session_unknown(site, text):
    (killed(site) / "meta.json").write_bytes(text)
    assert open_session(site, ID) is None


def test_a_folder_without_meta_is_unknown(site):
    (site.sessions / ID).mkdir()
    assert open_session(site, ID) is None


# --- ids and deletion ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["", "..", "../deleted", ID.upper(), ID[:-1], ID + "\n", ID.replace("-", ""), ID.replace("-4c", "-1c"), "é" * 36],
)
def test_only_a_canonical_uuid4_reaches_the_disk(site, disk, text):
    disk.calls.clear()
    assert not is_session_id(text)
    assert open_session(site, text) is None
    with pytest.raises(StorageError, match="UUIDv4"):
        create_session(site, text, 7, META)
    delete_session(site, text)
    assert disk.calls == []


def test_a_deleted_session_stays_unknown_even_if_its_folder_comes_back(site):
    path = killed(site)
    copy = {file.name: file.read_bytes() for file in path.iterdir()}
    delete_session(site, ID)
    assert not path.exists()
    path.mkdir()
    for name, data in copy.items():
        (path / name).write_bytes(data)
    assert open_session(site, ID) is None
    with pytest.raises(StorageError, match="used before"):
        create_session(site, ID, 8, META)


def test_a_deletion_that_was_interrupted_is_finished_at_the_next_start(site, disk):
    path = killed(site)
    disk.faults["unlink"] = [errno.EIO]
    with pytest.raises(OSError, match="Input/output"):
        delete_session(site, ID)
    assert open_session(site, ID) is None
    assert path.exists()
    prepare(site)
    assert not path.exists()


@pytest.mark.parametrize("call", ["unlink", "remove_folder", "sync_folder"])
@pytest.mark.parametrize("number", range(6))
def test_a_deletion_without_a_tombstone_is_finished_at_the_next_start_wherever_it_stopped(site, disk, call, number):
    path = killed(site)
    disk.faults[call] = [0] * number + [errno.EIO]
    with suppress(OSError):
        delete_session(site, ID, keep_tombstone=False)
    disk.faults.clear()
    assert open_session(site, ID) is None
    prepare(site)
    assert (path.exists(), list(site.deleted.iterdir())) == (False, [])
    create_session(site, ID, 8, META).release()


def test_the_tombstone_that_does_not_stay_goes_only_after_the_files_are_gone_for_certain(site, disk):
    """Else a power loss could bring the files back without it."""
    killed(site)
    disk.calls.clear()
    delete_session(site, ID, keep_tombstone=False)
    assert disk.calls[-4:] == ["remove_folder", "sync_folder", "unlink", "sync_folder"]


def test_a_tombstone_stays_where_a_deletion_without_one_follows(site):
    killed(site)
    delete_session(site, ID)
    delete_session(site, ID, keep_tombstone=False)
    with pytest.raises(StorageError, match="used before"):
        create_session(site, ID, 8, META)


def test_an_id_in_use_cannot_be_created_again(site):
    killed(site)
    with pytest.raises(StorageError, match="used before"):
        create_session(site, ID, 8, META)


# --- a disk that fails ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EIO, -1, -60, -200])
def test_a_failed_or_short_write_is_repeated_once_under_another_key(site, disk, fault):
    folder = create_session(site, ID, 7, META)
    log = folder.logs["buffer"]
    log.append(events(1, 2))
    disk.faults["write"] = [fault]
    log.append(events(3))
    assert (log.last_n, len(set(salts(site)))) == (3, 2)
    folder.release()
    answer = opened(site)
    assert (answer.records, answer.ends, answer.corrupt_epoch) == (tuple(events(1, 2, 3)), ((7, 3),), 0)


def test_a_first_write_that_fails_leaves_no_header_behind(site, disk):
    folder = create_session(site, ID, 7, META)
    disk.faults["write"] = [-1]
    folder.logs["buffer"].append(events(1))
    assert len(salts(site)) == 1
    assert folder.logs["buffer"].read_events(0, 1000) == [(1, event(1).value)]


def test_a_full_disk_is_an_error_and_what_was_written_before_stays(site, disk):
    folder = create_session(site, ID, 7, META)
    folder.logs["buffer"].append(events(1, 2))
    disk.faults["write"] = [-10, -10]
    with pytest.raises(OSError, match="full"):
        folder.logs["buffer"].append(events(3))
    folder.release()
    answer = opened(site)
    assert (answer.records, answer.corrupt_epoch) == (tuple(events(1, 2)), 0)


def test_a_failed_fdatasync_is_not_tried_again(site, disk):
    """The kernel may have thrown the dirty pages away: a second call would succeed and mean nothing."""
    folder = create_session(site, ID, 7, META)
    folder.logs["buffer"].append(events(1))
    disk.faults["sync"] = [errno.EIO]
    disk.calls.clear()
    with pytest.raises(OSError, match="Input/output"):
        folder.logs["buffer"].sync()
    assert disk.calls == ["sync", "open", "close"], "a mark is left"
    assert folder.logs["buffer"].durable_n == 0


def test_a_failed_fdatasync_is_not_forgotten_over_a_restart(site, disk):
    """The next process's fdatasync would succeed without writing; a copy of the log, and meta, are written anew."""
    folder = create_session(site, ID, 7, META)
    folder.logs["buffer"].append(events(1))
    disk.faults["sync"] = [errno.EIO]
    with pytest.raises(OSError, match="Input/output"):
        folder.logs["buffer"].sync()
    folder.release()
    copied = []
    for _ in range(2):
        disk.calls.clear()
        assert opened(site).records == tuple(events(1))
        copied.append(disk.calls.count("replace"))
    assert copied == [2, 1]


def test_records_that_do_not_follow_on_are_refused(site):
    folder = create_session(site, ID, 7, META)
    for wrong in (events(2), events(1, 3), events(1, 1)):
        with pytest.raises(StorageError, match="cannot follow"):
            folder.logs["buffer"].append(wrong)


def test_a_log_that_another_program_wrote_in_is_not_appended_to(site):
    folder = create_session(site, ID, 7, META)
    folder.logs["buffer"].append(events(1))
    folder.release()
    with (site.sessions / ID / "buffer.jsonl").open("ab") as file:
        file.write(b"intruder\n")
    with pytest.raises(StorageError, match="changed by another program"):
        folder.logs["buffer"].append(events(2))


def test_a_log_damaged_while_open_is_not_read(site):
    folder = create_session(site, ID, 7, META)
    folder.logs["buffer"].append(events(1, 2))
    path = site.sessions / ID / "buffer.jsonl"
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(data)
    with pytest.raises(StorageError, match="damaged"):
        folder.logs["buffer"].read_events(0, 1000)


def test_meta_claims_only_what_is_durable(site):
    folder = create_session(site, ID, 7, META)
    log = folder.logs["conversation"]
    log.append([message(1), message(2)])
    assert log.state().durable_n == 0
    log.sync()
    log.append([message(3)])
    assert log.state().durable_n == 2


# --- reading back --------------------------------------------------------------------------------------------------


def test_events_are_read_back_from_anywhere_across_segments(site):
    """6,000 events in segments of one opening after another, so that reads begin at marks, headers and between."""
    folder = create_session(site, ID, 7, META)
    for first in range(1, 6001, 500):
        folder.logs["buffer"].append(events(*range(first, first + 500)))
        folder.release()
        folder, _ = open_session(site, ID)
    log = folder.logs["buffer"]
    for after in (0, 1, 499, 500, 501, 2999, 5998, 5999):
        got = log.read_events(after, limit_bytes=60)
        assert got == [(n, event(n).value) for n in range(after + 1, min(after + 4, 6001))][: len(got)]
        assert len(got) == min(3, 6000 - after)
    assert log.read_events(6000, 60) == []
    assert len(log.read_events(0, 10**9)) == 6000


def test_a_read_gives_at_least_one_event_and_skips_other_records(site):
    folder = create_session(site, ID, 7, META)
    request = Record(n=1, kind="request", value=b'{"seq":99}')
    ack = Record(n=3, kind="ack", value=b'{"floor":1}')
    folder.logs["buffer"].append([request, event(2, seq=1), ack, event(4, seq=2, text="y" * 200_000)])
    assert folder.logs["buffer"].read_events(0, 1) == [(1, event(2, seq=1).value)]
    assert folder.logs["buffer"].read_events(1, 1) == [(2, event(4, seq=2, text="y" * 200_000).value)]


def test_a_read_unseals_little_that_it_does_not_want(site, disk):
    folder = create_session(site, ID, 7, META)
    folder.logs["buffer"].append(events(*range(1, 5001)))
    disk.calls.clear()
    assert folder.logs["buffer"].read_events(4000, 1) == [(4001, event(4001).value)]
    assert disk.calls == ["read"]

"""Taking the dropped records out of a buffer log, and every fault on the way."""

import errno

import msgspec
import pytest

from llmws.errors import StorageError
from llmws.store.folder import create_session, open_session
from llmws.store_api import Record, SessionMeta

ID = "6f1c2d3e-4a5b-4c6d-8e7f-901122334455"
META = SessionMeta(owner="local", created_s=1.0, last_activity_s=2.0)


def event(n: int) -> Record:
    return Record(n=n, kind="event", value=b'{"seq":%d,"data":"x"}' % n, seq=n)


def events(first: int, last: int) -> list[Record]:
    return [event(n) for n in range(first, last + 1)]


def with_seq(last_seq: int) -> SessionMeta:
    return msgspec.structs.replace(META, last_seq=last_seq, floor=last_seq)


@pytest.fixture
def path(site):
    return site.sessions / ID


@pytest.fixture
def folder(site):
    """An open session with events 1 to 5 in a first segment and 6 to 8 in a second."""
    made = create_session(site, ID, 7, META)
    made.logs["buffer"].append(events(1, 5))
    made.close(META)
    again, _ = open_session(site, ID)
    again.logs["buffer"].append(events(6, 8))
    yield again
    again.release()


def reopened(site, folder):
    folder.release()
    again, answer = open_session(site, ID)
    again.release()
    return answer


def test_the_remaining_lines_stay_byte_for_byte_behind_the_header_of_their_segment(folder, path):
    before = (path / "buffer.jsonl").read_bytes().splitlines()
    folder.compact(4, META)
    assert (path / "buffer.jsonl").read_bytes().splitlines() == [before[0], *before[4:]]
    folder.compact(6, META)
    assert (path / "buffer.jsonl").read_bytes().splitlines() == before[6:]
    folder.compact(8, META)
    assert (path / "buffer.jsonl").read_bytes().splitlines() == [before[6], before[9]]
    assert sorted(each.name for each in path.iterdir()) == ["buffer.jsonl", "meta.json"]


@pytest.mark.parametrize("first_n", range(1, 9))
def test_wherever_the_log_is_cut_it_goes_on_and_opens_again(site, folder, first_n):
    folder.compact(first_n, with_seq(8))
    log = folder.logs["buffer"]
    log.append(events(9, 10))
    assert log.read_events(0, 10**6) == [(n, event(n).value) for n in range(first_n, 11)]
    answer = reopened(site, folder)
    assert answer.records == tuple(events(first_n, 10))
    assert (answer.next_n, answer.ends, answer.corrupt_epoch) == (11, ((7, 5), (1_000_000, 10)), 0)


def test_no_text_is_sealed_again_so_the_segment_goes_on_under_its_key(folder, path):
    folder.compact(7, META)
    folder.logs["buffer"].append(events(9, 9))
    assert (path / "buffer.jsonl").read_bytes().count(b'"salt"') == 1


@pytest.mark.parametrize("first_n", [0, 9, 100])
def test_a_record_that_the_log_does_not_hold_is_refused_before_anything_is_written(folder, disk, first_n):
    disk.calls.clear()
    with pytest.raises(StorageError, match="cannot begin there"):
        folder.compact(first_n, META)
    assert disk.calls == []


def test_a_record_that_was_dropped_is_refused(folder):
    folder.compact(4, META)
    with pytest.raises(StorageError, match="record 3 is not in the log"):
        folder.compact(3, META)


def test_meta_speaks_of_nothing_that_is_not_durable(folder, disk):
    """A meta with a last seq that a power loss takes from the log would hide the loss from clients."""
    disk.calls.clear()
    folder.compact(8, with_seq(8))
    syncs = [number for number, call in enumerate(disk.calls) if call == "sync"]
    assert syncs[0] < disk.calls.index("replace")
    assert disk.calls.count("replace") == 2


def test_a_crash_after_meta_leaves_dropped_lines_that_are_ignored(site, folder, disk):
    folder.logs["buffer"].drop_below(4)
    folder.keep(with_seq(8))
    answer = reopened(site, folder)
    assert (answer.records, answer.next_n, answer.corrupt_epoch) == (tuple(events(4, 8)), 9, 0)


def test_an_old_meta_beside_a_compacted_log_is_noticed(site, folder, path):
    """What was dropped cannot be proved to have been acknowledged."""
    old = (path / "meta.json").read_bytes()
    folder.compact(4, META)
    (path / "meta.json").write_bytes(old)
    answer = reopened(site, folder)
    assert (answer.records, answer.corrupt_epoch) == ((), answer.epoch)
    assert (path / "buffer.corrupt").exists()


def test_lines_taken_from_the_front_of_a_log_are_noticed(site, folder, path):
    folder.compact(3, META)
    header, _, *rest = (path / "buffer.jsonl").read_bytes().splitlines(keepends=True)
    (path / "buffer.jsonl").write_bytes(b"".join([header, *rest]))
    answer = reopened(site, folder)
    assert (answer.records, answer.corrupt_epoch) == ((), answer.epoch)


@pytest.mark.parametrize("faults", [{"write": [0, errno.ENOSPC]}, {"write": [0, -20]}, {"sync": [0, 0, errno.EIO]}])
def test_without_room_for_the_copy_the_log_stays_as_it_is_and_goes_on(site, folder, path, disk, faults):
    before = (path / "buffer.jsonl").read_bytes()
    disk.faults.update(faults)
    folder.compact(4, with_seq(8))
    assert not any(disk.faults.values())
    assert (path / "buffer.jsonl").read_bytes() == before
    log = folder.logs["buffer"]
    log.append(events(9, 9))
    assert log.read_events(0, 10**6) == [(n, event(n).value) for n in range(4, 10)]
    assert not (path / "buffer.jsonl.new").exists()
    folder.compact(5, with_seq(9))
    assert len((path / "buffer.jsonl").read_bytes()) < len(before)
    assert reopened(site, folder).records == tuple(events(5, 9))


@pytest.mark.parametrize(
    "faults",
    [
        {"sync": [errno.EIO]},
        {"write": [errno.ENOSPC]},
        {"replace": [errno.EIO]},
        {"replace": [0, errno.EIO]},
        {"sync_folder": [errno.EIO]},
        {"sync_folder": [0, errno.EIO]},
        {"read": [errno.EIO]},
    ],
)
def test_any_other_fault_is_an_error_and_the_log_opens_again_as_it_was_or_cut(site, folder, disk, faults):
    disk.faults.update(faults)
    with pytest.raises(OSError, match=r"Input/output|No space"):
        folder.compact(4, with_seq(8))
    disk.faults.clear()
    answer = reopened(site, folder)
    assert answer.records in (tuple(events(1, 8)), tuple(events(4, 8)))
    assert (answer.next_n, answer.corrupt_epoch, answer.ends) == (9, 0, ((7, 5), (1_000_000, 8)))


def test_a_log_damaged_while_open_is_not_compacted(folder, path):
    data = bytearray((path / "buffer.jsonl").read_bytes())
    data[data.index(b'{"n":4,') + 20] ^= 1
    (path / "buffer.jsonl").write_bytes(data)
    with pytest.raises(StorageError, match="damaged while it was open"):
        folder.compact(4, META)
    assert (path / "buffer.jsonl").read_bytes() == data


@pytest.mark.parametrize("name", ["buffer.jsonl.new", "conversation.jsonl.new", "meta.json.new"])
def test_a_draft_that_a_crash_left_is_removed_at_the_next_opening(site, folder, path, name):
    (path / name).write_bytes(b"half a line")
    assert reopened(site, folder).records == tuple(events(1, 8))
    assert not (path / name).exists()


def test_a_failed_sync_before_meta_is_final(folder, disk):
    disk.faults["sync"] = [errno.EIO]
    disk.calls.clear()
    with pytest.raises(OSError, match="Input/output"):
        folder.keep(META)
    assert "write" not in disk.calls
    assert disk.calls.count("sync") == 1

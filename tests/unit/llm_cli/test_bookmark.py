"""Bookmarks: what of a session was shown, on disk."""

import os
import stat

import pytest

from llm_cli.bookmark import MOST_SESSIONS, RECORD_BYTES, Bookmarks, Record

ONE = "00000000-0000-4000-8000-000000000001"
TWO = "00000000-0000-4000-8000-000000000002"


def record(session_id: str, **changes) -> Record:
    return Record(session_id=session_id, url="ws://h", **changes)


@pytest.fixture
def bookmarks(tmp_path):
    return Bookmarks(tmp_path / "sessions")


def test_what_was_saved_last_is_read(bookmarks):
    bookmark = bookmarks.open(ONE)
    bookmark.save(record(ONE, epoch=1, last_seq=10**15, chars=99999, fence="```"))
    bookmark.save(record(ONE, epoch=1, last_seq=2))
    bookmark.close()
    assert bookmarks.read(ONE) == record(ONE, epoch=1, last_seq=2)


def test_an_unknown_session_has_none(bookmarks):
    assert bookmarks.read(ONE) is None
    assert bookmarks.last_used() is None


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b'{"session_id":"x","url":""}'])
def test_a_damaged_file_is_none(bookmarks, tmp_path, content):
    bookmarks.open(ONE).close()
    (tmp_path / "sessions" / f"{ONE}.json").write_bytes(content)
    assert bookmarks.read(ONE) is None


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "x", "/etc/passwd"])
def test_only_a_uuid_becomes_a_files_name(bookmarks, name):
    with pytest.raises(ValueError, match="UUID"):
        bookmarks.open(name)
    assert bookmarks.read(name) is None


def test_files_are_their_owners_alone_and_of_one_size(bookmarks, tmp_path):
    bookmark = bookmarks.open(ONE)
    bookmark.save(record(ONE))
    bookmark.close()
    (path,) = (tmp_path / "sessions").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert path.stat().st_size == RECORD_BYTES


def test_the_session_used_last_is_found(bookmarks, tmp_path):
    for age_s, session_id in ((5, ONE), (9, TWO)):
        bookmarks.open(session_id).close()
        os.utime(tmp_path / "sessions" / f"{session_id}.json", (1_000_000 - age_s, 1_000_000 - age_s))
    assert bookmarks.last_used() == ONE


def test_the_oldest_are_forgotten(bookmarks, tmp_path):
    folder = tmp_path / "sessions"
    folder.mkdir()
    for n in range(MOST_SESSIONS + 5):
        path = folder / f"{n}.json"
        path.touch()
        os.utime(path, (n, n))
    bookmarks.open(ONE).close()
    kept = {path.stem for path in folder.iterdir()}
    assert len(kept) == MOST_SESSIONS
    assert ONE in kept
    assert "5" not in kept


def test_the_bookmark_of_an_open_session_is_not_forgotten(bookmarks, tmp_path):
    bookmark = bookmarks.open(ONE)
    os.utime(tmp_path / "sessions" / f"{ONE}.json", (0, 0))
    for n in range(MOST_SESSIONS):
        (tmp_path / "sessions" / f"{n}.json").touch()
    bookmarks.open(TWO).close()
    bookmark.save(record(ONE, last_seq=7))
    assert bookmarks.read(ONE) == record(ONE, last_seq=7)


def test_the_bookmark_of_a_deleted_session_is_gone(bookmarks):
    bookmarks.open(ONE).close()
    bookmarks.delete(ONE)
    bookmarks.delete(ONE)
    bookmarks.delete("../x")
    assert bookmarks.last_used() is None


def test_a_record_after_a_longer_one_is_read(bookmarks):
    bookmark = bookmarks.open(ONE)
    bookmark.save(Record(session_id=ONE, url="ws://h/" + "x" * RECORD_BYTES))
    bookmark.save(record(ONE, last_seq=2))
    assert bookmarks.read(ONE) == record(ONE, last_seq=2)

"""The engine waits while much is appended and not written."""

from llmws.runtime.backlog import MAX_AGE_S, MAX_BYTES, Backlog
from llmws.store_api import Append, Failed, Flushed, LogName, Record


def append(n: int, size: int, *, session_id: str = "s", log: LogName = "buffer") -> Append:
    record = Record(n=n, kind="event", value=b"x" * size, seq=n)
    return Append(session_id=session_id, log=log, records=(record,), sync=False)


def flushed(n: int, *, session_id: str = "s", log: LogName = "buffer") -> Flushed:
    return Flushed(session_id=session_id, log=log, written=n, durable=0)


def test_it_is_full_above_the_bound_until_enough_is_written():
    backlog = Backlog(lambda: 0.0)
    backlog.appended(append(1, MAX_BYTES))
    assert not backlog.is_full
    backlog.appended(append(2, 1))
    assert backlog.is_full
    backlog.answered(flushed(1))
    assert not backlog.is_full


def test_each_log_has_numbers_of_its_own():
    backlog = Backlog(lambda: 0.0)
    backlog.appended(append(1, MAX_BYTES))
    backlog.appended(append(1, MAX_BYTES, log="conversation"))
    backlog.appended(append(1, MAX_BYTES, session_id="t"))
    backlog.answered(flushed(1))
    backlog.answered(flushed(1, session_id="t"))
    assert not backlog.is_full


def test_what_failed_counts_no_more():
    backlog = Backlog(lambda: 0.0)
    backlog.appended(append(1, 2 * MAX_BYTES))
    backlog.answered(Failed(session_id="s", message="disk full"))
    assert not backlog.is_full


def test_it_is_full_while_anything_waits_for_too_long():
    now_s = 0.0
    backlog = Backlog(lambda: now_s)
    backlog.appended(append(1, 1))
    now_s = MAX_AGE_S
    backlog.appended(append(1, 1, session_id="t"))
    assert not backlog.is_full
    now_s = MAX_AGE_S + 0.001
    assert backlog.is_full
    backlog.answered(flushed(1))
    assert not backlog.is_full


def test_the_oldest_that_waits_counts_whoever_was_written_before_it():
    now_s = 0.0
    backlog = Backlog(lambda: now_s)
    for session_id in ("s", "t"):
        backlog.appended(append(1, 1, session_id=session_id))
    now_s = 1.0
    backlog.appended(append(2, 1))
    backlog.answered(flushed(2))
    assert backlog.is_full
    backlog.answered(Failed(session_id="t", message="disk full"))
    assert not backlog.is_full

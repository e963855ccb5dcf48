"""The engine waits while much is appended and not written."""

from llmws.runtime.backlog import MAX_BYTES, Backlog
from llmws.store_api import Append, Failed, Flushed, LogName, Record


def append(n: int, size: int, *, session_id: str = "s", log: LogName = "buffer") -> Append:
    record = Record(n=n, kind="event", value=b"x" * size, seq=n)
    return Append(session_id=session_id, log=log, records=(record,), sync=False)


def flushed(n: int, *, session_id: str = "s", log: LogName = "buffer") -> Flushed:
    return Flushed(session_id=session_id, log=log, written=n, durable=0)


def test_it_is_full_above_the_bound_until_enough_is_written():
    backlog = Backlog()
    backlog.appended(append(1, MAX_BYTES))
    assert not backlog.is_full
    backlog.appended(append(2, 1))
    assert backlog.is_full
    backlog.answered(flushed(1))
    assert not backlog.is_full


def test_each_log_has_numbers_of_its_own():
    backlog = Backlog()
    backlog.appended(append(1, MAX_BYTES))
    backlog.appended(append(1, MAX_BYTES, log="conversation"))
    backlog.appended(append(1, MAX_BYTES, session_id="t"))
    backlog.answered(flushed(1))
    backlog.answered(flushed(1, session_id="t"))
    assert not backlog.is_full


def test_what_failed_counts_no_more():
    backlog = Backlog()
    backlog.appended(append(1, 2 * MAX_BYTES))
    backlog.answered(Failed(session_id="s", message="disk full"))
    assert not backlog.is_full

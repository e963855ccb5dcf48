"""Which records have settled, and which events may therefore be sent."""

from llmws.protocol import messages as m
from llmws.session.journal import EventLog, Journal
from llmws.session.rules import Rules


def log() -> EventLog:
    return EventLog("s", epoch=5, rules=Rules())


def notice(text: str) -> m.Log:
    return m.Log(code="x", message=text)


def test_records_of_one_turn_leave_as_one_append_with_consecutive_numbers():
    journal = Journal("s", "buffer", next_n=7)
    journal.add("ack", b"{}", sync=False)
    journal.add("request", b"{}", sync=True)
    append = journal.take()
    assert append is not None
    assert ([record.n for record in append.records], append.sync) == ([7, 8], True)
    assert journal.take() is None


def test_nothing_is_sendable_before_it_is_written():
    events = log()
    events.emit(notice("one"))
    assert events.sendable == 0
    events.flushed(written=1, durable=0)
    assert events.sendable == 1


def test_a_synced_record_holds_back_itself_and_everything_behind_it():
    events = log()
    events.emit(notice("one"))
    events.emit(notice("end"), sync=True)
    events.emit(notice("next"))
    events.flushed(written=3, durable=0)
    assert events.sendable == 1
    events.flushed(written=3, durable=2)
    assert events.sendable == 3


def test_a_record_that_is_no_event_holds_back_the_events_behind_it():
    events = log()
    events.journal.add("request", b"{}", sync=True)
    events.emit(notice("start"))
    events.flushed(written=2, durable=0)
    assert events.sendable == 0
    events.flushed(written=2, durable=1)
    assert events.sendable == 1


def test_reports_that_come_late_move_nothing_back():
    events = log()
    events.emit(notice("one"), sync=True)
    events.flushed(written=1, durable=1)
    events.flushed(written=1, durable=0)
    assert (events.sendable, events.journal.is_settled) == (1, True)


def test_the_frame_in_memory_is_the_one_that_was_logged():
    events = log()
    events.emit(notice("one"))
    append = events.journal.take()
    assert append is not None
    assert events.frame(1) == append.records[0].value
    assert append.records[0].value == b'{"type":"log","seq":1,"epoch":5,"code":"x","message":"one"}'


def test_trimming_forgets_the_oldest_and_never_what_is_not_sendable():
    events = log()
    for text in ("one", "two", "three"):
        events.emit(notice(text))
    events.flushed(written=2, durable=0)
    events.trim(keep_bytes=0)
    assert [events.frame(seq) is not None for seq in (1, 2, 3)] == [False, False, True]

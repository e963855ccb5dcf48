"""The contract of `SessionStore`, held by the store on disk and by the one in memory."""

import msgspec
import pytest

from llmws.store_api import (
    Append,
    Close,
    Compact,
    Compacted,
    Create,
    Created,
    Delete,
    Deleted,
    DropBuffer,
    Dropped,
    Failed,
    Finished,
    Flushed,
    Keep,
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


def event(n: int, seq: int | None = None) -> Record:
    seq = n if seq is None else seq
    return Record(n=n, kind="event", value=b'{"type":"token","seq":%d,"data":"x"}' % seq, seq=seq)


def append(*numbers: int, sync: bool = False, session_id: str = ID) -> Append:
    return Append(session_id=session_id, log="buffer", records=tuple(event(n) for n in numbers), sync=sync)


def create(session_id: str = ID, epoch: int = 7) -> Create:
    return Create(session_id=session_id, epoch=epoch, meta=META)


def meta(last_seq: int) -> SessionMeta:
    return msgspec.structs.replace(META, last_seq=last_seq, floor=last_seq)


def read(after_seq: int, limit_bytes: int = 10_000) -> Read:
    return Read(session_id=ID, ticket=3, after_seq=after_seq, limit_bytes=limit_bytes)


def test_a_new_session_is_created_with_a_ledger_key_of_32_bytes(world):
    created = world.start().ask(create(), Created)
    assert (created.session_id, len(created.ledger_key)) == (ID, 32)


def test_appends_are_flushed_in_order(world):
    client = world.start()
    client.ask(create(), Created)
    client.submit(append(1, 2), append(3), append(4))
    written = []
    while not written or written[-1] < 4:
        written.append(client.wait(Flushed).written)
    assert written == sorted(set(written))


def test_durable_follows_once_a_sync_was_asked_for(world):
    client = world.start()
    client.ask(create(), Created)
    client.submit(append(1), append(2, sync=True))
    flushed = client.wait(Flushed, lambda answer: answer.durable >= 2)
    assert (flushed.session_id, flushed.log, flushed.written, flushed.durable) == (ID, "buffer", 2, 2)


def test_the_two_logs_have_numbers_of_their_own(world):
    client = world.start()
    client.ask(create(), Created)
    message = Record(n=1, kind="message", value=b'{"role":"user"}')
    client.submit(append(1, 2), Append(session_id=ID, log="conversation", records=(message,), sync=True))
    client.wait(Flushed, lambda answer: answer.log == "conversation" and answer.durable == 1)
    world.crash()
    opened = world.start().ask(Open(session_id=ID), Opened)
    assert (opened.records, opened.next_n) == ((event(1), event(2)), 3)
    assert (opened.conversation, opened.next_conversation_n) == ((message,), 2)


def test_a_read_sees_every_append_before_it(world):
    client = world.start()
    client.ask(create(), Created)
    client.submit(append(1, 2, 3), read(after_seq=1))
    result = client.wait(ReadResult)
    assert (result.ticket, result.events) == (3, ((2, event(2).value), (3, event(3).value)))


def test_a_read_stops_at_its_limit_but_gives_at_least_one(world):
    client = world.start()
    client.ask(create(), Created)
    client.submit(append(*range(1, 101)))
    assert [seq for seq, _ in client.ask(read(10, limit_bytes=1), ReadResult).events] == [11]
    size = len(event(11).value)
    assert [seq for seq, _ in client.ask(read(10, limit_bytes=3 * size), ReadResult).events] == [11, 12, 13]
    assert client.ask(read(100), ReadResult).events == ()


def test_only_events_are_read(world):
    client = world.start()
    client.ask(create(), Created)
    records = (Record(n=1, kind="request", value=b'{"seq":1}'), event(2, seq=1), Record(n=3, kind="ack", value=b"{}"))
    client.submit(Append(session_id=ID, log="buffer", records=records, sync=False))
    assert client.ask(read(0), ReadResult).events == ((1, event(2, seq=1).value),)


def test_a_killed_process_loses_nothing_that_was_flushed(world):
    client = world.start()
    key = client.ask(create(), Created).ledger_key
    client.ask(append(1, 2, 3), Flushed)
    world.crash()
    opened = world.start().ask(Open(session_id=ID), Opened)
    assert opened == Opened(
        session_id=ID,
        epoch=1_000_000,
        ends=((7, 3),),
        next_n=4,
        records=(event(1), event(2), event(3)),
        conversation=(),
        next_conversation_n=1,
        meta=META,
        corrupt_epoch=0,
        ledger_key=key,
    )


def test_every_opening_has_a_higher_epoch_and_tells_where_the_others_ended(world):
    client = world.start()
    client.ask(create(), Created)
    client.submit(append(1, 2), Close(session_id=ID, meta=meta(2)))
    first = client.ask(Open(session_id=ID), Opened)
    client.submit(append(3), Close(session_id=ID, meta=meta(3)))
    second = client.ask(Open(session_id=ID), Opened)
    assert 7 < first.epoch < second.epoch
    assert (first.ends, second.ends) == (((7, 2),), ((7, 2), (first.epoch, 3)))


def test_an_epoch_rises_even_if_the_clock_does_not(world):
    client = world.start()
    client.ask(create(epoch=2_000_000), Created)
    client.submit(Close(session_id=ID, meta=META))
    assert client.ask(Open(session_id=ID), Opened).epoch == 2_000_001


def test_the_meta_of_the_last_close_comes_back(world):
    client = world.start()
    client.ask(create(), Created)
    kept = msgspec.structs.replace(
        meta(2), finished=(Finished(id_mac=b"\x00\xff" * 16, body_mac=b"b" * 32, terminal="done"),)
    )
    client.submit(append(1, 2), Close(session_id=ID, meta=kept))
    assert client.ask(Open(session_id=ID), Opened).meta == kept


def test_a_dropped_buffer_is_gone_and_numbers_run_on_in_the_same_epoch(world):
    client = world.start()
    client.ask(create(), Created)
    client.submit(append(1, 2), DropBuffer(session_id=ID, meta=meta(2)), read(0))
    client.wait(Dropped)
    assert client.wait(ReadResult).events == ()
    client.submit(append(3), read(0))
    assert client.wait(ReadResult).events == ((3, event(3).value),)
    world.crash()
    opened = world.start().ask(Open(session_id=ID), Opened)
    assert (opened.records, opened.next_n, opened.ends, opened.meta) == ((event(3),), 4, ((7, 3),), meta(2))


def compact(first_n: int, last_seq: int = 0) -> Compact:
    return Compact(session_id=ID, first_n=first_n, meta=meta(last_seq))


def test_a_compacted_buffer_begins_with_the_record_named_and_goes_on_in_the_same_epoch(world):
    client = world.start()
    client.ask(create(), Created)
    client.submit(append(1, 2, 3, 4), compact(3, last_seq=4), append(5), read(0), read(3))
    compacted = client.wait(Compacted)
    assert (compacted.session_id, compacted.first_n) == (ID, 3)
    assert client.wait(ReadResult).events == tuple((n, event(n).value) for n in (3, 4, 5))
    assert client.wait(ReadResult).events == tuple((n, event(n).value) for n in (4, 5))
    world.crash()
    opened = world.start().ask(Open(session_id=ID), Opened)
    assert (opened.records, opened.next_n) == ((event(3), event(4), event(5)), 6)
    assert (opened.ends, opened.corrupt_epoch, opened.meta) == (((7, 5),), 0, meta(4))


def test_a_buffer_may_be_compacted_again_and_down_to_its_newest_record(world):
    client = world.start()
    client.ask(create(), Created)
    client.submit(append(*range(1, 11)), compact(4), compact(4), compact(10), append(11), compact(11), read(0))
    assert client.wait(ReadResult).events == ((11, event(11).value),)
    assert [answer.first_n for answer in client.passed if isinstance(answer, Compacted)] == [4, 4, 10, 11]


@pytest.mark.parametrize("first_n", [1, 5, 100])
def test_a_log_cannot_begin_with_a_record_that_it_does_not_hold(world, first_n):
    client = world.start()
    client.ask(create(), Created)
    client.submit(append(1, 2, 3, 4), compact(3))
    client.wait(Compacted)
    assert "cannot begin there" in client.ask(compact(first_n), Failed).message
    assert client.ask(Open(session_id=ID), Opened).records == (event(3), event(4))


def test_an_empty_log_cannot_be_compacted(world):
    client = world.start()
    client.ask(create(), Created)
    assert "cannot begin there" in client.ask(compact(1), Failed).message


def test_events_are_found_anywhere_after_a_compaction(world):
    """Enough of them for several marks of an index, which all have moved."""
    client = world.start()
    client.ask(create(), Created)
    client.submit(append(*range(1, 3001)), compact(1234), append(*range(3001, 5001)))
    for after in (0, 1232, 1233, 1234, 1500, 2999, 3000, 4998):
        first = max(after + 1, 1234)
        assert client.ask(read(after, limit_bytes=1), ReadResult).events == ((first, event(first).value),)
    assert len(client.ask(read(0, limit_bytes=10**9), ReadResult).events) == 5000 - 1233


def test_what_is_kept_comes_back_after_a_kill(world):
    client = world.start()
    client.ask(create(), Created)
    kept = msgspec.structs.replace(meta(1), title="Übung", messages=3, idle_since_s=12.5, archived=True)
    client.submit(append(1), Keep(session_id=ID, meta=kept), read(0))
    client.wait(ReadResult)
    world.crash()
    opened = world.start().ask(Open(session_id=ID), Opened)
    assert (opened.meta, opened.records) == (kept, (event(1),))


def survey(client) -> dict[str, SessionMeta]:
    client.store.survey()
    found: list[tuple[str, SessionMeta]] = []
    while True:
        surveyed = client.wait(Surveyed)
        found.extend(surveyed.sessions)
        if surveyed.is_last:
            assert len(dict(found)) == len(found)
            return dict(found)


def test_a_survey_of_nothing_is_answered_too(world):
    assert survey(world.start()) == {}


def test_a_survey_tells_of_all_sessions_open_or_not_but_not_what_they_finished(world):
    client = world.start()
    for session_id in (ID, OTHER):
        client.ask(create(session_id), Created)
    finished = (Finished(id_mac=b"i" * 32, body_mac=b"b" * 32, terminal="done"),)
    kept = msgspec.structs.replace(meta(1), title="t", finished=finished)
    client.submit(append(1), Keep(session_id=ID, meta=kept), Close(session_id=OTHER, meta=META), read(0))
    client.wait(ReadResult)
    client.ask(Open(session_id="00000000-0000-4000-8000-00000000000f"), Unknown)
    client.submit(Open(session_id=OTHER))
    client.wait(Opened)
    assert survey(client) == {ID: msgspec.structs.replace(kept, finished=()), OTHER: META}
    client.ask(append(2), Flushed)
    client.ask(Delete(session_id=OTHER), Deleted)
    assert list(survey(client)) == [ID]


def test_a_session_deleted_without_a_tombstone_leaves_nothing_not_even_its_id(world):
    client = world.start()
    client.ask(create(), Created)
    client.submit(append(1), Delete(session_id=ID, keep_tombstone=False), Open(session_id=ID), create(), read(0))
    client.wait(Unknown)
    assert client.wait(ReadResult).events == ()
    assert [type(answer) for answer in client.passed] == [Created]


def test_only_sessions_with_a_buffer_are_unfinished_newest_first(world):
    client = world.start()
    for session_id in (ID, OTHER):
        client.ask(create(session_id), Created)
    assert client.store.unfinished() == []
    client.ask(append(1, session_id=ID), Flushed)
    client.ask(append(1, session_id=OTHER), Flushed)
    assert set(client.store.unfinished()) == {ID, OTHER}
    client.ask(DropBuffer(session_id=ID, meta=meta(1)), Dropped)
    assert client.store.unfinished() == [OTHER]


def test_a_session_that_was_never_made_is_unknown(world):
    assert world.start().ask(Open(session_id=ID), Unknown).session_id == ID


@pytest.mark.parametrize("text", ["", "..", "../" + ID, ID.upper(), ID + "/", "é"])
def test_any_other_text_than_a_canonical_uuid4_is_unknown_and_cannot_be_created(world, text):
    client = world.start()
    assert client.ask(Open(session_id=text), Unknown).session_id == text
    assert "UUIDv4" in client.ask(create(text), Failed).message


def test_a_deleted_session_is_unknown_for_ever(world):
    client = world.start()
    client.ask(create(), Created)
    client.submit(append(1), Delete(session_id=ID))
    client.ask(Open(session_id=ID), Unknown)
    assert "used before" in client.ask(create(), Failed).message
    world.crash()
    client = world.start()
    assert client.store.unfinished() == []
    client.ask(Open(session_id=ID), Unknown)


def test_sessions_do_not_see_each_other(world):
    client = world.start()
    keys = {client.ask(create(session_id), Created).ledger_key for session_id in (ID, OTHER)}
    assert len(keys) == 2
    client.ask(append(1, 2, session_id=OTHER), Flushed)
    assert client.ask(read(0), ReadResult).events == ()


def test_what_comes_for_a_session_that_is_not_open_fails_once(world):
    """What was under way when a session failed is void; one `Failed` says so."""
    client = world.start()
    client.submit(append(1), append(2), read(0), append(3), create())
    client.wait(Created)
    assert [type(answer) for answer in client.passed] == [Failed]
    client.ask(append(1), Flushed)


def test_records_out_of_number_fail_the_session_and_it_can_be_opened_again(world):
    client = world.start()
    client.ask(create(), Created)
    client.ask(append(1), Flushed)
    assert "cannot follow" in client.ask(append(3), Failed).message
    opened = client.ask(Open(session_id=ID), Opened)
    assert (opened.records, opened.ends) == ((event(1),), ((7, 1),))


def test_opening_an_open_session_fails_it(world):
    client = world.start()
    client.ask(create(), Created)
    assert "open already" in client.ask(Open(session_id=ID), Failed).message


def test_notify_comes_once_until_the_answers_are_taken(world):
    client = world.start()
    client.submit(create(), *(append(n) for n in range(1, 51)), read(49))
    client.store.close()
    assert client.notified == 1
    assert client.wait(ReadResult).events == ((50, event(50).value),)


def test_close_carries_out_everything_that_was_queued(world):
    client = world.start()
    client.submit(create(), append(1, 2, 3), append(4, sync=True))
    client.store.close()
    opened = world.start().ask(Open(session_id=ID), Opened)
    assert [record.n for record in opened.records] == [1, 2, 3, 4]

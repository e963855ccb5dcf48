"""What is recovered from damaged logs: named after the damage."""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmws.store.meta import LogState
from llmws.store.record import LogKeys, Segment, SegmentCipher
from llmws.store.recovery import EventIndex, recover
from llmws.store_api import Record

SESSION = uuid.UUID("6f1c2d3e-4a5b-4c6d-8e7f-901122334455").bytes
KEYS = LogKeys(SESSION, "buffer", {1: b"k" * 32}.get)
NEW = LogState(first_n=1, segments=())


def segment(epoch: int, base: int, salt: int = 0) -> SegmentCipher:
    made = KEYS.cipher(Segment(kid=1, epoch=epoch, base=base, salt=bytes([epoch, base, salt]) + bytes(29), end=base))
    assert made is not None
    return made


def event(n: int, text: str = "x") -> Record:
    return Record(n=n, kind="event", value=b'{"seq":%d,"data":"%b"}' % (n * 10, text.encode()), seq=n * 10)


def lines(cipher: SegmentCipher, *numbers: int) -> list[bytes]:
    return [cipher.header, *(cipher.seal(event(n)) for n in numbers)]


FIRST, SECOND = segment(1, 0), segment(2, 3)
LOG = [*lines(FIRST, 1, 2, 3), *lines(SECOND, 4, 5)]
"""Header, 1, 2, 3, header, 4, 5."""


def found(data: bytes, state: LogState = NEW) -> tuple[list[int], bool]:
    """The numbers of the recovered records, and whether the log is corrupt."""
    result = recover(data, keys=KEYS, state=state)
    assert all(record == event(record.n) for record in result.records)
    return [record.n for record in result.records], result.corrupt


def test_a_whole_log_comes_back_with_its_segments_and_epochs():
    result = recover(b"".join(LOG), keys=KEYS, state=NEW)
    assert result.records == tuple(event(n) for n in range(1, 6))
    assert [(cipher.header, end) for cipher, end in result.ciphers] == [(FIRST.header, 3), (SECOND.header, 5)]
    assert result.ends == ((1, 30), (2, 50))
    assert (result.last_n, result.good_bytes, result.corrupt) == (5, len(b"".join(LOG)), False)


def test_a_log_torn_at_any_byte_of_its_last_line_keeps_all_lines_before():
    whole = b"".join(LOG)
    for size in range(len(whole) - len(LOG[-1]), len(whole)):
        result = recover(whole[:size], keys=KEYS, state=NEW)
        assert ([record.n for record in result.records], result.corrupt) == ([1, 2, 3, 4], False)
        assert result.good_bytes == len(whole) - len(LOG[-1])


def test_a_header_without_a_record_is_part_of_the_torn_end():
    result = recover(b"".join(LOG[:5]), keys=KEYS, state=NEW)
    assert (result.last_n, result.good_bytes, result.corrupt) == (3, len(b"".join(LOG[:4])), False)


def test_every_single_flipped_bit_is_noticed():
    """What comes back is a true prefix; short only where the flip hit, and corrupt unless that was at the end."""
    data = bytearray(b"".join(LOG))
    ends = [sum(map(len, LOG[: i + 1])) for i in range(len(LOG))]
    before = {0: [], 1: [], 2: [1], 3: [1, 2], 4: [1, 2, 3], 5: [1, 2, 3], 6: [1, 2, 3, 4]}
    known = LogState(first_n=1, segments=(FIRST.segment, SECOND.segment))
    for position in range(len(data)):
        hit = next(i for i, end in enumerate(ends) if position < end)
        for bit in range(8):
            data[position] ^= 1 << bit
            # Without its line feed, a line and the next are one bad line: nothing authentic follows the last but one.
            joined = position == ends[hit] - 1
            assert found(bytes(data), known) == (before[hit], hit + joined < 6), (position, bit)
            data[position] ^= 1 << bit


def test_every_single_flipped_bit_of_a_compacted_log_is_noticed():
    """Records 2 and 3 behind their header, then the second segment."""
    compacted = [LOG[0], *LOG[2:]]
    data = bytearray(b"".join(compacted))
    known = LogState(first_n=2, segments=(FIRST.segment, SECOND.segment))
    assert found(bytes(data), known) == ([2, 3, 4, 5], False)
    last_line = len(data) - len(compacted[-1])
    for position in range(len(data)):
        for bit in range(8):
            data[position] ^= 1 << bit
            numbers, is_corrupt = found(bytes(data), known)
            assert numbers == [2, 3, 4, 5][: len(numbers)]
            # Without the line feed before it, the last line and the one above are one bad line.
            assert (len(numbers) < 4, is_corrupt) == (True, position < last_line - 1), (position, bit)
            data[position] ^= 1 << bit


@pytest.mark.parametrize(
    ("order", "kept"),
    [
        ([0, 2, 1, 3, 4, 5, 6], []),
        ([0, 1, 3, 4, 5, 6], [1]),
        ([0, 1, 2, 2, 3], [1, 2]),
        ([4, 5, 6], []),
        ([0, 1, 2, 3, 5, 6], [1, 2, 3]),
        ([0, 1, 2, 3, 4, 4, 5, 6], [1, 2, 3]),
        ([4, 5, 6, 0, 1, 2, 3], []),
        ([0, 1, 2, 3, 0, 1, 2, 3], [1, 2, 3]),
    ],
    ids=[
        "swapped",
        "one removed",
        "one repeated",
        "first segment removed",
        "header removed",
        "header repeated",
        "segments swapped",
        "twice",
    ],
)
def test_lines_in_another_order_are_corrupt(order, kept):
    known = LogState(first_n=1, segments=(FIRST.segment, SECOND.segment))
    assert found(b"".join(LOG[i] for i in order), known) == (kept, True)


def test_a_line_spliced_in_from_another_branch_is_corrupt():
    """The same numbers, sealed in a segment that was given up after a failed write."""
    given_up = segment(1, 3, salt=9)
    data = b"".join([*LOG[:4], given_up.seal(event(4)), *LOG[4:]])
    assert found(data) == ([1, 2, 3], True)


def test_a_whole_segment_removed_from_the_middle_is_corrupt():
    assert found(b"".join([*LOG, *lines(segment(3, 6), 7)])) == ([1, 2, 3, 4, 5], True)


def test_an_older_epoch_after_a_newer_one_is_corrupt():
    back = segment(1, 5)
    assert found(b"".join([*LOG, *lines(back, 6)])) == ([1, 2, 3, 4, 5], True)


def test_the_conversation_log_is_no_buffer_log():
    conversation = LogKeys(SESSION, "conversation", {1: b"k" * 32}.get).cipher(FIRST.segment)
    assert conversation is not None
    copied = conversation.header + conversation.seal(Record(n=1, kind="message", value=b"{}"))
    assert found(copied) == ([], False)
    assert found(b"".join(LOG[:2]) + copied) == ([1], False)


def test_records_behind_a_damaged_header_are_recognised_by_the_segments_that_meta_lists():
    damaged = b"x" * 10 + b"".join(LOG[:4])
    assert found(damaged) == ([], False)
    assert found(damaged, LogState(first_n=1, segments=(FIRST.segment,))) == ([], True)


def test_records_below_the_first_kept_one_are_ignored():
    assert found(b"".join(LOG), LogState(first_n=3, segments=())) == ([3, 4, 5], False)


def test_a_log_of_dropped_records_only_is_an_empty_one_even_if_damaged():
    dropped = LogState(first_n=6, segments=(FIRST.segment, SECOND.segment))
    for data in (b"".join(LOG), b"".join(LOG[1:]), b"".join(LOG)[:-1]):
        result = recover(data, keys=KEYS, state=dropped)
        assert (result.records, result.last_n, result.good_bytes, result.corrupt) == ((), 5, 0, False)


def test_a_log_that_begins_above_the_first_kept_record_is_corrupt():
    assert found(b"".join(LOG[4:]), LogState(first_n=3, segments=())) == ([], True)


@pytest.mark.parametrize("first_n", [2, 3])
def test_a_compacted_log_begins_anywhere_up_to_the_first_kept_record(first_n):
    compacted = b"".join([LOG[0], *LOG[2:]])
    assert found(compacted, LogState(first_n=first_n, segments=())) == (list(range(first_n, 6)), False)


def test_a_gap_before_the_first_kept_record_is_corrupt():
    assert found(b"".join([LOG[0], *LOG[3:]]), LogState(first_n=2, segments=())) == ([], True)


def test_a_record_below_its_segment_is_corrupt():
    """Whoever has the key could seal one; `base` says that none was."""
    data = b"".join([SECOND.header, SECOND.seal(event(3)), *LOG[5:]])
    assert found(data, LogState(first_n=4, segments=())) == ([], True)


def test_records_behind_a_damaged_first_one_are_recognised_by_the_header_above():
    assert found(b"".join([LOG[0], b"x" + LOG[1], *LOG[2:4]])) == ([], True)


def test_a_master_key_that_is_gone_leaves_nothing_readable():
    result = recover(b"".join(LOG), keys=LogKeys(SESSION, "buffer", {}.get), state=NEW)
    assert (result.records, result.corrupt) == ((), False)


pieces = st.lists(
    st.one_of(st.sampled_from(LOG), st.sampled_from(LOG).map(lambda line: line[:-7]), st.binary(max_size=40))
)


@given(pieces.map(b"".join), st.integers(1, 8))
def test_no_bytes_make_recovery_raise_or_return_what_was_not_appended(data, first_n):
    numbers, _ = found(data, LogState(first_n=first_n, segments=(FIRST.segment,)))
    assert numbers == list(range(first_n, first_n + len(numbers)))


def test_the_index_finds_a_mark_at_or_before_the_event_and_close_to_it():
    index = EventIndex()
    for seq in range(1, 1001):
        index.add(seq, 100 + seq * 200, FIRST)
    for after in (0, 1, 163, 164, 165, 500, 999):
        offset, cipher = index.find(after)
        assert cipher is FIRST
        assert 0 <= 100 + (after + 1) * 200 - offset <= 32_768 + 200


def test_an_index_without_events_finds_nothing():
    assert EventIndex().find(0) is None

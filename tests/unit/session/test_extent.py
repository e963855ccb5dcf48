"""The sizes of what lies in a log, against the exact ones."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmws.session.extent import Extent

STRIDE_BYTES = 16 * 1024
SIZES = st.lists(st.integers(1, 40_000), min_size=1, max_size=200)


def filled(sizes: list[int]) -> Extent:
    """Event `seq` is record `2 * seq`."""
    extent = Extent(stride_bytes=STRIDE_BYTES)
    for seq, size in enumerate(sizes, start=1):
        extent.add_event(seq=seq, n=2 * seq, size_bytes=size)
    return extent


@given(sizes=SIZES, data=st.data())
def test_what_lies_beyond_an_event_is_never_underestimated_and_by_less_than_a_stride_overestimated(sizes, data):
    seq = data.draw(st.integers(0, len(sizes)))
    exact = sum(sizes[seq:])
    stride = max(STRIDE_BYTES, sum(sizes) >> 8) + max(sizes)
    assert exact <= filled(sizes).beyond_bytes(seq) <= exact + stride


@given(sizes=SIZES, data=st.data())
def test_a_cut_lies_beyond_neither_the_event_nor_the_record_and_splits_the_size_exactly(sizes, data):
    extent = filled(sizes)
    seq, n = data.draw(st.integers(0, len(sizes))), data.draw(st.integers(0, 2 * len(sizes)))
    mark = extent.cut(seq=seq, n=n)
    if mark is None:
        assert seq == 0 or n < 2
        return
    assert mark.seq <= seq
    assert mark.n <= n
    before = mark.event_bytes
    assert before == sum(sizes[: mark.seq - 1])
    extent.begin_at(mark.n)
    assert extent.event_bytes == sum(sizes) - before
    assert extent.cut(seq=mark.seq, n=mark.n) == mark._replace(event_bytes=0, all_bytes=0)


def test_a_log_that_was_dropped_has_no_size():
    extent = filled([10, 20])
    extent.clear()
    assert (extent.event_bytes, extent.all_bytes, extent.beyond_bytes(0)) == (0, 0, 0)
    extent.add_event(seq=3, n=6, size_bytes=5)
    assert (extent.event_bytes, extent.beyond_bytes(2)) == (5, 5)


def test_records_that_are_no_events_count_in_the_log_but_not_beyond_an_event():
    extent = filled([10, 20])
    extent.add(50_000)
    extent.add_event(seq=3, n=8, size_bytes=7)
    assert (extent.event_bytes, extent.all_bytes, extent.beyond_bytes(2)) == (37, 50_037, 7)


def test_how_exactly_sizes_are_known_does_not_suffer_from_what_was_dropped_long_ago():
    extent = Extent(stride_bytes=STRIDE_BYTES)
    n = 0
    for _ in range(65):
        for _ in range(64):
            n += 1
            extent.add_event(seq=n, n=n, size_bytes=2**20)
        mark = extent.cut(seq=n, n=n)
        assert mark is not None
        extent.begin_at(mark.n)
    assert extent.beyond_bytes(n) <= 2 * 2**20

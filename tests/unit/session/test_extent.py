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
        extent.add(seq=seq, n=2 * seq, size_bytes=size)
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
    before = extent.before_bytes(mark)
    assert before == sum(sizes[: mark.seq - 1])
    extent.begin_at(mark.n)
    assert extent.size_bytes == sum(sizes) - before


def test_a_log_that_was_dropped_has_no_size():
    extent = filled([10, 20])
    extent.clear()
    assert (extent.size_bytes, extent.beyond_bytes(0)) == (0, 0)
    extent.add(seq=3, n=6, size_bytes=5)
    assert (extent.size_bytes, extent.beyond_bytes(2), extent.beyond_bytes(3)) == (5, 5, 5)

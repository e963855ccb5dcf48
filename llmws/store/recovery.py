"""What a log file truly holds, whatever its bytes.

Pure: bytes in, findings out; the caller mends the file. Invariant: never raises on any bytes, and every record it
returns was sealed for its place, so that what it returns is a prefix of what was once appended.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Final

import msgspec

from llmws.store.meta import LogState
from llmws.store.record import HEADER_START, BadLineError, LogKeys, Segment, SegmentCipher
from llmws.store_api import Record

_STRIDE_BYTES: Final = 32_768


class EventIndex:
    """Where events lie in a log file: a mark about every 32 KiB, so that a read unseals little beyond what it wants."""

    def __init__(self) -> None:
        self._seqs: list[int] = []
        self._marks: list[tuple[int, SegmentCipher]] = []

    def add(self, seq: int, offset: int, cipher: SegmentCipher) -> None:
        """Notes the line of an event; events must come in the order of the file."""
        if not self._marks or offset - self._marks[-1][0] >= _STRIDE_BYTES:
            self._seqs.append(seq)
            self._marks.append((offset, cipher))

    def cut(self, offset: int, cipher: SegmentCipher, shift: int) -> None:
        """What lay before `offset`, where `cipher` holds, is gone; the rest moved `shift` bytes to the beginning."""
        gone = sum(mark < offset for mark, _ in self._marks)
        if gone:
            # A mark must stand before the first event that is left, wherever that is.
            gone -= 1
            self._marks[gone] = (offset, cipher)
        del self._seqs[:gone]
        self._marks = [(mark - shift, at) for mark, at in self._marks[gone:]]

    def find(self, after_seq: int) -> tuple[int, SegmentCipher] | None:
        """An offset at or before the first event beyond `after_seq`, and the cipher there; None if there is none."""
        if not self._marks:
            return None
        return self._marks[max(bisect_right(self._seqs, after_seq + 1) - 1, 0)]


class Recovered(msgspec.Struct, frozen=True, kw_only=True):
    """What `recover` found.

    Attributes:
        records: the true prefix from `first_n` on.
        ciphers: of the segments that hold a record of the file's good part, with the number of their last one there.
        ends: (epoch, newest seq up to its end) of the epochs in the prefix, oldest first.
        last_n: number of the prefix's last record; `first_n - 1` when there is none.
        good_bytes: length of the file's good part; 0 when it holds no record from `first_n` on.
        corrupt: whether an authentic record lies beyond, which no torn write explains.
        index: of the prefix.
    """

    records: tuple[Record, ...]
    ciphers: tuple[tuple[SegmentCipher, int], ...]
    ends: tuple[tuple[int, int], ...]
    last_n: int
    good_bytes: int
    corrupt: bool
    index: EventIndex


def recover(
    data: bytes,
    *,
    keys: LogKeys,
    state: LogState,
) -> Recovered:
    """Reads a log up to the first line that is incomplete, not canonical, not authentic or out of order.

    Args:
        data: the file's bytes.
        keys: of the log that the file must be.
        state: what meta knows of it. Records below its `first_n` are checked but not returned, and a log that begins
            above it is corrupt; its segments let records be recognised whose header is damaged.
    """
    records: list[Record] = []
    ciphers: dict[SegmentCipher, int] = {}
    ends: dict[int, int] = {}
    index = EventIndex()
    first_n = state.first_n
    cipher: SegmentCipher | None = None
    last_n: int | None = None
    last_seq = offset = good_bytes = 0
    for line in io.BytesIO(data):
        try:
            if line.startswith(HEADER_START):
                cipher = _following(cipher, ciphers, keys.read_header(line))
            else:
                record = _next_record(cipher, last_n, first_n, line)
                assert cipher is not None
                last_n = record.n
                good_bytes = offset + len(line)
                ciphers[cipher] = last_n
                if record.kind == "event":
                    last_seq = record.seq
                    index.add(last_seq, offset, cipher)
                ends[cipher.segment.epoch] = last_seq
                if record.n >= first_n:
                    records.append(record)
        except BadLineError:
            break
        offset += len(line)
    rest = data[offset:]
    known = [*_known(state.segments, keys), *ciphers, *([] if cipher is None else [cipher])]
    if not records:
        # Everything in it was dropped already: the file goes, and with it what is known of its inside.
        good_bytes, index = 0, EventIndex()
    return Recovered(
        records=tuple(records),
        ciphers=tuple(ciphers.items()) if records else (),
        ends=tuple(ends.items()),
        last_n=records[-1].n if records else first_n - 1,
        good_bytes=good_bytes,
        corrupt=bool(rest) and _holds_record(rest, keys, first_n, known),
        index=index,
    )


def _following(
    cipher: SegmentCipher | None, ciphers: dict[SegmentCipher, int], following: SegmentCipher
) -> SegmentCipher:
    """The segment that a header begins, if it may stand here: first, or after the last record of another segment."""
    segment = following.segment
    if cipher is not None and (ciphers.get(cipher) != segment.base or segment.epoch < cipher.segment.epoch):
        raise BadLineError
    return following


def _next_record(cipher: SegmentCipher | None, last_n: int | None, first_n: int, line: bytes) -> Record:
    """The record in a line, if it may stand here. The file's first one may be any that leaves no gap to `first_n`."""
    if cipher is None:
        raise BadLineError
    record = cipher.unseal(line)
    in_order = cipher.segment.base < record.n <= first_n if last_n is None else record.n == last_n + 1
    if not in_order:
        raise BadLineError
    return record


def _known(segments: Sequence[Segment], keys: LogKeys) -> Iterable[SegmentCipher]:
    return (cipher for segment in segments if (cipher := keys.cipher(segment)) is not None)


def _holds_record(rest: bytes, keys: LogKeys, first_n: int, ciphers: list[SegmentCipher]) -> bool:
    """Whether any line of `rest` is an authentic record of the session's log that was not dropped."""
    for line in io.BytesIO(rest):
        if line.startswith(HEADER_START):
            with suppress(BadLineError):
                ciphers.append(keys.read_header(line))
            continue
        for cipher in reversed(ciphers):
            try:
                if cipher.unseal(line).n >= first_n:
                    return True
                break
            except BadLineError:
                pass
    return False

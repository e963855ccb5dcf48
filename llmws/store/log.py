"""One log of one session as a file: appending, reading back, mending.

Knows neither `meta.json` nor the hub. Used by one thread at a time. Invariant: the file is exactly the lines that were
written whole, or the `LogFile` has raised and is not used again.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from llmws.errors import StorageError
from llmws.store.disk import Disk, write_atomically
from llmws.store.meta import MAX_SEGMENTS, LogState
from llmws.store.record import HEADER_START, SALT_BYTES, BadLineError, LogKeys, Segment, SegmentCipher
from llmws.store.recovery import EventIndex, Recovered
from llmws.store_api import Record

_CHUNK_BYTES: Final = 65_536


class SegmentSource:
    """Makes the new segments of one log in one epoch.

    Args:
        keys: of the log.
        kid: the master key for new segments.
        epoch: this opening's.
        random: gives so many random bytes, never the same again.
    """

    def __init__(self, keys: LogKeys, kid: int, epoch: int, random: Callable[[int], bytes]) -> None:
        self._keys = keys
        self._kid = kid
        self._epoch = epoch
        self._random = random

    def begin(self, base: int) -> SegmentCipher:
        """The cipher of a fresh segment after record `base`."""
        segment = Segment(kid=self._kid, epoch=self._epoch, base=base, salt=self._random(SALT_BYTES), end=base)
        cipher = self._keys.cipher(segment)
        assert cipher is not None
        return cipher


class LogFile:
    """An open log. The file itself appears with the first record.

    Args:
        disk: the disk.
        path: of the file.
        source: of new segments.
        recovered: what the file holds, in whose place new records follow.
        first_n: number of the first record that is not dropped.

    Attributes:
        first_n: see above.
        last_n: number of the newest record written.
        durable_n: number of the newest record that survives a power loss.
    """

    def __init__(self, disk: Disk, path: Path, source: SegmentSource, recovered: Recovered, first_n: int) -> None:
        self._disk = disk
        self._path = path
        self._source = source
        self._handle: int | None = None
        self._size_bytes = recovered.good_bytes
        self._index = recovered.index
        self._in_file = dict(recovered.ciphers)
        self._cipher = source.begin(recovered.last_n)
        self._name_durable = recovered.good_bytes > 0
        self.first_n = first_n
        self.last_n = self.durable_n = recovered.last_n

    def append(self, records: Sequence[Record]) -> None:
        """Writes records with one write; after a failed or short one, the same records once more in a new segment.

        Raises:
            OSError: that failed too.
            StorageError: the records do not follow on, or the file was changed by somebody else.
        """
        if any(record.n != n for n, record in enumerate(records, self.last_n + 1)):
            raise StorageError(f"{self._path.name}: record {records[0].n} cannot follow record {self.last_n}")
        lines = [self._cipher.seal(record) for record in records]
        try:
            size_bytes = self._write(lines)
        except OSError:
            self._disk.truncate(self._open(create=True), self._size_bytes)
            # These numbers are sealed already: under the same key the next text would share a nonce with this one.
            self._cipher = self._source.begin(self.last_n)
            lines = [self._cipher.seal(record) for record in records]
            size_bytes = self._write(lines)
        offset = size_bytes - sum(map(len, lines))
        for record, line in zip(records, lines, strict=True):
            if record.kind == "event":
                self._index.add(record.seq, offset, self._cipher)
            offset += len(line)
        self._size_bytes = size_bytes
        self.last_n = records[-1].n
        self._in_file[self._cipher] = self.last_n

    def sync(self) -> None:
        """Makes everything written durable. An OSError is final: the kernel may have dropped the pages that failed."""
        if self.durable_n == self.last_n:
            return
        self._disk.sync(self._open(create=False))
        if not self._name_durable:
            self._disk.sync_folder(self._path.parent)
            self._name_durable = True
        self.durable_n = self.last_n

    def read_events(self, after_seq: int, limit_bytes: int) -> list[tuple[int, bytes]]:
        """Event frames beyond `after_seq` in order, until they make up `limit_bytes`; at least one if there is one.

        Raises:
            OSError: the file cannot be read.
            StorageError: it was damaged since it was opened.
        """
        start = self._index.find(after_seq)
        if start is None:
            return []
        offset, cipher = start
        headers = {cipher.header: cipher for cipher in self._in_file}
        events: list[tuple[int, bytes]] = []
        taken_bytes = 0
        try:
            for line in self._lines(offset):
                if line.startswith(HEADER_START):
                    cipher = headers[line]
                    continue
                record = cipher.unseal(line)
                if record.kind != "event" or record.seq <= after_seq:
                    continue
                events.append((record.seq, record.value))
                taken_bytes += len(record.value)
                if taken_bytes >= limit_bytes:
                    break
        except (BadLineError, KeyError):
            raise StorageError(f"{self._path.name} was damaged while it was open") from None
        return events

    def state(self) -> LogState:
        """What meta keeps of the log. The segment that comes next is announced before its header is written."""
        segments = [_with_end(cipher.segment, min(end, self.durable_n)) for cipher, end in self._in_file.items()]
        if self._cipher not in self._in_file:
            segments.append(self._cipher.segment)
        return LogState(first_n=self.first_n, segments=tuple(segments[-MAX_SEGMENTS:]))

    def forget(self) -> None:
        """Goes on after the newest record as if the file, which the caller unlinks, were not there."""
        self.release()
        self._size_bytes = 0
        self._index = EventIndex()
        self._in_file = {}
        self._cipher = self._source.begin(self.last_n)
        self._name_durable = False
        self.first_n = self.last_n + 1
        self.durable_n = self.last_n

    def release(self) -> None:
        """Closes the file; the next use opens it again."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            # close(2) frees the handle even where it reports an error, and what matters was reported by sync.
            with suppress(OSError):
                self._disk.close(handle)

    def _write(self, lines: list[bytes]) -> int:
        """Appends the lines, behind their header where the segment is new. Returns the file's new size."""
        header = b"" if self._cipher in self._in_file else self._cipher.header
        data = b"".join([header, *lines])
        if self._disk.write(self._open(create=True), data) != len(data):
            raise OSError(errno.ENOSPC, "the disk is full")
        return self._size_bytes + len(data)

    def _open(self, *, create: bool) -> int:
        if self._handle is None:
            self._handle = self._disk.open(self._path, create=create and self._size_bytes == 0)
            if self._disk.size_bytes(self._handle) != self._size_bytes:
                raise StorageError(f"{self._path.name} was changed by another program")
        return self._handle

    def _lines(self, offset: int) -> Iterator[bytes]:
        handle = self._open(create=False)
        rest = b""
        while offset < self._size_bytes:
            chunk = self._disk.read(handle, offset, min(_CHUNK_BYTES, self._size_bytes - offset))
            if not chunk:
                raise StorageError(f"{self._path.name} was cut while it was open")
            offset += len(chunk)
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield line + b"\n"


def mend(disk: Disk, path: Path, data: bytes, recovered: Recovered, *, damaged: bool) -> None:
    """Makes the file hold the true prefix and nothing else. Raises OSError.

    Args:
        disk: the disk.
        path: of the file.
        data: the file's bytes, which `recovered` was found in.
        recovered: what they truly hold.
        damaged: whether more is amiss than a torn end; the file is then kept too, as `<name>.corrupt`.
    """
    if damaged and recovered.good_bytes < len(data):
        write_atomically(disk, path.with_suffix(".corrupt"), data)
    if not recovered.records:
        disk.unlink(path)
        disk.sync_folder(path.parent)
    elif damaged:
        write_atomically(disk, path, data[: recovered.good_bytes])
    elif recovered.good_bytes < len(data):
        handle = disk.open(path, create=False)
        try:
            disk.truncate(handle, recovered.good_bytes)
            disk.sync(handle)
        finally:
            disk.close(handle)


def _with_end(segment: Segment, end: int) -> Segment:
    return Segment(kid=segment.kid, epoch=segment.epoch, base=segment.base, salt=segment.salt, end=end)

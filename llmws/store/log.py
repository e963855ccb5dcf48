"""One log of one session as a file: appending, reading back, mending.

Knows neither `meta.json` nor the hub. Used by one thread at a time. Invariant: the file is exactly the lines that were
written whole, or the `LogFile` has raised and is not used again.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from llmws.errors import StorageError
from llmws.store.disk import Disk, adopt_draft, draft_of, write_atomically, write_draft
from llmws.store.keys import missing_key
from llmws.store.meta import LogState, kept_segments
from llmws.store.record import HEADER_START, SALT_BYTES, BadLineError, LogKeys, Segment, SegmentCipher
from llmws.store.recovery import EventIndex, Recovered
from llmws.store_api import Record

_logger = logging.getLogger(__name__)

_CHUNK_BYTES: Final = 65_536

SYNC_FAILED_NAME: Final = "sync-failed"
"""An empty file beside the logs: what they show is perhaps not on the disk, and only a copy can be made durable."""


class SegmentSource:
    """Makes the new segments of one log in one epoch.

    Args:
        keys: of the log.
        kid: the master key for new segments. It stays for the epoch, in which meta has announced it: a log that begins
            a segment under a key that meta does not name would look torn to a ring without that key.
        epoch: this opening's.
        random: gives so many random bytes, never the same again.
    """

    def __init__(self, keys: LogKeys, kid: int, epoch: int, random: Callable[[int], bytes]) -> None:
        self._keys = keys
        self._kid = kid
        self._epoch = epoch
        self._random = random

    def begin(self, base: int, kid: int | None = None) -> SegmentCipher:
        """The cipher of a fresh segment after record `base`, perhaps under another master key than usual.

        Raises:
            StorageError: that key is not in the ring any more.
        """
        kid = kid or self._kid
        segment = Segment(kid=kid, epoch=self._epoch, base=base, salt=self._random(SALT_BYTES), end=base)
        cipher = self._keys.cipher(segment)
        if cipher is None:
            raise missing_key(kid)
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
        if [record.n for record in records] != [*range(self.last_n + 1, self.last_n + 1 + len(records))]:
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
        sync_in_place(self._disk, self._path, self._open(create=False))
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
        events: list[tuple[int, bytes]] = []
        taken_bytes = 0
        for record in self._records(*start):
            if record.kind != "event" or record.seq <= after_seq or record.n < self.first_n:
                continue
            events.append((record.seq, record.value))
            taken_bytes += len(record.value)
            if taken_bytes >= limit_bytes:
                break
        return events

    def state(self, *, goes_on: bool = True) -> LogState:
        """What meta keeps of the log. The segment that comes next is announced before its header is written."""
        segments = [_with_end(cipher.segment, min(end, self.durable_n)) for cipher, end in self._in_file.items()]
        if goes_on and self._cipher not in self._in_file:
            segments.append(self._cipher.segment)
        return LogState(first_n=self.first_n, segments=kept_segments(segments))

    def drop_below(self, first_n: int) -> None:
        """Forgets the records below `first_n`; `compact` takes them out of the file, once meta says so too.

        Raises:
            StorageError: there is no such record.
        """
        if not self.first_n <= first_n <= self.last_n:
            raise StorageError(f"{self._path.name}: record {first_n} is not in the log, which cannot begin there")
        self.first_n = first_n

    def compact(self) -> None:
        """Takes out the lines of forgotten records; the others stay as they are, byte for byte.

        Without room for the shorter copy the file stays as it is, which is just as true.

        Raises:
            OSError: the file cannot be read or replaced.
            StorageError: it was damaged since it was opened.
        """
        data = self._whole()
        # Neither mark can be inside a line: base64 has no braces.
        offset = 1 + data.find(b'\n{"n":%d,' % self.first_n)
        start = data.rfind(HEADER_START, 0, offset)
        header = data[start : data.find(b"\n", start) + 1]
        cipher = {cipher.header: cipher for cipher in self._in_file}.get(header)
        try:
            if cipher is None or cipher.unseal(data[offset : data.find(b"\n", offset) + 1]).n != self.first_n:
                raise BadLineError
        except BadLineError:
            raise self._damaged() from None
        gone_bytes = offset - len(header)
        if gone_bytes and self._replace(header + data[offset:]):
            self._index.cut(offset, cipher, gone_bytes)
            self._in_file = {cipher: end for cipher, end in self._in_file.items() if end >= self.first_n}

    def is_sealed_under(self, kid: int) -> bool:
        """Whether that master key opens every record."""
        return all(cipher.segment.kid == kid for cipher in self._in_file)

    def begin_over(self, kid: int) -> None:
        """Begins the segment that `reseal` puts in the place of all others; meta must announce it in between."""
        self._cipher = self._source.begin(self.first_n - 1, kid)

    def reseal(self) -> None:
        """Seals every record again, in the segment that `begin_over` began; without room the file stays as it is.

        Raises:
            OSError: the file cannot be read or replaced.
            StorageError: it was damaged since it was opened.
        """
        cipher, index = self._cipher, EventIndex()
        lines = [cipher.header]
        size_bytes = len(cipher.header)
        for record in self._records(0, None):
            if record.n >= self.first_n:
                lines.append(cipher.seal(record))
                if record.kind == "event":
                    index.add(record.seq, size_bytes, cipher)
                size_bytes += len(lines[-1])
        if self._replace(b"".join(lines)):
            self._index = index
            self._in_file = {cipher: self.last_n}
        else:
            self._cipher = self._source.begin(self.last_n)

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

    def _replace(self, data: bytes) -> bool:
        """Puts another file, which holds as much, in place of this one. False: there is no room for it."""
        assert self.durable_n == self.last_n
        try:
            write_draft(self._disk, self._path, data)
        except OSError as error:
            _logger.warning("%s is not rewritten: %s", self._path, error.strerror or error)
            with suppress(OSError):
                self._disk.unlink(draft_of(self._path))
            return False
        self.release()
        adopt_draft(self._disk, self._path)
        self._size_bytes = len(data)
        return True

    def _open(self, *, create: bool) -> int:
        if self._handle is None:
            self._handle = self._disk.open(self._path, create=create and self._size_bytes == 0)
            if self._disk.size_bytes(self._handle) != self._size_bytes:
                raise StorageError(f"{self._path.name} was changed by another program")
        return self._handle

    def _records(self, offset: int, cipher: SegmentCipher | None) -> Iterator[Record]:
        """The records from an offset on, where `cipher` holds; None: there a segment begins. Raises StorageError."""
        headers = {cipher.header: cipher for cipher in self._in_file}
        for line in self._lines(offset):
            if line.startswith(HEADER_START):
                cipher = headers.get(line)
                continue
            try:
                if cipher is None:
                    raise BadLineError
                record = cipher.unseal(line)
            except BadLineError:
                raise self._damaged() from None
            yield record

    def _damaged(self) -> StorageError:
        return StorageError(f"{self._path.name} was damaged while it was open")

    def _whole(self) -> bytes:
        data = self._disk.read(self._open(create=False), 0, self._size_bytes)
        if len(data) != self._size_bytes:
            raise self._cut()
        return data

    def _cut(self) -> StorageError:
        return StorageError(f"{self._path.name} was cut while it was open")

    def _lines(self, offset: int) -> Iterator[bytes]:
        handle = self._open(create=False)
        rest = b""
        while offset < self._size_bytes:
            chunk = self._disk.read(handle, offset, min(_CHUNK_BYTES, self._size_bytes - offset))
            if not chunk:
                raise self._cut()
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
            sync_in_place(disk, path, handle)
        finally:
            disk.close(handle)


def sync_in_place(disk: Disk, path: Path, handle: int) -> None:
    """Makes a log's bytes durable, or leaves word that this failed; the next process would not find out by itself.

    What a failed fdatasync(2) left unwritten the kernel may show as if it were on the disk, and later calls succeed
    without writing it. Source: Rebello et al., "Can Applications Recover from fsync Failures?", USENIX ATC 2020.

    Raises OSError.
    """
    try:
        disk.sync(handle)
    except OSError:
        # Not synced: it has to outlive the process, as the kernel's pages do, not a loss of power, which they do not.
        with suppress(OSError):
            disk.close(disk.open(path.with_name(SYNC_FAILED_NAME), create=True))
        raise


def _with_end(segment: Segment, end: int) -> Segment:
    return Segment(kid=segment.kid, epoch=segment.epoch, base=segment.base, salt=segment.salt, end=end)

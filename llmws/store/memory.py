"""A session store without files, for tests of what lies above it; keeps the same contract as the one on disk.

Single-threaded: `submit` queues and `take` carries out, so a test decides what was written when the process dies.
Invariant: what `take` has reported is on the `MemoryDisk`, and outlives `crash`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import msgspec

from llmws.store.folder import is_session_id, unix_ms
from llmws.store.meta import newest_ends
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
    Flushed,
    Keep,
    LogName,
    Open,
    Opened,
    Read,
    ReadResult,
    Record,
    SessionMeta,
    StoreEvent,
    StoreOp,
    Surveyed,
    Unknown,
)


class _Sequenced(msgspec.Struct):
    seq: int


class _Session(msgspec.Struct, kw_only=True):
    """What the disk holds of a session; `last_seq` and `next_n` are the log's, which may be newer than `meta`."""

    epoch: int
    meta: SessionMeta
    last_seq: int
    ends: tuple[tuple[int, int], ...] = ()
    corrupt_epoch: int = 0
    records: dict[LogName, list[Record]]
    next_n: dict[LogName, int]


class MemoryDisk:
    """What outlives a process. Give it to one `MemoryStore` after another to restart."""

    def __init__(self) -> None:
        self.sessions: dict[str, _Session] = {}
        self.deleted: set[str] = set()
        self.failing: set[str] = set()
        """Ids of sessions that the next operation which has to write fails for; taken out when it did."""
        self.damaged: set[str] = set()
        """Ids of sessions whose buffer log is found corrupt at the next opening, with nothing of it readable."""


class MemoryStore:
    """Implements `SessionStore` over a `MemoryDisk`."""

    def __init__(self, disk: MemoryDisk, *, now_ms: Callable[[], int] = unix_ms) -> None:
        self._disk = disk
        self._now_ms = now_ms
        self._notify: Callable[[], None] = lambda: None
        self._notified = False
        self._queue: list[StoreOp] = []
        self._surveys = 0
        self._answers: list[StoreEvent] = []
        self._open: dict[str, _Session] = {}
        self._failed: set[str] = set()

    def start(self, notify: Callable[[], None]) -> None:
        """See `SessionStore`."""
        self._notify = notify
        if self._queue or self._surveys:
            notify()

    def unfinished(self) -> list[str]:
        """See `SessionStore`."""
        return [
            session_id for session_id, session in reversed(self._disk.sessions.items()) if session.records["buffer"]
        ]

    def survey(self) -> None:
        """See `SessionStore`."""
        self._surveys += 1
        self._tell()

    def submit(self, *ops: StoreOp) -> None:
        """See `SessionStore`."""
        self._queue.extend(ops)
        self._tell()

    def _tell(self) -> None:
        if not self._notified:
            self._notified = True
            self._notify()

    def take(self) -> list[StoreEvent]:
        """See `SessionStore`; this is also when the queued operations are carried out."""
        self._notified = False
        queue, self._queue = self._queue, []
        for op in queue:
            self._carry_out(op)
        surveys, self._surveys = self._surveys, 0
        answers, self._answers = self._answers, []
        return answers + [self._surveyed()] * surveys

    def close(self) -> None:
        """See `SessionStore`."""
        self._answers = self.take()
        self._open.clear()

    def crash(self) -> None:
        """Dies as by kill -9: what is queued is lost, what was written is not. The store is not used again."""
        self._queue.clear()
        self._open.clear()

    def _carry_out(self, op: StoreOp) -> None:
        match op:
            case Create():
                self._create(op)
            case Open():
                self._open_session(op.session_id)
            case Delete():
                self._delete(op)
            case _:
                session = self._open.get(op.session_id)
                if session is not None:
                    self._use(session, op)
                elif op.session_id not in self._failed:
                    self._fail(op.session_id, "the session is not open")

    def _use(self, session: _Session, op: Append | Read | DropBuffer | Compact | Keep | Close) -> None:
        if op.session_id in self._disk.failing and not isinstance(op, Read):
            self._disk.failing.remove(op.session_id)
            self._fail(op.session_id, "the server's disk failed: told to")
            return
        match op:
            case Append():
                self._append(session, op)
            case Read():
                self._answers.append(_read(session, op))
            case DropBuffer():
                session.meta = op.meta
                session.records["buffer"].clear()
                self._answers.append(Dropped(session_id=op.session_id))
            case Compact():
                self._compact(session, op)
            case Keep():
                session.meta = op.meta
            case Close():
                session.meta = op.meta
                del self._open[op.session_id]

    def _create(self, op: Create) -> None:
        self._failed.discard(op.session_id)
        if not is_session_id(op.session_id):
            self._fail(op.session_id, "the session id is not a canonical UUIDv4")
        elif op.session_id in self._disk.sessions or op.session_id in self._disk.deleted:
            self._fail(op.session_id, "the session id was used before")
        else:
            session = _Session(
                epoch=op.epoch,
                meta=op.meta,
                last_seq=op.meta.last_seq,
                records={"buffer": [], "conversation": []},
                next_n={"buffer": 1, "conversation": 1},
            )
            self._disk.sessions[op.session_id] = self._open[op.session_id] = session
            self._answers.append(Created(session_id=op.session_id, ledger_key=_ledger_key(op.session_id)))

    def _open_session(self, session_id: str) -> None:
        self._failed.discard(session_id)
        session = self._disk.sessions.get(session_id)
        if session_id in self._open:
            self._fail(session_id, "the session is open already", is_opening=True)
        elif session is None:
            self._answers.append(Unknown(session_id=session_id))
        else:
            session.ends = newest_ends((*session.ends, (session.epoch, session.last_seq)))
            session.epoch = max(session.epoch + 1, self._now_ms())
            if session_id in self._disk.damaged:
                self._disk.damaged.remove(session_id)
                session.corrupt_epoch = session.epoch
                session.records["buffer"].clear()
            self._open[session_id] = session
            self._answers.append(_opened(session_id, session))

    def _append(self, session: _Session, op: Append) -> None:
        for record in op.records:
            if record.n != session.next_n[op.log]:
                self._fail(op.session_id, f"{op.log}: record {record.n} cannot follow {session.next_n[op.log] - 1}")
                return
            if record.kind == "event":
                # A store on disk finds the seq of an event only in its frame.
                assert msgspec.json.decode(record.value, type=_Sequenced).seq == record.seq
                session.last_seq = record.seq
            session.records[op.log].append(record)
            session.next_n[op.log] += 1
        # Newest last, for `unfinished`.
        self._disk.sessions[op.session_id] = self._disk.sessions.pop(op.session_id)
        written = session.next_n[op.log] - 1
        self._answers.append(Flushed(session_id=op.session_id, log=op.log, written=written, durable=written))

    def _compact(self, session: _Session, op: Compact) -> None:
        numbers = [record.n for record in session.records["buffer"]]
        if op.first_n not in numbers:
            self._fail(op.session_id, f"buffer: record {op.first_n} is not in the log, which cannot begin there")
            return
        session.meta = op.meta
        del session.records["buffer"][: numbers.index(op.first_n)]
        self._answers.append(Compacted(session_id=op.session_id, first_n=op.first_n))

    def _delete(self, op: Delete) -> None:
        self._failed.discard(op.session_id)
        self._open.pop(op.session_id, None)
        self._disk.sessions.pop(op.session_id, None)
        if op.keep_tombstone:
            self._disk.deleted.add(op.session_id)
        self._answers.append(Deleted(session_id=op.session_id))

    def _surveyed(self) -> Surveyed:
        sessions = self._disk.sessions.items()
        metas = [(session_id, msgspec.structs.replace(session.meta, finished=())) for session_id, session in sessions]
        return Surveyed(sessions=tuple(metas), is_last=True)

    def _fail(self, session_id: str, message: str, *, is_opening: bool = False) -> None:
        self._failed.add(session_id)
        self._open.pop(session_id, None)
        self._answers.append(Failed(session_id=session_id, message=message, is_opening=is_opening))


def _read(session: _Session, op: Read) -> ReadResult:
    events: list[tuple[int, bytes]] = []
    taken_bytes = 0
    for record in session.records["buffer"]:
        if record.kind == "event" and record.seq > op.after_seq:
            events.append((record.seq, record.value))
            taken_bytes += len(record.value)
            if taken_bytes >= op.limit_bytes:
                break
    return ReadResult(session_id=op.session_id, ticket=op.ticket, events=tuple(events))


def _opened(session_id: str, session: _Session) -> Opened:
    return Opened(
        session_id=session_id,
        epoch=session.epoch,
        ends=session.ends,
        next_n=session.next_n["buffer"],
        records=tuple(session.records["buffer"]),
        conversation=tuple(session.records["conversation"]),
        next_conversation_n=session.next_n["conversation"],
        meta=session.meta,
        corrupt_epoch=session.corrupt_epoch,
        ledger_key=_ledger_key(session_id),
    )


def _ledger_key(session_id: str) -> bytes:
    return hashlib.sha256(session_id.encode()).digest()

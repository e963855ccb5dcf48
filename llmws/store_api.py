"""What a session store is, and the frozen values it speaks.

Knows no implementation, neither files nor keys. Operations on one session are carried out in the order submitted;
that order is the whole concurrency rule, so a read sees every append before it and an append after a drop starts a
new file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import msgspec

RecordKind = Literal["request", "prompt", "event", "ack", "message", "config"]
LogName = Literal["buffer", "conversation"]


class Value(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the values that cross between rooms."""


class Record(Value, frozen=True, kw_only=True):
    """One line of a log, in the clear.

    Attributes:
        n: number of the record, +1 over the life of the session and log.
        kind: what `value` is. In `buffer`: request, prompt, event, ack. In `conversation`: message, config.
        value: JSON. Of an event: the exact frame that goes on the wire.
        seq: the event's sequence number; 0 for the other kinds.
    """

    n: int
    kind: RecordKind
    value: bytes
    seq: int = 0


class Finished(Value, frozen=True, kw_only=True):
    """A finished request, as the ledger keeps it after its events are dropped.

    `id_mac` and `body_mac` are keyed with the session's `ledger_key`: plain hashes would confirm guessed prompts.
    """

    id_mac: bytes
    body_mac: bytes
    terminal: Literal["done", "error"]


class SessionMeta(Value, frozen=True, kw_only=True):
    """What is kept of a session beside its logs; the store adds segments and epochs.

    Attributes:
        owner: the principal.
        created_s, last_activity_s: Unix time.
        last_seq: of the newest event appended, 0 before any.
        floor: events up to here are acknowledged.
        finished: the newest 4,096 finished requests, oldest first.
        title: what the session is called; it can come from a prompt, so the store seals it.
        messages: how many messages its conversation has.
        idle_since_s: when its last client left, in seconds of the server's uptime over all its starts.
        archived: whether it has left the live sessions: only its conversation counts.
    """

    owner: str
    created_s: float
    last_activity_s: float
    last_seq: int = 0
    floor: int = 0
    finished: tuple[Finished, ...] = ()
    title: str | None = None
    messages: int = 0
    idle_since_s: float = 0.0
    archived: bool = False


# --- operations ----------------------------------------------------------------------------------------------------


class Create(Value, frozen=True, kw_only=True):
    """Makes the files of a session that lived in memory so far; n and seq start at 1. Answered by `Created`."""

    session_id: str
    epoch: int
    meta: SessionMeta


class Open(Value, frozen=True, kw_only=True):
    """Opens a session's files, if there are any, in a new epoch. Answered by `Opened` or `Unknown`."""

    session_id: str


class Append(Value, frozen=True, kw_only=True):
    """Appends records with consecutive n. `sync`: an fdatasync must follow before they count as durable.

    Answered by `Flushed` (several appends may share one) or `Failed`.
    """

    session_id: str
    log: LogName
    records: tuple[Record, ...]
    sync: bool


class Read(Value, frozen=True, kw_only=True):
    """Reads back events behind `after_seq`, about `limit_bytes` of them, at least one. Answered by `ReadResult`."""

    session_id: str
    ticket: int
    after_seq: int
    limit_bytes: int


class DropBuffer(Value, frozen=True, kw_only=True):
    """Everything is acknowledged: writes meta, then unlinks `buffer.jsonl`. Answered by `Dropped`.

    The session stays open, in the same epoch; n and seq run on in a new file at the next append.
    """

    session_id: str
    meta: SessionMeta


class Compact(Value, frozen=True, kw_only=True):
    """Drops the records of the buffer log below `first_n`, in meta first. Answered by `Compacted`.

    Record `first_n` was appended before. The session stays open, in the same epoch; reads beyond go on.
    """

    session_id: str
    first_n: int
    meta: SessionMeta


class Keep(Value, frozen=True, kw_only=True):
    """Writes meta, for what the logs do not tell. No answer."""

    session_id: str
    meta: SessionMeta


class Close(Value, frozen=True, kw_only=True):
    """Writes meta, syncs and closes the files. No answer; a later `Open` is a new epoch."""

    session_id: str
    meta: SessionMeta


class Delete(Value, frozen=True, kw_only=True):
    """Deletes the session for good: tombstone first, then the files. Answered by `Deleted`; the id stays unknown.

    Without `keep_tombstone` the tombstone goes last: nothing is left, not even the id. For what ran out by itself.
    """

    session_id: str
    keep_tombstone: bool = True


StoreOp = Create | Open | Append | Read | DropBuffer | Compact | Keep | Close | Delete

# --- answers -------------------------------------------------------------------------------------------------------


class Created(Value, frozen=True, kw_only=True):
    """The files exist. `ledger_key`: 32 bytes derived for this session, for `Finished`."""

    session_id: str
    ledger_key: bytes


class Opened(Value, frozen=True, kw_only=True):
    """A session's true contents.

    Attributes:
        epoch: the new one.
        ends: (epoch, last seq of that epoch) of the earlier epochs, oldest first, at most 64.
        next_n: the number of the next record of the buffer log.
        records: what survived of the buffer log, oldest first.
        conversation: likewise of the conversation log.
        next_conversation_n: the number of its next record.
        meta: as last written; where the log is newer, the log wins, and the reader folds that in.
        corrupt_epoch: positions from epochs before this one cannot be trusted (0: all can): the log was damaged.
        is_conversation_damaged: this opening, or one since the hub last wrote meta, found a part of the conversation
            unreadable and set it aside.
        ledger_key: as in `Created`.
    """

    session_id: str
    epoch: int
    ends: tuple[tuple[int, int], ...]
    next_n: int
    records: tuple[Record, ...]
    conversation: tuple[Record, ...]
    next_conversation_n: int
    meta: SessionMeta
    corrupt_epoch: int
    ledger_key: bytes
    is_conversation_damaged: bool = False


class Unknown(Value, frozen=True, kw_only=True):
    """There is no such session."""

    session_id: str


class Flushed(Value, frozen=True, kw_only=True):
    """Progress of a log: records up to `written` survive kill -9, up to `durable` a power loss. Monotone."""

    session_id: str
    log: LogName
    written: int
    durable: int


class ReadResult(Value, frozen=True, kw_only=True):
    """Event frames in order, as (seq, frame); empty when there is none after `after_seq`."""

    session_id: str
    ticket: int
    events: tuple[tuple[int, bytes], ...]


class Dropped(Value, frozen=True, kw_only=True):
    """`buffer.jsonl` is gone."""

    session_id: str


class Compacted(Value, frozen=True, kw_only=True):
    """`buffer.jsonl` begins with record `first_n`."""

    session_id: str
    first_n: int


class Surveyed(Value, frozen=True, kw_only=True):
    """Some of the sessions that the store keeps, as (id, meta without `finished`); the last answer says so."""

    sessions: tuple[tuple[str, SessionMeta], ...]
    is_last: bool


class Deleted(Value, frozen=True, kw_only=True):
    """The session is gone, also after a loss of power."""

    session_id: str


class Failed(Value, frozen=True, kw_only=True):
    """The log can no longer be written or read. Nothing after the last `Flushed` counts; the files are closed.

    `is_opening`: this answers an `Open`; otherwise one that was submitted since is still to be answered.
    """

    session_id: str
    message: str
    is_opening: bool = False


StoreEvent = Created | Opened | Unknown | Flushed | ReadResult | Dropped | Compacted | Surveyed | Deleted | Failed


class SessionStore(Protocol):
    """Keeps session logs. All calls return at once."""

    def start(self, notify: Callable[[], None]) -> None:
        """Starts working. `notify` is called from any thread whenever `take` has something new."""

    def unfinished(self) -> list[str]:
        """Ids of the sessions that have a `buffer.jsonl`, newest first. Touches files: call it before serving."""

    def survey(self) -> None:
        """Looks through all sessions, beside the operations; answered by one or more `Surveyed`."""

    def submit(self, *ops: StoreOp) -> None:
        """Queues operations. Those that come in one call cost one wake-up."""

    def take(self) -> list[StoreEvent]:
        """Takes the answers that have come, oldest first."""

    def close(self) -> None:
        """Carries out everything queued, syncs, closes and waits."""

"""The session store on disk: one writer thread, and pools for what has to wait for the disk.

Owns who works on a session when; knows nothing of bytes. A session with work in hand belongs to exactly one thread,
so its operations keep their order and its files need no lock, while other sessions go on beside it. Invariant:
`Flushed` never names a record that write(2), or for `durable` fdatasync(2), has not returned for.

The queue of operations has no bound of its own: the driver lets the engine wait when what is not written grows.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Final, Literal

from llmws.errors import ConfigError, StorageError
from llmws.store.folder import (
    Site,
    create_session,
    delete_session,
    list_unfinished,
    open_session,
    prepare,
    reseal_session,
)
from llmws.store.lane import Lane, NotOpenError, Reseal
from llmws.store.survey import Surveyor
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
    Keep,
    LogName,
    Open,
    Read,
    ReadResult,
    Record,
    StoreEvent,
    StoreOp,
    Unknown,
)

_logger = logging.getLogger(__name__)

# At most two handles a session, mostly one: together these three keep the store below 450 open files.
_IDLE_SESSIONS: Final = 128
_ROUND_SESSIONS: Final = 64
_SYNCS_IN_FLIGHT: Final = 24
# Files side by side share one journal commit; opening and reading use the interpreter, where more threads gain nothing.
_SYNC_THREADS: Final = 8
_TASK_THREADS: Final = 4
_RESEAL_TIMEOUT_S: Final = 60


class FileStore:
    """Keeps session logs in a state folder that the caller holds (`hold_state_folder`). Implements `SessionStore`.

    Args:
        site: the folder.
        durability: at `os` only what asks for it is synced; at `disk` everything is, and `Flushed` comes after that.
            One sync a session is in flight, and what comes meanwhile shares the next: that is the group commit.

    Raises:
        ConfigError: the folder cannot be written.
    """

    def __init__(self, site: Site, *, durability: Literal["os", "disk"] = "os") -> None:
        self._site = site
        self._sync_all = durability == "disk"
        self._changed = threading.Condition()
        self._lanes: dict[str, Lane] = {}
        self._ready: deque[Lane] = deque()
        self._busy = 0
        self._closing = False
        self._answers: list[StoreEvent] = []
        self._notified = False
        self._notify: Callable[[], None] = lambda: None
        self._holding: OrderedDict[str, Lane] = OrderedDict()
        self._sync_slots = threading.BoundedSemaphore(_SYNCS_IN_FLIGHT)
        self._syncs = ThreadPoolExecutor(_SYNC_THREADS, thread_name_prefix="llmws-sync")
        self._tasks = ThreadPoolExecutor(_TASK_THREADS, thread_name_prefix="llmws-store")
        self._writer = threading.Thread(target=self._write, name="llmws-writer", daemon=True)
        self._surveyor = Surveyor(site, self._post, self._reseal)
        try:
            prepare(site)
        except OSError as error:
            raise ConfigError(f"{site.state}: sessions cannot be kept there ({error.strerror or error})") from None

    # --- SessionStore ----------------------------------------------------------------------------------------------

    def start(self, notify: Callable[[], None]) -> None:
        """See `SessionStore`."""
        self._notify = notify
        for pool in (self._syncs, self._tasks):
            # Its first thread is there from now on, which `_hand_over` relies on.
            pool.submit(lambda: None)
        self._writer.start()
        self._surveyor.start()

    def unfinished(self) -> list[str]:
        """See `SessionStore`."""
        return list_unfinished(self._site)

    def survey(self) -> None:
        """See `SessionStore`."""
        self._surveyor.request()

    def submit(self, *ops: StoreOp) -> None:
        """See `SessionStore`."""
        self._queue(*ops)

    def take(self) -> list[StoreEvent]:
        """See `SessionStore`."""
        with self._changed:
            answers, self._answers = self._answers, []
            self._notified = False
            return answers

    def close(self) -> None:
        """See `SessionStore`. Sessions that are still open keep the meta they have."""
        self._surveyor.close()
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._writer.ident is not None:
            self._writer.join()
        self._syncs.shutdown()
        self._tasks.shutdown()

    # --- lanes -----------------------------------------------------------------------------------------------------

    def _queue(self, *ops: StoreOp | Reseal) -> None:
        with self._changed:
            if self._closing:
                raise RuntimeError("the store is closed")
            for op in ops:
                lane = self._lanes.get(op.session_id)
                if lane is None:
                    lane = self._lanes[op.session_id] = Lane(op.session_id)
                lane.ops.append(op)
                if not lane.busy:
                    self._make_ready(lane)

    def _make_ready(self, lane: Lane) -> None:
        """Gives a lane with queued operations to the writer. The lock is held."""
        lane.busy = True
        self._busy += 1
        self._ready.append(lane)
        self._changed.notify()

    def _next_round(self) -> list[tuple[Lane, StoreOp | Reseal | list[Append]]]:
        """Waits for lanes with work, and takes of each what can be done now. Empty: the store is closed and done."""
        with self._changed:
            while not self._ready and (self._busy or not self._closing):
                self._changed.wait()
            lanes = [self._ready.popleft() for _ in range(min(len(self._ready), _ROUND_SESSIONS))]
            return [(lane, lane.next_work()) for lane in lanes]

    def _free(self, lanes: Iterable[Lane]) -> None:
        """Ends the work on lanes."""
        with self._changed:
            for lane in lanes:
                lane.busy = False
                self._busy -= 1
                if lane.ops:
                    self._make_ready(lane)
                elif lane.folder is None and not lane.failed:
                    del self._lanes[lane.session_id]
            self._changed.notify()

    def _post(self, *answers: StoreEvent) -> None:
        if not answers:
            return
        with self._changed:
            self._answers.extend(answers)
            due, self._notified = not self._notified, True
        if due:
            # An event loop that is closed no longer listens; what is queued must be written all the same.
            with suppress(RuntimeError):
                self._notify()

    # --- the writer thread -----------------------------------------------------------------------------------------

    def _write(self) -> None:
        while work := self._next_round():
            self._work_on(work)
        for lane in self._lanes.values():
            with self._failures_of(lane):
                if lane.folder is not None:
                    lane.folder.close(None)

    def _work_on(self, work: list[tuple[Lane, StoreOp | Reseal | list[Append]]]) -> None:
        """Writes what a round has to write, and hands over what has to wait for the disk."""
        answers: list[StoreEvent] = []
        done: list[Lane] = []
        to_sync: list[tuple[Lane, list[LogName]]] = []
        for lane, task in work:
            self._holding[lane.session_id] = lane
            self._holding.move_to_end(lane.session_id)
            if not isinstance(task, list):
                _hand_over(self._tasks, self._carry_out, lane, task)
            elif logs := self._append(lane, task, answers):
                to_sync.append((lane, logs))
            else:
                done.append(lane)
        # One wake-up of the hub a round: waking it for each session costs more than writing the session's records.
        self._post(*answers)
        self._free(done)
        for lane, logs in to_sync:
            self._sync_slots.acquire()
            _hand_over(self._syncs, self._sync, lane, logs)
        self._release_idle()

    def _release_idle(self) -> None:
        """Closes the files of the sessions that were longest without work, so that thousands may be open."""
        for _ in range(len(self._holding) - _IDLE_SESSIONS):
            session_id, lane = self._holding.popitem(last=False)
            if lane.busy:
                self._holding[session_id] = lane
            elif lane.folder is not None:
                lane.folder.release()

    def _append(self, lane: Lane, appends: list[Append], answers: list[StoreEvent]) -> list[LogName]:
        """Writes what was appended, each log with one write. Returns the logs that must be synced."""
        records: dict[LogName, list[Record]] = {}
        for append in appends:
            records.setdefault(append.log, []).extend(append.records)
        try:
            # The buffer first: what a crash keeps from the conversation is taken from there.
            for log in sorted(records):
                lane.opened().logs[log].append(records[log])
            if self._sync_all:
                return sorted(records)
            answers += [lane.progress(log) for log in sorted(records)]
            return sorted({append.log for append in appends if append.sync})
        except Exception as error:  # noqa: BLE001 - see `_failed`
            self._failed(lane, error)
        return []

    # --- the pools' threads ----------------------------------------------------------------------------------------

    def _sync(self, lane: Lane, logs: list[LogName]) -> None:
        with self._failures_of(lane):
            for log in logs:
                lane.opened().logs[log].sync()
            self._post(*(lane.progress(log) for log in logs))
        self._sync_slots.release()
        self._free([lane])

    def _carry_out(self, lane: Lane, op: StoreOp | Reseal) -> None:
        if isinstance(op, Reseal):
            self._carry_out_reseal(lane, op)
        else:
            try:
                self._perform(lane, op)
            except Exception as error:  # noqa: BLE001 - see `_failed`
                self._failed(lane, error, is_opening=isinstance(op, Open))
        self._free([lane])

    def _perform(self, lane: Lane, op: StoreOp) -> None:
        match op:
            case Create():
                lane.failed = False
                self._site.keys.refresh()
                lane.folder = create_session(self._site, op.session_id, op.epoch, op.meta)
                self._post(Created(session_id=op.session_id, ledger_key=lane.folder.ledger_key))
            case Open():
                self._open(lane)
            case Read():
                events = lane.opened().logs["buffer"].read_events(op.after_seq, op.limit_bytes)
                self._post(ReadResult(session_id=op.session_id, ticket=op.ticket, events=tuple(events)))
            case DropBuffer():
                lane.opened().drop_buffer(op.meta)
                self._post(Dropped(session_id=op.session_id))
            case Compact():
                lane.opened().compact(op.first_n, op.meta)
                self._post(Compacted(session_id=op.session_id, first_n=op.first_n))
            case Keep():
                lane.opened().keep(op.meta)
            case Close():
                lane.opened().close(op.meta)
                lane.folder = None
            case Delete():
                lane.failed = False
                if lane.folder is not None:
                    lane.folder.release()
                    lane.folder = None
                delete_session(self._site, op.session_id, keep_tombstone=op.keep_tombstone)
                self._post(Deleted(session_id=op.session_id))

    def _open(self, lane: Lane) -> None:
        if lane.folder is not None:
            raise StorageError("the session is open already")
        self._site.keys.refresh()
        had_failed, lane.failed = lane.failed, False
        opened = open_session(self._site, lane.session_id, had_failed=had_failed)
        if opened is None:
            self._post(Unknown(session_id=lane.session_id))
        else:
            lane.folder, answer = opened
            lane.folder.mark_told()
            self._post(answer)

    # --- keys ------------------------------------------------------------------------------------------------------

    def _reseal(self, session_id: str) -> None:
        """Brings a session under the newest master key, if nobody has it open, and waits for that."""
        op = Reseal(session_id)
        self._queue(op)
        op.done.wait(_RESEAL_TIMEOUT_S)

    def _carry_out_reseal(self, lane: Lane, op: Reseal) -> None:
        try:
            # An open session is resealed when it is closed.
            if lane.folder is None:
                reseal_session(self._site, lane.session_id, had_failed=lane.failed)
                lane.failed = False
        except (OSError, StorageError) as error:
            _logger.warning("session %s stays under an older master key: %s", lane.session_id, error)
            lane.failed = True
        except Exception:
            _logger.exception("session %s", lane.session_id)
        finally:
            op.done.set()

    # --- failures --------------------------------------------------------------------------------------------------

    @contextmanager
    def _failures_of(self, lane: Lane) -> Iterator[None]:
        """Turns whatever goes wrong inside into the session's one `Failed`."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - see `_failed`
            self._failed(lane, error)

    def _failed(self, lane: Lane, error: Exception, *, is_opening: bool = False) -> None:
        """Ends the session's use of its files, once."""
        match error:
            case NotOpenError():
                if lane.failed:
                    return
                message = "the session is not open"
            case OSError():
                message = f"the server's disk failed: {error.strerror or error}"
            case StorageError():
                message = str(error)
            case _:
                # A bug that one session meets must not end the writing of all others.
                _logger.error("session %s", lane.session_id, exc_info=error)
                message = "internal error"
        _logger.error("session %s: %s", lane.session_id, message)
        lane.failed = True
        if lane.folder is not None:
            lane.folder.release()
            lane.folder = None
        self._post(Failed(session_id=lane.session_id, message=message, is_opening=is_opening))


def _hand_over(pool: ThreadPoolExecutor, work: Callable[..., None], *arguments: object) -> None:
    """Has a pool's thread do the work."""
    # Without room for another thread the pool raises, but queues the work before that: its first thread comes to it.
    with suppress(RuntimeError):
        pool.submit(work, *arguments)

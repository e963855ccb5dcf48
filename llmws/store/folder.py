"""One session's folder: `meta.json`, `buffer.jsonl` and `conversation.jsonl`, open in one epoch.

Owns the order in which the three are written, so that a crash between any two steps is found and mended at the next
opening. Knows no thread: one at a time uses a folder. Invariant: meta never claims more than what is durable in the
logs.
"""

from __future__ import annotations

import logging
import os
import re
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from llmws.errors import StorageError
from llmws.store.disk import DRAFT_SUFFIX, Disk, OsDisk, read_whole, write_atomically
from llmws.store.keys import KeyRing
from llmws.store.log import SYNC_FAILED_NAME, LogFile, SegmentSource, mend, sync_in_place
from llmws.store.meta import LEDGER_KEY_BYTES, LogState, Meta, MetaForgedError, newest_ends, open_meta, seal_meta
from llmws.store.record import LogKeys
from llmws.store.recovery import Recovered, recover
from llmws.store_api import LogName, Opened, SessionMeta

_logger = logging.getLogger(__name__)

LOGS: Final[tuple[LogName, ...]] = ("buffer", "conversation")
META_NAME: Final = "meta.json"
_PASSING: Final = ".passing"
_SESSION_ID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_EMPTY: Final = LogState(first_n=1, segments=())


def is_session_id(text: str) -> bool:
    """Whether the text is a UUIDv4 in its one canonical spelling; anything else must not become a path."""
    return _SESSION_ID.fullmatch(text) is not None


def unix_ms() -> int:
    """The wall clock in milliseconds."""
    return time.time_ns() // 1_000_000


class Site(msgspec.Struct, frozen=True, kw_only=True):
    """Where sessions are kept, and what the folders need of the world.

    Attributes:
        state: the state folder.
        keys: the master keys.
        disk: the disk.
        now_ms: the wall clock, Unix time in milliseconds.
        random: gives so many random bytes.
    """

    state: Path
    keys: KeyRing
    disk: Disk = OsDisk()
    now_ms: Callable[[], int] = unix_ms
    random: Callable[[int], bytes] = os.urandom

    @property
    def sessions(self) -> Path:
        """A folder a session."""
        return self.state / "sessions"

    @property
    def deleted(self) -> Path:
        """Tombstones, empty files: `<id>` for a session whose id is never used again, `<id>.passing` while one goes."""
        return self.state / "deleted"

    def is_deleted(self, session_id: str) -> bool:
        """Whether the session has a tombstone."""
        return any(self.disk.exists(self.deleted / (session_id + suffix)) for suffix in ("", _PASSING))


def prepare(site: Site) -> None:
    """Makes the folders, finishes the deletions that a crash interrupted, and removes what failed to become a session.

    Raises OSError.
    """
    for folder in (site.sessions, site.deleted):
        site.disk.make_folder(folder)
    site.disk.sync_folder(site.state)
    tombstones = site.disk.names(site.deleted)
    kept = set(site.disk.names(site.sessions))
    for session_id in (name.removesuffix(_PASSING) for name in tombstones):
        if session_id in kept:
            _remove(site, session_id)
    for folder in list_session_folders(site):
        # A session has its meta before anybody is told of it. One that cannot be looked into must not stop the start.
        with suppress(OSError):
            if all(name.endswith(DRAFT_SUFFIX) for name in site.disk.names(folder)):
                _remove(site, folder.name)
    if passing := [name for name in tombstones if name.endswith(_PASSING)]:
        site.disk.sync_folder(site.sessions)
        _remove_tombstones(site, passing)


def list_unfinished(site: Site) -> list[str]:
    """Ids of the sessions that have a buffer log, newest first. Reads the operating system's files."""
    logs = [path for path in site.sessions.glob("*/buffer.jsonl") if is_session_id(path.parent.name)]
    logs.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    return [path.parent.name for path in logs]


def list_session_folders(site: Site) -> list[Path]:
    """The folders of all sessions that are not deleted. Raises OSError."""
    deleted = {name.removesuffix(_PASSING) for name in site.disk.names(site.deleted)}
    return [
        site.sessions / name for name in site.disk.names(site.sessions) if is_session_id(name) and name not in deleted
    ]


class SessionFolder:
    """An open session; made by `create_session` or `open_session`.

    Attributes:
        logs: the session's two logs, for appending and reading.
        ledger_key: 32 bytes, for the hub's ledger.
    """

    def __init__(self, site: Site, session_id: str, meta: Meta, found: dict[LogName, Recovered]) -> None:
        self._site = site
        self._session = uuid.UUID(session_id).bytes
        self._path = site.sessions / session_id
        self._meta = meta
        self.ledger_key = meta.ledger_key
        kid = site.keys.current
        self.logs: dict[LogName, LogFile] = {
            log: LogFile(
                site.disk,
                _log_path(self._path, log),
                SegmentSource(LogKeys(self._session, log, site.keys.get), kid, meta.epoch, site.random),
                found[log],
                getattr(meta, log).first_n,
            )
            for log in LOGS
        }

    def write_meta(self, session: SessionMeta, *, goes_on: bool = True) -> None:
        """Makes `meta.json` say how things are now, perhaps for the last time in this epoch. Raises OSError."""
        self._meta = msgspec.structs.replace(
            self._meta,
            session=session,
            buffer=self.logs["buffer"].state(goes_on=goes_on),
            conversation=self.logs["conversation"].state(goes_on=goes_on),
        )
        data = seal_meta(self._meta, self._session, self._site.keys, self._site.random)
        write_atomically(self._site.disk, self._path / META_NAME, data)

    def mark_told(self) -> None:
        """What the opening found was told to the hub: from the next writing of meta on, damage is not told again."""
        self._meta = msgspec.structs.replace(self._meta, conversation_damaged=False)

    def keep(self, session: SessionMeta) -> None:
        """Writes meta, and before it what meta speaks of. Raises OSError."""
        self._sync()
        self.write_meta(session)

    def compact(self, first_n: int, session: SessionMeta) -> None:
        """Drops the records of the buffer log below `first_n`, in meta first.

        Raises:
            OSError: the disk failed.
            StorageError: there is no such record, or the log was damaged since it was opened.
        """
        log = self.logs["buffer"]
        log.drop_below(first_n)
        self.keep(session)
        log.compact()

    def drop_buffer(self, session: SessionMeta) -> None:
        """Forgets every record of the buffer log, in meta first. Raises OSError."""
        self.logs["buffer"].forget()
        self.keep(session)
        self._site.disk.unlink(_log_path(self._path, "buffer"))
        self._site.disk.sync_folder(self._path)

    def close(self, session: SessionMeta | None) -> None:
        """Makes everything durable, writes meta if there is news for it, and closes the files.

        This is also when the conversation comes under the newest master key.

        Raises:
            OSError: the disk failed.
            StorageError: a log was damaged since it was opened.
        """
        self._sync()
        if session is not None:
            self._reseal_conversation(session)
            self.write_meta(session, goes_on=False)
        self.release()

    def _sync(self) -> None:
        for log in self.logs.values():
            log.sync()

    def _reseal_conversation(self, session: SessionMeta) -> None:
        log = self.logs["conversation"]
        kid = self._site.keys.current
        if not log.is_sealed_under(kid):
            log.begin_over(kid)
            self.write_meta(session)
            log.reseal()

    def release(self) -> None:
        """Closes the file handles; they come back with the next use."""
        for log in self.logs.values():
            log.release()


def create_session(site: Site, session_id: str, epoch: int, session: SessionMeta) -> SessionFolder:
    """Makes the folder of a session.

    Raises:
        OSError: the disk failed.
        StorageError: the id is no canonical UUIDv4, or it is or was taken.
    """
    if not is_session_id(session_id):
        raise StorageError("the session id is not a canonical UUIDv4")
    path = site.sessions / session_id
    if site.disk.exists(path) or site.is_deleted(session_id):
        raise StorageError("the session id was used before")
    site.disk.make_folder(path)
    site.disk.sync_folder(site.sessions)
    ledger_key = site.random(LEDGER_KEY_BYTES)
    meta = Meta(epoch=epoch, ledger_key=ledger_key, buffer=_EMPTY, conversation=_EMPTY, session=session)
    folder = SessionFolder(site, session_id, meta, _recover(site, session_id, meta, {}))
    try:
        folder.write_meta(session)
    except OSError:
        with suppress(OSError):
            _remove(site, session_id)  # on a full disk every attempt would leave one behind
        raise
    return folder


def open_session(site: Site, session_id: str, *, had_failed: bool = False) -> tuple[SessionFolder, Opened] | None:
    """Opens a session in a new epoch, after mending its logs. None: there is no such session.

    Args:
        site: where it is.
        session_id: which.
        had_failed: its files have failed in this process, so that only a copy of them can be made durable. Whether they
            have in an earlier one, the folder says by itself.

    Raises:
        OSError: the disk failed.
        StorageError: a master key is missing.
    """
    if not is_session_id(session_id) or site.is_deleted(session_id):
        return None
    path = site.sessions / session_id
    old = _read_meta(site, path, uuid.UUID(session_id).bytes)
    if old is None:
        return None
    for segment in (*old.buffer.segments, *old.conversation.segments):
        # Without its key a whole log looks torn, and would be cut down to nothing.
        site.keys.require(segment.kid)
    _remove_drafts(site.disk, path)
    data = {log: text for log in LOGS if (text := read_whole(site.disk, _log_path(path, log))) is not None}
    found = _recover(site, session_id, old, data)
    ends = _ends(old, found["buffer"])
    epoch = max(*(epoch + 1 for epoch, _ in ends), site.now_ms())
    # A log shorter than what was durable has lost events that clients may have seen, however clean its end is.
    damaged = {log for log in LOGS if found[log].corrupt or found[log].last_n < getattr(old, log).durable_n}
    corrupt_epoch = epoch if "buffer" in damaged else old.corrupt_epoch
    # A reseal opens a session too, and nobody hears what it finds.
    conversation_damaged = "conversation" in damaged or old.conversation_damaged
    meta = msgspec.structs.replace(
        old, epoch=epoch, ends=ends, corrupt_epoch=corrupt_epoch, conversation_damaged=conversation_damaged
    )
    folder = SessionFolder(site, session_id, meta, found)
    # Meta before mending: a corrupt file, once mended, no longer shows that positions in it cannot be trusted.
    had_failed = had_failed or site.disk.exists(path / SYNC_FAILED_NAME)
    for log, text in data.items():
        _make_durable(site.disk, _log_path(path, log), text, had_failed=had_failed)
    site.disk.unlink(path / SYNC_FAILED_NAME)
    folder.write_meta(old.session)
    for log, text in data.items():
        _mend_log(site.disk, _log_path(path, log), text, found[log], damaged=log in damaged)
    return folder, Opened(
        session_id=session_id,
        epoch=epoch,
        ends=meta.ends,
        next_n=found["buffer"].last_n + 1,
        records=found["buffer"].records,
        conversation=found["conversation"].records,
        next_conversation_n=found["conversation"].last_n + 1,
        meta=old.session,
        corrupt_epoch=meta.corrupt_epoch,
        ledger_key=folder.ledger_key,
        is_conversation_damaged=conversation_damaged,
    )


def delete_session(site: Site, session_id: str, *, keep_tombstone: bool = True) -> None:
    """Deletes a session that is not open, whenever a crash comes; its tombstone, if not kept, goes last.

    Raises OSError.
    """
    if not is_session_id(session_id):
        return
    tombstone = session_id if keep_tombstone else session_id + _PASSING
    site.disk.close(site.disk.open(site.deleted / tombstone, create=True))
    site.disk.sync_folder(site.deleted)
    _remove(site, session_id)
    site.disk.sync_folder(site.sessions)
    if not keep_tombstone:
        _remove_tombstones(site, [tombstone])


def reseal_session(site: Site, session_id: str, *, had_failed: bool = False) -> None:
    """Brings a session that is not open under the newest master key, by an opening and a close as in `open_session`.

    Raises:
        OSError: the disk failed.
        StorageError: a master key is missing, or a log is damaged.
    """
    if opened := open_session(site, session_id, had_failed=had_failed):
        folder, answer = opened
        try:
            folder.close(answer.meta)
        finally:
            folder.release()


def _remove(site: Site, session_id: str) -> None:
    path = site.sessions / session_id
    for name in site.disk.names(path):
        site.disk.unlink(path / name)
    site.disk.remove_folder(path)


def _remove_tombstones(site: Site, names: list[str]) -> None:
    """Removes tombstones; what they stand for is gone for certain."""
    for name in names:
        site.disk.unlink(site.deleted / name)
    site.disk.sync_folder(site.deleted)


def _read_meta(site: Site, path: Path, session: bytes) -> Meta | None:
    data = read_whole(site.disk, path / META_NAME)
    if data is None:
        return None
    try:
        return open_meta(data, session, site.keys)
    except MetaForgedError as error:
        # Whose session it is stands only there, so it is nobody's; the files stay for whoever can repair them.
        _logger.error("session %s cannot be opened and is treated as unknown: %s", path.name, error)
        return None


def _ends(old: Meta, found: Recovered) -> tuple[tuple[int, int], ...]:
    """(epoch, last seq) of the newest openings so far; of the last ones it stands only in the log."""
    last_seqs = dict(found.ends)
    ends = list(old.ends)
    last_seq = old.session.last_seq
    for epoch in sorted({old.epoch, *(epoch for epoch in last_seqs if epoch > old.epoch)}):
        last_seq = max([last_seq, *(seq for at, seq in last_seqs.items() if at <= epoch)])
        ends.append((epoch, last_seq))
    return newest_ends(ends)


def _remove_drafts(disk: Disk, path: Path) -> None:
    for name in disk.names(path):
        if name.endswith(DRAFT_SUFFIX):
            disk.unlink(path / name)


def _make_durable(disk: Disk, path: Path, data: bytes, *, had_failed: bool) -> None:
    """Sees to it that the file's bytes, which are `data`, survive a power loss."""
    if had_failed:
        write_atomically(disk, path, data)
        return
    handle = disk.open(path, create=False)
    try:
        sync_in_place(disk, path, handle)
    finally:
        disk.close(handle)


def _mend_log(disk: Disk, path: Path, data: bytes, found: Recovered, *, damaged: bool) -> None:
    if damaged:
        _logger.error("%s is damaged: %d of %d bytes are good", path, found.good_bytes, len(data))
    elif found.good_bytes < len(data):
        _logger.warning("%s: %d bytes at its end are dropped or torn", path, len(data) - found.good_bytes)
    mend(disk, path, data, found, damaged=damaged)


def _recover(site: Site, session_id: str, meta: Meta, data: dict[LogName, bytes]) -> dict[LogName, Recovered]:
    session = uuid.UUID(session_id).bytes
    return {
        log: recover(data.get(log, b""), keys=LogKeys(session, log, site.keys.get), state=getattr(meta, log))
        for log in LOGS
    }


def _log_path(folder: Path, log: LogName) -> Path:
    return folder / f"{log}.jsonl"

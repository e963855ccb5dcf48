"""Which sessions are in memory, which are being opened, and which only lie in their files.

Owns opening, eviction, expiry, archiving, deletion and the list of an owner's sessions. What came for a session that is
being opened waits here, and goes back to the hub. Invariant: of a session that is not in memory no request is
unfinished, except one that is about to be opened.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, Literal, NamedTuple

import msgspec

from llmws.protocol import CloseCode, ErrorCode
from llmws.protocol import messages as m
from llmws.session import events as e
from llmws.session.directory import Directory
from llmws.session.recovery import restore
from llmws.session.session import Session
from llmws.session.state import HubState
from llmws.session.turns import Turns
from llmws.store_api import Close, Delete, Failed, Open, Opened, SessionMeta, Surveyed

EVICT_AFTER_S: Final = 30.0
"""A detached session with nothing to do leaves memory after this long, one full of images at once; its files stay."""

MAX_DETACHED: Final = 1024
"""With more detached sessions in memory the longest detached leave at once: hellos alone must not fill it."""

MAX_OPENING: Final = 4
"""Sessions that are opened side by side without anybody asking."""

EXPIRE_EVERY_S: Final = 60.0
KEEP_EVERY_S: Final = 3600.0
"""How often meta of an attached session notes that somebody is there."""

RETRY_S: Final = 5.0
"""After a failure of the disk a session with unfinished requests is opened again so late."""

MAX_LISTED: Final = 1000
MAX_WAITING: Final = 64
"""Messages that wait for one session to be opened."""

Waiting = e.Attach | e.Receive


class _Ending(NamedTuple):
    """A session that its owner deletes: who asked, and who was attached."""

    asker: int
    attached: list[int]


class Shelf:
    """The sessions, wherever they are.

    Args:
        again: takes what waited for a session, now that it is known whether there is one.
    """

    def __init__(self, state: HubState, turns: Turns, *, again: Callable[[Waiting], None]) -> None:
        self._state = state
        self._turns = turns
        self._again = again
        self._directory = Directory(state)
        self._opening: dict[str, list[Waiting]] = {}
        self._opening_for: dict[int, str] = {}
        self._unasked: dict[str, None] = {}
        self._retries: dict[str, float] = {}
        self._expiring: set[str] = set()
        self._unusable: set[str] = set()
        self._ending: dict[str, _Ending] = {}
        self._listing: dict[int, str] = {}
        self._expire_due_s = 0.0

    # --- opening ---------------------------------------------------------------------------------------------------

    def open_for(self, session_id: str, event: Waiting) -> None:
        """Opens a session from its files; the event waits for that."""
        self._open(session_id)
        if isinstance(event, e.Attach):
            self._opening_for[event.connection] = session_id
        self._wait(session_id, event)

    def wait(self, event: e.Receive) -> None:
        """Lets a message wait behind the hello of its connection, if that waits."""
        if (session_id := self._opening_for.get(event.connection)) is not None:
            self._wait(session_id, event)

    def _wait(self, session_id: str, event: Waiting) -> None:
        waiting = self._opening[session_id]
        if len(waiting) < MAX_WAITING:
            waiting.append(event)
        else:
            self.withdraw(event.connection)
            self._state.out.append(e.Disconnect(event.connection, CloseCode.TRY_LATER, "the session is being opened"))

    def withdraw(self, connection: int) -> None:
        """The connection is gone, and what it sent is not wanted any more."""
        waiting = self._opening.get(self._opening_for.pop(connection, ""), [])
        waiting[:] = [each for each in waiting if each.connection != connection]

    def unfinished_found(self, event: e.UnfinishedFound) -> None:
        """Opens what an earlier process left unfinished."""
        self._unasked |= dict.fromkeys(event.session_ids)
        self._open_unasked()

    def _open(self, session_id: str) -> None:
        if session_id not in self._opening and session_id not in self._state.sessions:
            self._opening[session_id] = []
            self._state.out.append(Open(session_id=session_id))

    def _open_unasked(self) -> None:
        """Opens a few at a time, so that a hello does not wait behind hundreds."""
        while self._unasked and len(self._opening) < MAX_OPENING:
            session_id = next(iter(self._unasked))
            del self._unasked[session_id]
            self._open(session_id)

    def opened(self, event: Opened) -> None:
        """A session's files are read."""
        state = self._state
        try:
            session, ended = restore(event, outbox=state.out, now_s=state.clock.monotonic(), rules=state.settings.rules)
        except msgspec.MsgspecError:
            # The records are authentic, so another version wrote them; what it means is not for this one to guess.
            state.out.append(Close(session_id=event.session_id, meta=event.meta))
            text = "another version of llmws wrote this session"
            self.failed(Failed(session_id=event.session_id, message=text, is_opening=True))
            return
        state.sessions[session.id] = session
        state.detached_s[session.id] = state.clock.monotonic()
        session.log.trim(keep_bytes=0)
        self._directory.remove(session.id)
        self._retries.pop(session.id, None)
        self._unusable.discard(session.id)
        for turn in ended:
            self._turns.keep_turn(session, turn.request, turn.terminal)
        self._turns.cancel_abandoned(session)
        self._turns.enqueue(session)
        if event.is_conversation_damaged:
            text = "A part of this session's conversation cannot be read; it was set aside."
            session.emit(m.Log(code="conversation_damaged", message=text))
        session.flush()
        session.drop_if_done()
        waiting = self._take_waiting(session.id)
        if session.id in self._expiring:
            self._expiring.discard(session.id)
            if not waiting and not session.queue:
                self._expire(session)
        for each in waiting:
            self._again(each)  # not to `session`: a message before this one may have ended it

    def unknown(self, session_id: str) -> list[Waiting]:
        """There is no such session. Returns what waited for it."""
        self._directory.remove(session_id)
        self._expiring.discard(session_id)
        self._retries.pop(session_id, None)
        return self._take_waiting(session_id)

    def failed(self, event: Failed) -> None:
        """The log cannot be used: clients are sent away; the next hello, or a retry, opens what the disk has."""
        state, session_id = self._state, event.session_id
        if event.is_opening:
            self._unusable.add(session_id)
            self._expiring.discard(session_id)
            for each in self._take_waiting(session_id):
                if isinstance(each, e.Attach):
                    state.send_away(each.connection, event.message)
                elif isinstance(each.message, m.EndSession):
                    self._end_unopened(session_id, each.connection, event.message)
        if (ending := self._ending.pop(session_id, None)) is not None:
            for connection in {ending.asker, *ending.attached}:
                state.send_away(connection, event.message)
        session = state.sessions.get(session_id)
        if session is not None:
            for attachment in session.attachments():
                state.send_away(attachment.connection, event.message)
            # In memory its last request may have ended, but on the disk it has not.
            if session.queue or not session.log.journal.is_settled:
                self._retries[session_id] = state.clock.monotonic() + RETRY_S
            self._leave(session)

    def _take_waiting(self, session_id: str) -> list[Waiting]:
        waiting = self._opening.pop(session_id, [])
        for each in waiting:
            self._opening_for.pop(each.connection, None)
        self._open_unasked()
        return waiting

    # --- leaving ---------------------------------------------------------------------------------------------------

    def tick(self, now_s: float) -> None:
        """Time has passed: notes who is there, and lets go of sessions that nobody needs in memory, or at all."""
        state = self._state
        uptime_s = state.uptime_s()
        for session in state.attached():
            if uptime_s - session.idle_since_s >= KEEP_EVERY_S:
                session.idle_since_s = uptime_s
                session.keep()
        evict_after_s = min(EVICT_AFTER_S, state.settings.session_ttl_s)
        for session_id, detached_s in list(state.detached_s.items()):
            session = state.sessions[session_id]
            is_crowded = len(state.detached_s) > MAX_DETACHED
            if is_crowded or now_s - detached_s >= evict_after_s or session.conversation.is_heavy:
                self._evict(session)
        for session_id, due_s in list(self._retries.items()):
            if now_s >= due_s:
                self._retries[session_id] = now_s + RETRY_S
                self._unasked[session_id] = None
        if now_s >= self._expire_due_s:
            self._expire_due_s = now_s + EXPIRE_EVERY_S
            taken = self._expiring | self._unusable
            fresh = [each for each in self._directory.expired() if each not in taken]
            self._expiring.update(fresh)
            self._unasked |= dict.fromkeys(fresh)
        self._open_unasked()

    def shut(self) -> None:
        """Closes every session."""
        for session in list(self._state.sessions.values()):
            if session.attachments():
                session.idle_since_s = self._state.uptime_s()
            self._turns.forget(session)
            session.close()

    def _evict(self, session: Session) -> None:
        if session.is_idle():
            session.close()
            self._leave(session)

    def _leave(self, session: Session) -> None:
        """The session leaves memory."""
        if session.is_stored:
            self._directory.put(session.id, session.meta())
        self._turns.forget(session)

    def _expire(self, session: Session) -> None:
        """Drops what nobody came back for, and all of it where there is no conversation to be kept."""
        if self._directory.has_outlived(session.meta()):
            self._leave(session)
            self._state.out.append(Delete(session_id=session.id, keep_tombstone=False))
        else:
            session.expire()
            # First in line to be evicted, when its log is gone.
            del self._state.detached_s[session.id]
            self._state.detached_s = {session.id: -math.inf, **self._state.detached_s}

    # --- deletion --------------------------------------------------------------------------------------------------

    def end(self, session: Session, *, asker: int) -> None:
        """Deletes a session for its owner.

        The asker is told, and everyone who is attached sent away, when the disk has it: what was said to be gone must
        not come back after a kill.
        """
        self._ending[session.id] = _Ending(asker, [each.connection for each in session.attachments()])
        self._leave(session)
        if session.is_stored:
            self._state.out.append(Delete(session_id=session.id))
        else:
            self.deleted(session.id)

    def _end_unopened(self, session_id: str, asker: int, message: str) -> None:
        """Deletes a session that cannot be opened, if the asker is its owner."""
        session = self._state.connections.get(asker)
        if session is None:
            return
        if self._directory.owner(session_id) == session.owner:
            self._ending[session_id] = _Ending(asker, [])
            self._state.out.append(Delete(session_id=session_id))
        else:
            self._state.reject(asker, ErrorCode.STORAGE_FAILED, message)

    def deleted(self, session_id: str) -> None:
        """The session's files are gone."""
        self._directory.remove(session_id)
        self._unusable.discard(session_id)
        if (ending := self._ending.pop(session_id, None)) is not None:
            # The asker's own session may be the one that is gone.
            if ending.asker in ending.attached or self._state.attachment(ending.asker) is not None:
                self._state.send(ending.asker, m.SessionEnded(session_id=session_id))
            for connection in ending.attached:
                self._state.out.append(e.Disconnect(connection, CloseCode.NORMAL, "session ended"))

    # --- an owner's sessions ---------------------------------------------------------------------------------------

    def make_room(self, session: Session) -> bool:
        """Whether the session may take disk: its owner has fewer live sessions than allowed, or one can be archived."""
        if session.is_stored and not session.is_archived:
            return True
        if not self._archive_surplus(session.owner, newcomers=1):
            return False
        if session.is_archived:
            session.is_archived = False
            session.keep()
        return True

    def _archive_surplus(self, owner: str, *, newcomers: int) -> bool:
        """Archives as many of an owner's sessions as are too many; nothing, and False, if not enough can be."""
        state, directory = self._state, self._directory
        in_memory = [each for each in state.sessions.values() if each.owner == owner and _is_live(each)]
        in_files = [(each, meta) for each, meta in directory.of(owner) if directory.is_live(meta)]
        surplus = len(in_memory) + len(in_files) + newcomers - state.settings.max_sessions
        idle = [(each.idle_since_s, each.id) for each in in_memory if each.is_idle() and each.is_acknowledged]
        idle += [(meta.idle_since_s, each) for each, meta in in_files if meta.floor == meta.last_seq]
        if surplus > len(idle):
            return False
        for _, session_id in sorted(idle)[: max(0, surplus)]:
            if (old := state.sessions.get(session_id)) is not None:
                old.is_archived = True
                self._evict(old)
            else:
                directory.archive(session_id)
        return True

    def list_for(self, connection: int, owner: str) -> None:
        """Sends an owner's list of sessions, once it is known."""
        if self._directory.is_complete:
            self._state.send(connection, m.Sessions(sessions=self._entries(owner)))
        else:
            self._listing[connection] = owner

    def surveyed(self, event: Surveyed) -> None:
        """Takes what the store keeps, and answers those who asked for it."""
        self._directory.surveyed(event)
        if self._directory.is_complete:
            for owner in dict.fromkeys(each.owner for each in self._state.sessions.values()):
                self._archive_surplus(owner, newcomers=0)
            asked, self._listing = self._listing, {}
            for connection, owner in asked.items():
                if self._state.attachment(connection) is not None:
                    self.list_for(connection, owner)

    def _entries(self, owner: str) -> list[m.SessionEntry]:
        entries = [
            _entry(each.id, each.meta(), "attached" if each.attachments() else _resting(live=not each.is_archived))
            for each in self._state.sessions.values()
            if each.owner == owner and each.is_stored
        ]
        directory = self._directory
        entries += [_entry(each, meta, _resting(live=directory.is_live(meta))) for each, meta in directory.of(owner)]
        return sorted(entries, key=lambda entry: entry.last_activity, reverse=True)[:MAX_LISTED]


def _is_live(session: Session) -> bool:
    return session.is_stored and not session.is_archived


def _resting(*, live: bool) -> Literal["detached", "archived"]:
    return "detached" if live else "archived"


def _entry(session_id: str, meta: SessionMeta, state: Literal["attached", "detached", "archived"]) -> m.SessionEntry:
    return m.SessionEntry(
        session_id=session_id,
        title=meta.title,
        created=meta.created_s,
        last_activity=meta.last_activity_s,
        state=state,
        messages=meta.messages,
    )

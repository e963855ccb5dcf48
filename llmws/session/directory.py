"""The sessions that are kept but not in memory: whose they are, what lists show of them, when they expire.

Knows them by their meta only and opens none itself. Invariant: a session that is kept is in memory or in the directory,
where it stays while it is opened or deleted; never in both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import msgspec

from llmws.session.state import HubState
from llmws.store_api import SessionMeta, Surveyed

GRACE_S: Final = 3600.0
"""Sessions of an earlier process live as much longer: where a kill found one attached, its meta may be as old."""

DAY_S: Final = 86_400.0


class Directory:
    """Meta of the sessions that are not in memory, by id."""

    def __init__(self, state: HubState) -> None:
        self._state = state
        self._entries: dict[str, SessionMeta] = {}
        self._touched: set[str] = set()
        self.is_complete = False

    def surveyed(self, event: Surveyed) -> None:
        """Takes what an earlier process left; what this one has had in hand meanwhile is known better."""
        for session_id, meta in event.sessions:
            if session_id not in self._touched and session_id not in self._state.sessions:
                self._entries.setdefault(session_id, meta)
        if event.is_last:
            self.is_complete = True
            self._touched.clear()

    def put(self, session_id: str, meta: SessionMeta) -> None:
        """The session has left memory."""
        self._entries[session_id] = msgspec.structs.replace(meta, finished=())

    def remove(self, session_id: str) -> None:
        """The session is in memory, or gone."""
        self._entries.pop(session_id, None)
        if not self.is_complete:
            self._touched.add(session_id)

    def owner(self, session_id: str) -> str | None:
        """Whose a session is, if it is here."""
        meta = self._entries.get(session_id)
        return meta.owner if meta else None

    def of(self, owner: str) -> Iterator[tuple[str, SessionMeta]]:
        """An owner's sessions."""
        return ((each, meta) for each, meta in self._entries.items() if meta.owner == owner)

    def archive(self, session_id: str) -> None:
        """The session no longer counts as live. Kept in memory only: after a restart it counts until room is needed."""
        self._entries[session_id] = msgspec.structs.replace(self._entries[session_id], archived=True)

    def expired(self) -> list[str]:
        """The sessions of which something is to be dropped, since nobody came back for it."""
        now_s = self._state.uptime_s()
        return [each for each, meta in self._entries.items() if now_s >= self._expires_s(meta)]

    def is_live(self, meta: SessionMeta) -> bool:
        """Whether more than its conversation is kept of a session."""
        return (
            not meta.archived and self._state.uptime_s() < self._idle_since_s(meta) + self._state.settings.session_ttl_s
        )

    def has_outlived(self, meta: SessionMeta) -> bool:
        """Whether nothing of an expired session is to be kept."""
        return meta.messages == 0 or self._state.uptime_s() >= self._conversation_expires_s(meta)

    def _expires_s(self, meta: SessionMeta) -> float:
        if meta.messages > 0 and meta.floor == meta.last_seq:
            return self._conversation_expires_s(meta)
        return self._idle_since_s(meta) + self._state.settings.session_ttl_s

    def _conversation_expires_s(self, meta: SessionMeta) -> float:
        ttl_s = self._state.settings.conversation_ttl_d * DAY_S
        return self._idle_since_s(meta) + max(ttl_s, self._state.settings.session_ttl_s) if ttl_s else math.inf

    def _idle_since_s(self, meta: SessionMeta) -> float:
        """Since when a session is surely without a client."""
        is_of_this_process = meta.idle_since_s >= self._state.settings.uptime_s
        return meta.idle_since_s if is_of_this_process else meta.idle_since_s + GRACE_S

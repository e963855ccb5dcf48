"""Looking through all sessions beside the writer: for the hub's lists, and for what an older master key still seals.

Owns a thread of its own; knows nothing of lanes. Reads only `meta.json`, which is replaced as a whole, so a session
that is open meanwhile is not disturbed. Invariant: every `request` is answered by `Surveyed`s, of which one is last.
"""

from __future__ import annotations

import itertools
import logging
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from llmws.errors import StorageError
from llmws.store.disk import read_whole
from llmws.store.folder import META_NAME, Site, list_session_folders
from llmws.store.meta import Meta, MetaForgedError, open_meta, sealing_kid
from llmws.store_api import SessionMeta, Surveyed

_logger = logging.getLogger(__name__)

_BATCH_SESSIONS: Final = 256
_KEY_CHECK_S: Final = 60


class Surveyor:
    """The thread that looks.

    Args:
        site: where the sessions are.
        post: takes the answers.
        reseal: brings a session under the newest master key if nobody has it open, and returns when that is done.
    """

    def __init__(self, site: Site, post: Callable[[Surveyed], None], reseal: Callable[[str], None]) -> None:
        self._site = site
        self._post = post
        self._reseal = reseal
        self._changed = threading.Condition()
        self._requests = 0
        self._closing = False
        self._sealed_kid: int | None = None
        self._thread = threading.Thread(target=self._run, name="llmws-survey", daemon=True)

    def start(self) -> None:
        """Begins to work."""
        self._thread.start()

    def request(self) -> None:
        """Asks for a survey."""
        with self._changed:
            self._requests += 1
            self._changed.notify()

    def close(self) -> None:
        """Stops after the session in hand; what was asked for may stay unanswered."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._requests, _KEY_CHECK_S)
                requests, self._requests = self._requests, 0
            if self._closing:
                return
            self._site.keys.refresh()
            stale: list[str] = []
            for _ in range(requests):
                stale = self._survey()
            if self._sealed_kid != self._site.keys.current:
                self._reseal_all(stale if requests else [each.session_id for each in self._looked() if each.is_stale])

    def _survey(self) -> list[str]:
        """Posts what is found. Returns which sessions an older master key still seals."""
        batch: list[tuple[str, SessionMeta]] = []
        stale: list[str] = []
        for each in self._looked():
            if len(batch) == _BATCH_SESSIONS:
                self._post(Surveyed(sessions=tuple(batch), is_last=False))
                batch = []
            batch.append((each.session_id, msgspec.structs.replace(each.meta.session, finished=())))
            if each.is_stale:
                stale.append(each.session_id)
        if not self._closing:
            self._post(Surveyed(sessions=tuple(batch), is_last=True))
        return stale

    def _looked(self) -> Iterator[Look]:
        return itertools.takewhile(lambda _: not self._closing, look_through(self._site))

    def _reseal_all(self, session_ids: list[str]) -> None:
        kid = self._site.keys.current
        for session_id in session_ids:
            if self._closing:
                return
            self._reseal(session_id)
        self._sealed_kid = kid


class Look(msgspec.Struct, frozen=True):
    """A session as its meta tells it. `is_stale`: a close would bring it under the newest master key."""

    session_id: str
    meta: Meta
    is_stale: bool


def look_through(site: Site) -> Iterator[Look]:
    """All sessions whose meta can be read."""
    try:
        folders = list_session_folders(site)
    except OSError as error:
        _logger.error("the sessions cannot be listed: %s", error.strerror or error)
        return
    for folder in folders:
        session_id = folder.name
        try:
            data = read_whole(site.disk, folder / META_NAME)
            if data is None:
                continue
            meta = open_meta(data, uuid.UUID(session_id).bytes, site.keys)
        except (OSError, StorageError, MetaForgedError) as error:
            _logger.warning("session %s is passed over: %s", session_id, error)
            continue
        kids = {sealing_kid(data), *(segment.kid for segment in meta.conversation.segments)}
        yield Look(session_id, meta, is_stale=kids != {site.keys.current})

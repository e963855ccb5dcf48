"""Tells clients how many requests go before theirs: at acceptance, and now and then while that changes.

Owns the `queue` messages. Invariant: no notice is sent about a request whose record is not safe.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from llmws.protocol import messages as m
from llmws.session.attachment import Attachment
from llmws.session.request import Request
from llmws.session.session import Session
from llmws.session.state import HubState
from llmws.session.turns import Turns

EVERY_S: Final = 1.0
"""A place that changes is told at most so often."""


class _Due(NamedTuple):
    session: Session
    attachment: Attachment
    request: Request
    even_first: bool


class Notices:
    """The `queue` messages of all sessions."""

    def __init__(self, state: HubState, turns: Turns) -> None:
        self._state = state
        self._turns = turns
        self._due: list[_Due] = []

    def tell(self, session: Session, attachment: Attachment, request: Request, *, even_first: bool = False) -> None:
        """Tells a connection the request's place, once turns are given; `even_first`: also if nothing goes before."""
        self._due.append(_Due(session, attachment, request, even_first))

    def turns_given(self) -> None:
        """It is known now who has to wait."""
        if not self._due:
            return
        places = self._turns.places()
        for session, attachment, request, even_first in self._due:
            self._send(session, attachment, request, places, even_first=even_first)
        self._due.clear()

    def tick(self, now_s: float) -> None:
        """Tells those whose place has changed."""
        waiting = [
            (session, session.attachment, request)
            for session in self._state.sessions.values()
            if session.attachment is not None
            for request in session.queue
            if request.state == "queued" and now_s - request.told_s >= EVERY_S
        ]
        if waiting:
            places = self._turns.places()
            for session, attachment, request in waiting:
                self._send(session, attachment, request, places)

    def _send(
        self,
        session: Session,
        attachment: Attachment,
        request: Request,
        places: dict[str, int],
        *,
        even_first: bool = False,
    ) -> None:
        ahead = session.queue.index(request) if request in session.queue else 0
        place = 0 if not session.queue or session.queue[0].is_started else places.get(session.id, 0)
        position = ahead + place
        if not even_first and position in (0, request.told_position):
            return
        request.told_position, request.told_s = position, self._state.clock.monotonic()
        notice = m.Queue(
            request_id=request.id,
            position=position,
            eta_ms=self._turns.eta_ms(session, ahead=ahead, place=place) if position else None,
        )
        session.reply_when_settled(attachment, session.log.journal, request.record_n, notice)

"""The finished requests of a session, so that none of their ids runs twice.

Those whose terminal event is not acknowledged are kept whole; the others as MACs in a ledger that `meta.json` holds.
Invariant: a request moves to the ledger no earlier than its terminal event is acknowledged, and no later than its
`request` record is dropped.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal, NamedTuple

from llmws.protocol import messages as m
from llmws.session.records import ledger_mac
from llmws.session.request import Request
from llmws.store_api import Finished

LEDGER_SIZE: Final = 4096

Terminal = Literal["done", "error"]


class Unacknowledged(NamedTuple):
    """A request that ended: its body, its record, where its events begin (0 without a start) and end, and how."""

    digest: bytes
    record_n: int
    start_seq: int
    seq: int
    terminal: Terminal


class Past(NamedTuple):
    """What is known of a finished request of some id: whether its body was the same, and how it ended.

    `record_n`: of its `request` record, while its events are still in the log.
    """

    is_same: bool
    terminal: Terminal
    record_n: int | None = None


class FinishedRequests:
    """Looks finished requests up by id.

    Attributes:
        key: of the MACs in the ledger; empty until the session is stored.
        unacknowledged: by id, in the order they ended.
    """

    def __init__(self, *, key: bytes = b"", ledger: Iterable[Finished] = ()) -> None:
        self.key = key
        self.unacknowledged: dict[str, Unacknowledged] = {}
        self._ledger = {each.id_mac: each for each in ledger}

    def add(self, request: Request, event: m.Done | m.Error, seq: int) -> None:
        """Takes a request and its terminal event."""
        terminal: Terminal = "done" if isinstance(event, m.Done) else "error"
        self.unacknowledged[request.id] = Unacknowledged(
            request.digest, request.record_n, request.start_seq, seq, terminal
        )

    def find(self, request_id: str, digest: bytes, *, floor: int) -> Past | None:
        """What became of the request of this id, None if there was none as far as the ledger reaches."""
        if (kept := self.unacknowledged.get(request_id)) is not None:
            return Past(kept.digest == digest, kept.terminal, kept.record_n if kept.seq > floor else None)
        if (listed := self._listed(request_id)) is not None:
            return Past(listed.body_mac == ledger_mac(self.key, digest), listed.terminal)
        return None

    def __contains__(self, request_id: str) -> bool:
        return request_id in self.unacknowledged or self._listed(request_id) is not None

    def age(self, floor: int) -> None:
        """Moves what is acknowledged to the ledger, which is bounded."""
        if not self.key:
            return
        for request_id, kept in [(key, each) for key, each in self.unacknowledged.items() if each.seq <= floor]:
            del self.unacknowledged[request_id]
            id_mac = ledger_mac(self.key, request_id.encode())
            self._ledger[id_mac] = Finished(
                id_mac=id_mac, body_mac=ledger_mac(self.key, kept.digest), terminal=kept.terminal
            )
        while len(self._ledger) > LEDGER_SIZE:
            del self._ledger[next(iter(self._ledger))]

    def ledger(self) -> tuple[Finished, ...]:
        """What meta keeps, oldest first."""
        return tuple(self._ledger.values())

    def _listed(self, request_id: str) -> Finished | None:
        return self._ledger.get(ledger_mac(self.key, request_id.encode())) if self._ledger else None

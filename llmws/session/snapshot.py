"""The state of a session's requests, folded from its events, for a client whose position cannot be continued.

Pure. Invariant: a snapshot is whole as of `as_of`, but for what a damaged log has lost.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from llmws.protocol import decode_server
from llmws.protocol import messages as m


class SnapshotBuilder:
    """Folds a session's events, but those lost up to `hole_seq`, into the state of its requests."""

    def __init__(self, *, after_seq: int, as_of: int, floor: int, hole_seq: int, queued: list[str]) -> None:
        self.after_seq = after_seq
        self.as_of = as_of
        self.hole_seq = hole_seq
        self._floor = floor
        self._queued = queued
        self._requests: dict[str, _Folded] = {}

    def add(self, frame: bytes) -> None:
        """Takes the next event."""
        event = decode_server(frame)
        match event:
            case m.Start():
                self._requests.setdefault(event.request_id, _Folded()).state = "running"
            case m.Token():
                folded = self._requests.setdefault(event.request_id, _Folded())
                folded.parts.append(event.data)
                folded.next_index = event.index + len(event.ids)
            case m.Done() | m.Error() if event.request_id is not None:
                if isinstance(event.seq, int) and event.seq <= self._floor:
                    self._requests.pop(event.request_id, None)
                    return
                folded = self._requests.setdefault(event.request_id, _Folded())
                folded.state = "done" if isinstance(event, m.Done) else "error"
                folded.terminal = msgspec.json.decode(frame, type=dict)

    def finish(self, *, epoch: int) -> m.Snapshot:
        """The message."""
        requests = [
            m.RequestSnapshot(
                request_id=request_id,
                state=folded.state,
                text="".join(folded.parts),
                next_index=folded.next_index,
                terminal=folded.terminal,
            )
            for request_id, folded in self._requests.items()
        ]
        requests += [
            m.RequestSnapshot(request_id=request_id, state="queued", text="", next_index=0)
            for request_id in self._queued
            if request_id not in self._requests
        ]
        return m.Snapshot(as_of=self.as_of, epoch=epoch, requests=requests)


class _Folded:
    def __init__(self) -> None:
        self.state: Literal["queued", "running", "done", "error"] = "queued"
        self.parts: list[str] = []
        self.next_index = 0
        self.terminal: dict[str, object] | None = None

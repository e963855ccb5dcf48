"""One session's place in the store on disk: what is queued for it, and what of that can be done next.

Knows neither threads nor files. Invariant: operations leave a lane in the order in which they came.
"""

from __future__ import annotations

import threading
from collections import deque

from llmws.store.folder import SessionFolder
from llmws.store_api import Append, Flushed, LogName, StoreOp


class NotOpenError(Exception):
    """An operation came for a session that is not open, most likely one that has just failed."""


class Reseal:
    """The store's own operation: brings a session that nobody has open under the newest master key."""

    __slots__ = ("done", "session_id")

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        self.done = threading.Event()


class Lane:
    """What is queued for a session, and its folder while it is open.

    `busy` is guarded by the store's lock; `folder` and `failed` belong to the thread that works on the lane.
    """

    __slots__ = ("busy", "failed", "folder", "ops", "session_id")

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        self.ops: deque[StoreOp | Reseal] = deque()
        self.busy = False
        self.failed = False
        self.folder: SessionFolder | None = None

    def opened(self) -> SessionFolder:
        """The folder. Raises NotOpenError."""
        if self.folder is None:
            raise NotOpenError
        return self.folder

    def next_work(self) -> StoreOp | Reseal | list[Append]:
        """Takes the first operation, or all the appends that the queue begins with."""
        op = self.ops.popleft()
        if not isinstance(op, Append):
            return op
        appends = [op]
        while self.ops and isinstance(op := self.ops[0], Append):
            appends.append(op)
            self.ops.popleft()
        return appends

    def progress(self, log: LogName) -> Flushed:
        """How far a log of the session is written. Raises NotOpenError."""
        file = self.opened().logs[log]
        return Flushed(session_id=self.session_id, log=log, written=file.last_n, durable=file.durable_n)

"""The way from an engine's thread to the event loop: a box that holds the results of at most a few steps.

Owns back pressure and merging. Knows no engine. Invariant: every event that was put is taken exactly once, in order,
except that neighbouring chunks of a request may come as one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from llmws.engine_api import Chunk, EngineEvent, ModelProgress

CAPACITY = 2
"""Steps that may wait: one being drained, one being made. More would only add latency: a late loop merges anyway."""


class Mailbox:
    """Thread-safe; one side calls `put`, the other `take`.

    Args:
        notify: called, from the thread that puts, when a `take` is due. Once per `take`, however many puts there are.
        capacity: puts that may wait before `put` blocks.
    """

    def __init__(self, notify: Callable[[], None], *, capacity: int = CAPACITY) -> None:
        self._notify = notify
        self._capacity = capacity
        self._steps: list[tuple[EngineEvent, ...]] = []
        self._changed = threading.Condition()
        self._closed = False

    def put(self, events: Iterable[EngineEvent]) -> None:
        """Adds the events of one step. Blocks while the box is full; once it is closed, never."""
        step = tuple(events)
        if not step:
            return
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._steps) < self._capacity)
            self._steps.append(step)
            due = len(self._steps) == 1
        if due:
            self._notify()

    def take(self) -> list[EngineEvent]:
        """Empties the box."""
        with self._changed:
            steps, self._steps = self._steps, []
            self._changed.notify_all()
        return merge(event for step in steps for event in step)

    def close(self) -> None:
        """Lets every `put` through, now and from now on. What is in the box can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def merge(events: Iterable[EngineEvent]) -> list[EngineEvent]:
    """Each request's chunks as one, in the place of the first; neighbouring progress reports as the newest.

    Chunks of different requests are independent, so they may pass one another; nothing passes a model event.
    """
    merged: list[EngineEvent] = []
    place: dict[str, int] = {}
    for event in events:
        if isinstance(event, Chunk):
            at = place.setdefault(event.key, len(merged))
            if at == len(merged):
                merged.append(event)
            else:
                earlier = merged[at]
                assert isinstance(earlier, Chunk)
                merged[at] = earlier.merged(event)
            continue
        place.clear()
        if isinstance(event, ModelProgress) and merged and isinstance(merged[-1], ModelProgress):
            merged[-1] = event
        else:
            merged.append(event)
    return merged

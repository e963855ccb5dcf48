"""The other side of an engine: what the event loop would hear."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from llmws.engine_api import Chunk, Engine, EngineEvent, ModelFailed, ModelLoaded, ModelRef

TIMEOUT_S = 60


class Listener:
    """Takes what an engine says, as it comes, and keeps it.

    Attributes:
        heard: everything, in order.
        takes: the same, a list for each `take`.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.heard: list[EngineEvent] = []
        self.takes: list[list[EngineEvent]] = []
        self._news = threading.Event()
        engine.start(self._news.set)

    def until(self, enough: Callable[[], bool]) -> None:
        """Listens until `enough`; every wait is for a call of the engine's `notify`."""
        deadline = time.monotonic() + TIMEOUT_S
        while not enough():
            assert self.was_notified(deadline - time.monotonic()), f"heard only {self.heard[-5:]}"
            self.take()

    def was_notified(self, timeout_s: float = TIMEOUT_S) -> bool:
        """Whether the engine has called `notify` since this was last asked, or does within this time."""
        was = self._news.wait(timeout_s)
        self._news.clear()
        return was

    def take(self) -> list[EngineEvent]:
        """What the engine has now, which may be nothing."""
        taken = self.engine.take()
        self.takes.append(taken)
        self.heard += taken
        return taken

    def load(self, model: ModelRef) -> ModelLoaded | ModelFailed:
        """Loads a model and listens to the end of it."""
        before = len(self.models())
        self.engine.load(model)
        self.until(lambda: len(self.models()) > before)
        return self.models()[-1]

    def models(self) -> list[ModelLoaded | ModelFailed]:
        return [event for event in self.heard if isinstance(event, ModelLoaded | ModelFailed)]

    def chunks(self, key: str) -> list[Chunk]:
        return [event for event in self.heard if isinstance(event, Chunk) and event.key == key]

    def ids(self, key: str) -> tuple[int, ...]:
        """What a request has gained so far."""
        return tuple(each for chunk in self.chunks(key) for each in chunk.ids)

    def ended(self, *keys: str) -> bool:
        """Whether each of these requests has come to its end."""
        return all(self.chunks(key) and is_last(self.chunks(key)[-1]) for key in keys)

    def answer(self, *keys: str) -> list[Chunk]:
        """Listens to the end of these requests; each as one chunk."""
        self.until(lambda: self.ended(*keys))
        return [whole(self.chunks(key)) for key in keys]


def is_last(chunk: Chunk) -> bool:
    return chunk.finish is not None or chunk.error_code is not None


def whole(chunks: list[Chunk]) -> Chunk:
    """A request's chunks as one; `merged` asserts that they follow one another."""
    first, *rest = chunks
    for chunk in rest:
        first = first.merged(chunk)
    return first

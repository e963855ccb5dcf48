"""The engine that is put into a measured server: it says something at a pace, and watches the process it is in.

What it says costs next to nothing, and its thread's CPU is counted apart: it is in a real engine's place, not a part of
the event path. Invariant: it goes through the product's own mailbox, so back pressure and merging are real.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Final

import msgspec

from llmws.engine.mailbox import Mailbox
from llmws.engine.scripted import model_info
from llmws.engine_api import Chunk, EngineEvent, GenerationRequest, ModelInfo, ModelLoaded, ModelRef
from llmws.protocol.messages import EngineResources, FinishReason

MODEL: Final = ModelRef(name="scripted", path="models/scripted", location="/scripted", size_bytes=1, source="models")
MAX_RUNNING: Final = 1_000
SAMPLE_S: Final = 0.005
"""Between two looks at how late the event loop is."""


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How fast an engine is.

    Attributes:
        step_s: seconds from step to step; 0: as fast as tokens are taken.
        held: share of that time in which the engine's thread computes in Python and so holds the interpreter.
    """

    step_s: float = 0.0
    held: float = 0.0


class Vitals(msgspec.Struct, frozen=True):
    """What the process tells about itself.

    Attributes:
        engine_cpu_s: CPU of the engine's thread so far.
        late_ms: by how much the event loop was late, in samples since the last question.
        tasks: that asyncio runs.
        timers: that asyncio keeps and nobody has cancelled.
    """

    engine_cpu_s: float
    late_ms: list[float]
    tasks: int
    timers: int


class _Stream:
    def __init__(self, request: GenerationRequest) -> None:
        self.key = request.key
        self.index = 0
        self.left = request.max_new_tokens


class PacedEngine:
    """Implements `Engine`. Gives every request a token a step, until it has as many as it asked for.

    Args:
        pace: how fast.
        questions: anything that comes here is answered with `Vitals`; when it ends, so does the process.
    """

    def __init__(self, pace: Pace, questions: Connection) -> None:
        self._pace = pace
        self._questions = questions
        self._changed = threading.Condition()
        self._streams: dict[str, _Stream] = {}
        self._closed = False
        self._cpu_s = 0.0
        self._late_ms: list[float] = []
        self._thread = threading.Thread(target=self._run, name="paced-engine", daemon=True)

    def start(self, notify: Callable[[], None]) -> None:
        """See `Engine.start`; called on the event loop, which is watched from here on."""
        self._mailbox = Mailbox(notify)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._questions.fileno(), self._answer)
        self._sample(self._loop.time())
        self._thread.start()

    def load(self, model: ModelRef, *, again: bool = False) -> None:  # noqa: ARG002 - no load fails
        """See `Engine.load`."""
        self._mailbox.put([ModelLoaded(info=_info(model))])

    def submit(self, request: GenerationRequest) -> None:
        """See `Engine.submit`."""
        with self._changed:
            self._streams[request.key] = _Stream(request)
            self._changed.notify()

    def withdraw(self, name: str) -> None:
        """See `Engine.withdraw`. A load ends where it is asked for."""

    def cancel(self, key: str) -> None:
        """See `Engine.cancel`."""
        with self._changed:
            self._streams.pop(key, None)

    def take(self) -> list[EngineEvent]:
        """See `Engine.take`."""
        return self._mailbox.take()

    def load_state(self) -> EngineResources:
        """See `Engine.load_state`."""
        return EngineResources(running=len(self._streams), queued=0, tokens_per_s=0.0)

    def close(self) -> None:
        """See `Engine.close`."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._mailbox.close()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._streams)
                if self._closed:
                    return
            began_s = time.monotonic()
            self._mailbox.put(self._step())
            computed_s = began_s + self._pace.step_s * self._pace.held
            while time.monotonic() < computed_s:
                pass
            self._cpu_s = time.thread_time()
            time.sleep(max(0.0, began_s + self._pace.step_s - time.monotonic()))

    def _step(self) -> list[Chunk]:
        # With a pace, a token's text is when it was made, on a clock that all processes share.
        text = f" {time.monotonic_ns()}" if self._pace.step_s else " word123"
        chunks = []
        with self._changed:
            for stream in list(self._streams.values()):
                stream.left -= 1
                finish: FinishReason | None = None if stream.left else "length"
                chunks.append(
                    Chunk(key=stream.key, index=stream.index, ids=(1_000 + stream.index,), text=text, finish=finish)
                )
                stream.index += 1
                if finish is not None:
                    del self._streams[stream.key]
        return chunks

    def _sample(self, due_s: float) -> None:
        now_s = self._loop.time()
        self._late_ms.append((now_s - due_s) * 1e3)
        self._loop.call_at(now_s + SAMPLE_S, self._sample, now_s + SAMPLE_S)

    def _answer(self) -> None:
        try:
            self._questions.recv()
            # asyncio tells nobody of its timers but by this list, which `asyncio.base_events` has had ever since.
            timers = sum(not each.cancelled() for each in self._loop._scheduled)
            self._questions.send(Vitals(self._cpu_s, self._late_ms, len(asyncio.all_tasks(self._loop)), timers))
        except (EOFError, OSError):
            os._exit(1)
        self._late_ms = []


def _info(model: ModelRef) -> ModelInfo:
    return model_info(model, max_context=65_536, max_running=MAX_RUNNING)

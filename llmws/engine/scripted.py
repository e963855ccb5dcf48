"""A deterministic engine for tests: it says what its script says, through the same interface as a real one.

Knows neither torch nor models. Invariant: token n of a request depends on nothing but its script, so a stream that was
cut and is continued from its emitted ids says the same as one that was not.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping, Sequence

import msgspec

from llmws.engine.mailbox import CAPACITY, Mailbox
from llmws.engine_api import (
    Chunk,
    EngineEvent,
    GenerationRequest,
    ModelFailed,
    ModelInfo,
    ModelLoaded,
    ModelProgress,
    ModelRef,
    ModelUnloaded,
)
from llmws.protocol import ErrorCode
from llmws.protocol.messages import EngineResources, FinishReason


class Step(msgspec.Struct, frozen=True):
    """What a request gains in one step.

    Attributes:
        tokens: (id, text) pairs; an EOS token's text is empty.
        finish: ends the request.
        error: ends the request with this code instead.
    """

    tokens: tuple[tuple[int, str], ...] = ()
    finish: FinishReason | None = None
    error: ErrorCode | None = None


Script = Sequence[Step] | Callable[[GenerationRequest], Sequence[Step]]

HELLO: tuple[Step, ...] = (
    Step(((1, "He"),)),
    Step(((2, "l"), (3, "lo"), (0, "")), finish="stop"),
)
"""`Hello` in two steps: the model of the golden transcripts."""


def model_info(model: ModelRef, *, max_context: int = 2048, max_running: int = 4) -> ModelInfo:
    """A plausible `ModelInfo` for a model that does not exist; digests follow the name."""
    return ModelInfo(
        ref=model,
        digest=model.name.encode().hex().ljust(64, "0")[:64],
        tokenizer_digest=model.name.encode().hex().rjust(64, "0")[-64:],
        engine="scripted/1",
        device="cpu",
        dtype="float32",
        max_context=max_context,
        max_running=max_running,
    )


class ScriptedEngine:
    """An `Engine` whose answers are given.

    With `interval_s` None nothing moves by itself: loads end as soon as there is room, and each `step()` takes every
    running request one script step further, in the calling thread. With a number a thread steps, waiting that long
    between steps.

    Args:
        script: the steps of every request, or a function from a request to its steps.
        models: what a load of that name yields; others get `model_info(ref)`.
        broken: names whose load fails, with the message.
        max_resident: models that fit side by side.
        interval_s: seconds between steps, or None.
    """

    def __init__(
        self,
        script: Script = HELLO,
        *,
        models: Mapping[str, ModelInfo] | None = None,
        broken: Mapping[str, str] | None = None,
        max_resident: int = 3,
        interval_s: float | None = None,
    ) -> None:
        self._script = script
        self._models = models or {}
        self._broken = broken if broken is not None else {}
        self._max_resident = max_resident
        self._interval_s = interval_s
        self._resident: dict[str, ModelInfo] = {}
        self._newest: ModelRef | None = None
        self._queue: list[_Stream | ModelRef] = []
        self._running: list[_Stream] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    def start(self, notify: Callable[[], None]) -> None:
        """See `Engine.start`."""
        manual = self._interval_s is None
        self._mailbox = Mailbox(notify, capacity=sys.maxsize if manual else CAPACITY)
        if not manual:
            self._thread = threading.Thread(target=self._run, name="scripted-engine")
            self._thread.start()

    def load(self, model: ModelRef, *, again: bool = False) -> None:  # noqa: ARG002 - see below
        """See `Engine.load`. Nothing is remembered of a load that failed: it costs nothing."""
        self._enqueue(model)

    def withdraw(self, name: str) -> None:
        """See `Engine.withdraw`."""
        with self._changed:
            self._queue = [each for each in self._queue if not (isinstance(each, ModelRef) and each.name == name)]
            events = self._admit() if self._thread is None else []
        self._mailbox.put(events)

    def submit(self, request: GenerationRequest) -> None:
        """See `Engine.submit`."""
        steps = self._script(request) if callable(self._script) else self._script
        self._enqueue(_Stream(request, steps))

    def cancel(self, key: str) -> None:
        """See `Engine.cancel`."""
        with self._changed:
            self._running = [s for s in self._running if s.request.key != key]
            self._queue = [s for s in self._queue if isinstance(s, ModelRef) or s.request.key != key]

    def take(self) -> list[EngineEvent]:
        """See `Engine.take`."""
        return self._mailbox.take()

    def load_state(self) -> EngineResources:
        """See `Engine.load_state`."""
        with self._changed:
            return EngineResources(running=len(self._running), queued=len(self._queue), tokens_per_s=0.0)

    def close(self) -> None:
        """See `Engine.close`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._mailbox.close()
            self._thread.join()

    def step(self) -> bool:
        """Takes every running request one step further, after any load. Returns whether anything happened."""
        with self._changed:
            events = self._admit()
            events += [chunk for stream in self._running if (chunk := stream.advance()) is not None]
            self._running = [stream for stream in self._running if not stream.ended]
        self._mailbox.put(events)
        return bool(events)

    def unload(self, name: str) -> bool:
        """Takes a model out of memory, as if for another one. False if it is not there, or busy."""
        with self._changed:
            if name not in self._resident or self._count(name):
                return False
            del self._resident[name]
        self._mailbox.put([ModelUnloaded(name=name)])
        return True

    @property
    def keys(self) -> list[str]:
        """The requests that have not ended, the oldest first."""
        with self._changed:
            waiting = [s for s in self._queue if not isinstance(s, ModelRef)]
            return [stream.request.key for stream in (*self._running, *waiting)]

    @property
    def resident(self) -> frozenset[str]:
        """The names of the models in memory."""
        with self._changed:
            return frozenset(self._resident)

    @property
    def wanted(self) -> frozenset[str]:
        """The names of the models whose load was asked for and has not begun."""
        with self._changed:
            return frozenset(each.name for each in self._queue if isinstance(each, ModelRef))

    def _enqueue(self, item: _Stream | ModelRef) -> None:
        with self._changed:
            self._queue.append(item)
            self._changed.notify_all()
            events = self._admit() if self._thread is None else []
        self._mailbox.put(events)

    def _admit(self) -> list[EngineEvent]:
        """Moves what may start out of the queue; nothing overtakes."""
        events: list[EngineEvent] = []
        while self._queue:
            item = self._queue[0]
            if isinstance(item, ModelRef):
                # Also one that is there already: what came before a load is told before it.
                if self._running if item.name in self._resident else not self._has_room():
                    break
                events += self._load(item)
            elif (model := item.request.model or self._newest) is None:
                events.append(item.fail(ErrorCode.NO_MODEL, "no model is loaded"))
            elif (info := self._resident.get(model.name)) is None:
                if not self._has_room():
                    break
                events += self._load(model)
                if model.name in self._resident:
                    continue
                events.append(item.fail(ErrorCode.MODEL_FAILED, self._broken[model.name]))
            elif self._count(model.name) >= info.max_running:
                break
            else:
                self._touch(model.name)
                item.model = model.name
                self._running.append(item)
            self._queue.pop(0)
        return events

    def _count(self, name: str) -> int:
        return sum(stream.model == name for stream in self._running)

    def _touch(self, name: str) -> None:
        """The model that was used last comes last."""
        self._resident[name] = self._resident.pop(name)

    def _has_room(self) -> bool:
        """Whether one more model fits, if need be in the place of an idle one."""
        return len(self._resident) < self._max_resident or any(not self._count(name) for name in self._resident)

    def _load(self, model: ModelRef) -> list[EngineEvent]:
        """Loads a model. A broken one is found out before anything makes room for it."""
        if model.name in self._broken:
            kept = self._resident.get(self._newest.name) if self._newest is not None else None
            message = self._broken[model.name]
            return [ModelFailed(name=model.name, code=ErrorCode.MODEL_FAILED, message=message, kept=kept)]
        events: list[EngineEvent] = []
        if model.name not in self._resident:
            if len(self._resident) >= self._max_resident:
                idle = next(name for name in self._resident if not self._count(name))
                del self._resident[idle]
                events.append(ModelUnloaded(name=idle))
            events.append(ModelProgress(name=model.name, bytes=model.size_bytes, total_bytes=model.size_bytes))
            self._resident[model.name] = self._models.get(model.name) or model_info(model)
        self._touch(model.name)
        self._newest = model
        return [*events, ModelLoaded(info=self._resident[model.name])]

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._queue or self._running)
                if self._closed:
                    return
            self.step()
            with self._changed:
                self._changed.wait_for(lambda: self._closed, timeout=self._interval_s)


class _Stream:
    """A request on its way through its script."""

    def __init__(self, request: GenerationRequest, steps: Sequence[Step]) -> None:
        self.request = request
        self.model = ""
        self.ended = False
        said = [pair for step in steps for pair in step.tokens]
        emitted = said[: len(request.emitted_ids)]
        diverged = tuple(token for token, _ in emitted) != request.emitted_ids
        self._steps = [Step(error=ErrorCode.MODEL_FAILED)] if diverged else _rest(steps, len(emitted))
        # What was sampled before the cut but had not been sent.
        self._text = "".join(text for _, text in emitted).removeprefix(request.emitted_text)
        self._index = len(request.emitted_ids)

    def advance(self) -> Chunk | None:
        """The chunk of the next step, None if it brings nothing."""
        step = self._steps.pop(0) if self._steps else Step(finish="stop")
        room = self.request.max_new_tokens - self._index
        tokens = step.tokens[:room]
        finish, error = step.finish, step.error
        if len(tokens) == room and error is None and (finish is None or len(step.tokens) > room):
            finish = "length"
        chunk = Chunk(
            key=self.request.key,
            index=self._index,
            ids=tuple(token for token, _ in tokens),
            text=self._text + "".join(text for _, text in tokens),
            finish=None if error else finish,
            error_code=error,
            error_message="the script says so" if error else "",
        )
        self._index += len(tokens)
        self._text = ""
        self.ended = finish is not None or error is not None
        return chunk if chunk.ids or chunk.text or self.ended else None

    def fail(self, code: ErrorCode, message: str) -> Chunk:
        """The chunk that ends it before it began."""
        key, index = self.request.key, len(self.request.emitted_ids)
        return Chunk(key=key, index=index, error_code=code, error_message=message)


def _rest(steps: Sequence[Step], skip: int) -> list[Step]:
    """The steps without their first `skip` tokens. A step that was wholly emitted is kept only for its end."""
    rest = []
    for step in steps:
        kept = step.tokens[skip:]
        skip = max(0, skip - len(step.tokens))
        if kept or step.finish or step.error or not step.tokens:
            rest.append(msgspec.structs.replace(step, tokens=kept))
    return rest

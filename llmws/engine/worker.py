"""The one thread that owns the device.

Owns the order of everything that touches the model: loads, admission, steps, the end of each stream. Knows neither
torch nor sessions. Invariant: every request that is not cancelled ends in exactly one last chunk, and no request's
error reaches another request or the thread.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable

from llmws.engine.mailbox import Mailbox
from llmws.engine.runner import DeviceLostError, Loader, Runner, Token
from llmws.engine.text import Completion
from llmws.engine_api import (
    Chunk,
    EngineEvent,
    GenerationRequest,
    ModelFailed,
    ModelInfo,
    ModelLoaded,
    ModelProgress,
    ModelRef,
)
from llmws.errors import LlmwsError
from llmws.protocol import ErrorCode
from llmws.protocol.messages import EngineResources

log = logging.getLogger(__name__)

_RATE_WINDOW_S = 5.0
ENGINE_THREAD = "llmws-engine"
CLOSE_TIMEOUT_S = 2.0
"""A step ends well within; a load of a large model, or the import of torch, is not waited for."""


class _ClosedError(Exception):
    """Leaves a load that nobody waits for any more."""


def exit_process(error: Exception) -> None:
    """Ends the process at once, with status 70: the log holds every stream, and the next process continues them."""
    log.critical("the engine cannot go on: %s", error, exc_info=error)
    logging.shutdown()
    os._exit(os.EX_SOFTWARE)


class Worker:
    """An `Engine`: one model at a time, its streams stepped together.

    Requests and loads wait in one line, in the order in which they came: a load starts when everything before it has
    ended, and what comes after it runs on its model.

    Args:
        make_loader: called in the worker's thread at the first load; it may take its time.
        on_fatal: called there when the device is lost, or on a bug of the worker's own; afterwards the thread ends.
        clock_s: monotonic seconds.
    """

    def __init__(
        self,
        make_loader: Callable[[], Loader],
        *,
        on_fatal: Callable[[Exception], None] = exit_process,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._make_loader = make_loader
        self._on_fatal = on_fatal
        self._clock_s = clock_s
        self._changed = threading.Condition()
        self._inbox: deque[GenerationRequest | ModelRef | str] = deque()
        self._closed = False
        self._rate: deque[tuple[float, int]] = deque()
        self._thread: threading.Thread | None = None
        # The thread's own from here on.
        self._loader: Loader | None = None
        self._runner: Runner | None = None
        self._line: deque[GenerationRequest | ModelRef] = deque()
        self._running: dict[str, _Stream] = {}

    def start(self, notify: Callable[[], None]) -> None:
        """See `Engine.start`."""
        self._mailbox = Mailbox(notify)
        # A daemon: when the rest of the process fails before `close`, it must not wait for a model to load.
        self._thread = threading.Thread(target=self._run, name=ENGINE_THREAD, daemon=True)
        self._thread.start()

    def load(self, model: ModelRef) -> None:
        """See `Engine.load`."""
        self._tell(model)

    def submit(self, request: GenerationRequest) -> None:
        """See `Engine.submit`."""
        self._tell(request)

    def cancel(self, key: str) -> None:
        """See `Engine.cancel`."""
        self._tell(key)

    def take(self) -> list[EngineEvent]:
        """See `Engine.take`."""
        return self._mailbox.take()

    def load_state(self) -> EngineResources:
        """See `Engine.load_state`. The rate is that of the last seconds, in which prompts may have been read too."""
        with self._changed:
            running, queued = len(self._running), len(self._line) + len(self._inbox)
            recent = [entry for entry in self._rate if entry[0] > self._clock_s() - _RATE_WINDOW_S]
        span_s = self._clock_s() - recent[0][0] if recent else 0.0
        rate = sum(count for _, count in recent) / max(span_s, 1.0)
        return EngineResources(running=running, queued=queued, tokens_per_s=round(rate, 1))

    def close(self) -> None:
        """See `Engine.close`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._mailbox.close()
            self._thread.join(CLOSE_TIMEOUT_S)

    def _tell(self, command: GenerationRequest | ModelRef | str) -> None:
        with self._changed:
            self._inbox.append(command)
            self._changed.notify_all()

    # --- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._receive():
                self._mailbox.put(self._admit())
                self._mailbox.put(self._step())
        except _ClosedError:
            pass
        except Exception as error:  # noqa: BLE001 - a thread that ends unseen would leave every stream hanging
            self._on_fatal(error)
        finally:
            self._unload()

    def _receive(self) -> bool:
        """Waits until there is something to do and takes the inbox in. False when the worker is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._inbox or self._running or self._line)
            commands = list(self._inbox)
            self._inbox.clear()
            for command in commands:
                if isinstance(command, str):
                    self._forget(command)
                else:
                    self._line.append(command)
            return not self._closed

    def _forget(self, key: str) -> None:
        if self._running.pop(key, None) is not None and self._runner is not None:
            self._runner.free(key)
        self._line = deque(r for r in self._line if isinstance(r, ModelRef) or r.key != key)

    def _admit(self) -> list[EngineEvent]:
        """Starts what may start from the front of the line; nothing overtakes."""
        events: list[EngineEvent] = []
        while self._line:
            item = self._line[0]
            if isinstance(item, ModelRef):
                # A load takes minutes and tells of its progress: what came before it is told first.
                if not self._running and not events:
                    self._line.popleft()
                    events.append(self._load(item))
                break
            if self._running and not self._may_join(item):
                break
            self._line.popleft()
            if (chunk := self._start(item)) is not None:
                events.append(chunk)
        return events

    def _may_join(self, request: GenerationRequest) -> bool:
        runner = self._runner
        return runner is None or (len(self._running) < runner.info.max_running and runner.has_room(request))

    def _start(self, request: GenerationRequest) -> Chunk | None:
        """Takes a request on. A chunk only if that is already its end."""
        stream = _Stream(request)
        runner = self._runner
        if runner is None:
            return stream.fail(ErrorCode.NO_MODEL, "no model is loaded")
        try:
            stream.replay(runner)
            if (chunk := stream.last_chunk()) is not None:
                return chunk
            runner.start(request)
        except DeviceLostError:
            raise
        except Exception as error:  # noqa: BLE001 - one request's error is never the thread's
            return stream.fail(*_reason(error))
        self._running[request.key] = stream
        return None

    def _step(self) -> list[Chunk]:
        """One step for everything that runs."""
        runner = self._runner
        if runner is None or not self._running:
            return []
        try:
            outcomes = runner.step(list(self._running))
        except DeviceLostError:
            raise
        except Exception as error:  # noqa: BLE001 - a runner that breaks its promise ends its streams, not the thread
            code, message = _reason(error)
            chunks = [stream.fail(code, message) for stream in self._running.values()]
        else:
            chunks = [self._running[key].add(outcome) for key, outcome in outcomes.items()]
            tokens = sum(len(chunk.ids) for chunk in chunks)
            with self._changed:
                self._rate.append((self._clock_s(), tokens))
                while self._rate[0][0] < self._clock_s() - _RATE_WINDOW_S:
                    self._rate.popleft()
        for chunk in chunks:
            if chunk.finish is not None or chunk.error_code is not None:
                del self._running[chunk.key]
                runner.free(chunk.key)
        return chunks

    # --- models ----------------------------------------------------------------------------------------------------

    def _load(self, model: ModelRef) -> ModelLoaded | ModelFailed:
        """Replaces the model.

        If both fit, the old one stays until the new one is there; else it goes first, and comes back if that fails.
        """
        old = self._runner.info if self._runner is not None else None
        try:
            if self._loader is None:
                self._loader = self._make_loader()
            if self._runner is not None and not self._loader.fits(model):
                self._unload()
            new = self._read(self._loader, model)
        except (_ClosedError, DeviceLostError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever a model folder holds, the old model goes on
            code, message = _reason(error, f"{model.name} cannot be loaded; the server's log says why")
        else:
            self._unload()
            self._runner = new
            return ModelLoaded(info=new.info)
        # Out here the error is gone, and with it what its frames held of the new model.
        return ModelFailed(name=model.name, code=code, message=message, kept=self._restore(old))

    def _restore(self, old: ModelInfo | None) -> ModelInfo | None:
        """The model that goes on after a failed load; it is read again if it had to make room."""
        if self._runner is not None or old is None or self._loader is None:
            return old
        try:
            self._runner = self._read(self._loader, old.ref)
        except (_ClosedError, DeviceLostError):
            raise
        except Exception:  # the second failure in a row; the server stands without a model until the next load
            log.exception("%s could not be loaded again", old.ref.name)
            return None
        return self._runner.info

    def _read(self, loader: Loader, model: ModelRef) -> Runner:
        def progress(read_bytes: int, total_bytes: int) -> None:
            if self._closed:
                raise _ClosedError
            self._mailbox.put([ModelProgress(name=model.name, bytes=read_bytes, total_bytes=total_bytes)])

        reclaimable = self._runner.held_bytes if self._runner is not None else 0
        return loader.load(model, progress=progress, reclaimable_bytes=reclaimable)

    def _unload(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            runner.close()


class _Stream:
    """A request that is on, and what it has said."""

    def __init__(self, request: GenerationRequest) -> None:
        self._request = request
        self._index = len(request.emitted_ids)
        self._completion: Completion | None = None

    def replay(self, runner: Runner) -> None:
        self._completion = Completion(self._request, decode=runner.decode, eos_ids=runner.eos_ids)

    def last_chunk(self) -> Chunk | None:
        """The end of a request whose emitted ids are complete already."""
        assert self._completion is not None
        if self._completion.finish is None:
            return None
        return Chunk(
            key=self._request.key, index=self._index, text=self._completion.take(), finish=self._completion.finish
        )

    def add(self, outcome: Token | LlmwsError) -> Chunk:
        """The chunk for a step's outcome. A fault of the tokenizer is this request's own."""
        assert self._completion is not None
        if isinstance(outcome, LlmwsError):
            return self.fail(*_reason(outcome))
        try:
            self._completion.push(outcome.id)
        except Exception as error:  # noqa: BLE001 - one request's error is never the thread's
            return self.fail(*_reason(error))
        chunk = Chunk(
            key=self._request.key,
            index=self._index,
            ids=(outcome.id,),
            text=self._completion.take(),
            logprobs=None if outcome.logprob is None else (outcome.logprob,),
            finish=self._completion.finish,
        )
        self._index += 1
        return chunk

    def fail(self, code: ErrorCode, message: str) -> Chunk:
        """The chunk that ends the request with an error."""
        return Chunk(key=self._request.key, index=self._index, error_code=code, error_message=message)


def _reason(error: Exception, otherwise: str = "the model failed on this request") -> tuple[ErrorCode, str]:
    """Code and message for a person. What was not raised on purpose goes to the log, not to a client."""
    if isinstance(error, LlmwsError):
        return error.code, str(error)
    if isinstance(error, MemoryError):
        return ErrorCode.MODEL_OOM, "not enough memory"
    log.error("%s", otherwise, exc_info=error)
    return ErrorCode.MODEL_FAILED, otherwise

"""The one thread that owns the device.

Owns the order of everything that touches the models: loads, admission, steps, the end of each stream. Knows neither
torch nor sessions. Invariant: every request that is not cancelled ends in exactly one last chunk, and no request's
error reaches another request or the thread.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from llmws.engine.mailbox import Mailbox
from llmws.engine.residents import Resident, Residents
from llmws.engine.runner import DeviceLostError, Loader, StoppedError
from llmws.engine.stream import Stream, reason
from llmws.engine_api import Chunk, EngineEvent, GenerationRequest, ModelFailed, ModelProgress, ModelRef
from llmws.protocol import ErrorCode
from llmws.protocol.messages import EngineResources

log = logging.getLogger(__name__)

_RATE_WINDOW_S = 5.0
ENGINE_THREAD = "llmws-engine"
CLOSE_TIMEOUT_S = 2.0
"""A step ends well within; a load of a large model, or the import of torch, is not waited for."""


class _Load(NamedTuple):
    model: ModelRef
    again: bool


class _Cancel(NamedTuple):
    key: str


class _Withdraw(NamedTuple):
    name: str


_Item = GenerationRequest | _Load


def exit_process(error: Exception) -> None:
    """Ends the process at once, with status 70: the log holds every stream, and the next process continues them."""
    log.critical("the engine cannot go on: %s", error, exc_info=error)
    logging.shutdown()
    os._exit(os.EX_SOFTWARE)


class Worker:
    """An `Engine`: the streams of each resident model stepped together, one model after the other.

    Requests and loads wait in one line, in the order in which they came, and nothing overtakes: while the first has to
    wait for memory, so do all, and what is on drains. During a load, what is on goes on.

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
        self._on_fatal = on_fatal
        self._clock_s = clock_s
        self._changed = threading.Condition()
        self._inbox: deque[_Item | _Cancel | _Withdraw] = deque()
        self._closed = False
        self._rate: deque[tuple[float, int]] = deque()
        self._thread: threading.Thread | None = None
        # The thread's own from here on.
        self._residents = Residents(make_loader, lambda event: self._mailbox.put([event]))
        self._line: deque[_Item] = deque()
        self._running: dict[str, Resident] = {}

    def start(self, notify: Callable[[], None]) -> None:
        """See `Engine.start`."""
        self._mailbox = Mailbox(notify)
        # A daemon: when the rest of the process fails before `close`, it must not wait for a model to load.
        self._thread = threading.Thread(target=self._run, name=ENGINE_THREAD, daemon=True)
        self._thread.start()

    def load(self, model: ModelRef, *, again: bool = False) -> None:
        """See `Engine.load`."""
        self._tell(_Load(model, again))

    def withdraw(self, name: str) -> None:
        """See `Engine.withdraw`."""
        self._tell(_Withdraw(name))

    def submit(self, request: GenerationRequest) -> None:
        """See `Engine.submit`."""
        self._tell(request)

    def cancel(self, key: str) -> None:
        """See `Engine.cancel`."""
        self._tell(_Cancel(key))

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

    def _tell(self, command: _Item | _Cancel | _Withdraw) -> None:
        with self._changed:
            self._inbox.append(command)
            self._changed.notify_all()

    # --- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._receive():
                self._mailbox.put(self._admit())
                self._mailbox.put(self._step())
        except StoppedError:
            pass
        except Exception as error:  # noqa: BLE001 - a thread that ends unseen would leave every stream hanging
            self._on_fatal(error)
        finally:
            self._residents.close()

    def _receive(self) -> bool:
        """Waits until there is something to do and takes the inbox in. False when the worker is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._inbox or self._running or self._line)
            self._take_in()
            return not self._closed

    def _take_in(self) -> None:
        """Puts what came into the line; what takes back takes effect. Under the lock."""
        commands = list(self._inbox)
        self._inbox.clear()
        for command in commands:
            match command:
                case _Cancel(key):
                    if key in self._running:
                        self._end(key)
                    self._line = deque(item for item in self._line if isinstance(item, _Load) or item.key != key)
                case _Withdraw(name):
                    kept = (item for item in self._line if not isinstance(item, _Load) or item.model.name != name)
                    self._line = deque(kept)
                case _:
                    self._line.append(command)

    def _admit(self) -> list[EngineEvent]:
        """Starts what may start from the front of the line; nothing overtakes."""
        events: list[EngineEvent] = []
        while self._line:
            item = self._line[0]
            model = item.model or self._residents.last
            outcome: Sequence[EngineEvent] | None
            if model is None:
                assert isinstance(item, GenerationRequest)
                outcome = [Stream(item).fail(ErrorCode.NO_MODEL, "no model is loaded")]
                self._line.popleft()
            elif isinstance(item, GenerationRequest) and (resident := self._residents.get(model)) is not None:
                if (outcome := self._start(item, resident)) is not None:
                    self._line.popleft()
            else:
                # A load takes minutes and tells of its progress: what came before it is told first.
                outcome = None if events else self._load(item, model)
            if outcome is None:
                break
            events += outcome
        return events

    def _start(self, request: GenerationRequest, resident: Resident) -> list[Chunk] | None:
        """Takes a request on. A chunk only if that is already its end; None: it has to wait."""
        stream = Stream(request)
        if resident.streams and not resident.may_join(request):
            return None
        try:
            if not resident.runner.pool_bytes and not self._residents.open_pool(resident):
                return None
            stream.replay(resident.runner)
            if (chunk := stream.last_chunk()) is not None:
                return [chunk]
            resident.runner.start(request)
        except DeviceLostError:
            raise
        except Exception as error:  # noqa: BLE001 - one request's error is never the thread's
            return [stream.fail(*reason(error))]
        resident.streams[request.key] = stream
        self._running[request.key] = resident
        return []

    def _step(self) -> list[Chunk]:
        """One step for everything that runs, one model after the other."""
        chunks = [chunk for resident in self._residents if resident.streams for chunk in _stepped(resident)]
        if chunks:
            tokens = sum(len(chunk.ids) for chunk in chunks)
            with self._changed:
                self._rate.append((self._clock_s(), tokens))
                while self._rate[0][0] < self._clock_s() - _RATE_WINDOW_S:
                    self._rate.popleft()
        for chunk in chunks:
            if chunk.finish is not None or chunk.error_code is not None:
                self._end(chunk.key)
        return chunks

    def _end(self, key: str) -> None:
        resident = self._running.pop(key)
        del resident.streams[key]
        resident.runner.free(key)
        self._residents.touch(resident)

    # --- models ----------------------------------------------------------------------------------------------------

    def _load(self, item: _Item, model: ModelRef) -> list[EngineEvent] | None:
        """Loads the model that the line's first item needs; a request stays there. None: it has to wait."""
        left_s = self._clock_s()

        def progress(read_bytes: int, total_bytes: int) -> None:
            nonlocal left_s
            self._mailbox.put([ModelProgress(name=model.name, bytes=read_bytes, total_bytes=total_bytes)])
            self._go_on(until_s=2 * self._clock_s() - left_s)
            left_s = self._clock_s()

        outcome = self._residents.load(model, progress, again=isinstance(item, _Load) and item.again)
        if outcome is None:
            return None
        # It may have been taken back meanwhile.
        if self._line and self._line[0] is item and (isinstance(item, _Load) or isinstance(outcome, ModelFailed)):
            self._line.popleft()
            if isinstance(item, GenerationRequest) and isinstance(outcome, ModelFailed):
                return [outcome, Stream(item).fail(outcome.code, outcome.message)]
        return [outcome]

    def _go_on(self, *, until_s: float) -> None:
        """Between two parts of a load: steps what runs, for as long as the load took since; half the time is its.

        Raises:
            StoppedError: the worker is closed.
        """
        while True:
            with self._changed:
                self._take_in()
                if self._closed:
                    raise StoppedError
            self._mailbox.put(self._step())
            if not self._running or self._clock_s() >= until_s:
                return


def _stepped(resident: Resident) -> list[Chunk]:
    """One step for all streams of a model."""
    streams = resident.streams
    try:
        outcomes = resident.runner.step(list(streams))
    except DeviceLostError:
        raise
    except Exception as error:  # noqa: BLE001 - a runner that breaks its promise ends its streams, not the thread
        code, message = reason(error)
        return [stream.fail(code, message) for stream in streams.values()]
    return [streams[key].add(outcome) for key, outcome in outcomes.items()]

"""Feeds the hub and carries out its commands, in order.

Every door, thread and timer goes through `post`; the hub is entered by nobody else and from one thread only. Knows
the formats of neither sockets nor files. Invariant: events are handled in the order posted, and commands
carried out in the order given.

A fault in the hub is a bug whose damage is unknown, so the driver stops and the process with it: the log holds the
truth, and the next process goes on from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Protocol, TypeVar, cast, get_args

from llmws.engine_api import (
    Engine,
    MemoryProbe,
    ModelFailed,
    ModelLoaded,
    ModelRef,
    ModelSource,
    ModelUnloaded,
    PromptJob,
    PromptRenderer,
)
from llmws.errors import LlmwsError
from llmws.protocol import ErrorCode
from llmws.protocol import messages as m
from llmws.runtime.backlog import Backlog
from llmws.session import events as e
from llmws.session.hub import Hub
from llmws.store_api import Append, SessionStore, StoreOp

TICK_S: Final = 0.25
MEMORY_INTERVAL_S: Final = 5.0
MAX_INSPECTIONS: Final = 64
_SLICE: Final = 256
"""Events handled before the loop may do other things."""

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class Sink(Protocol):
    """The way out to one connection. Every method may be called after the socket is gone and then does nothing."""

    def try_send(self, *frames: bytes) -> None:
        """Sends text frames now, without waiting; each is UTF-8 JSON."""

    @property
    def congested(self) -> bool:
        """Whether the socket's write buffer is above its high-water mark, 32 KiB."""

    def close(self, code: int, reason: str) -> None:
        """Closes after what was sent; nothing of the connection is received any more."""


class Driver:
    """Runs a hub on the event loop's thread.

    Args:
        remember_model: keeps the name of the model that a client chose, on a thread that may touch files.
        save_uptime: likewise how long the server has been up, in seconds.
    """

    def __init__(
        self,
        hub: Hub,
        *,
        engine: Engine,
        store: SessionStore,
        prompts: PromptRenderer,
        models: ModelSource,
        probe: MemoryProbe,
        remember_model: Callable[[str], None],
        save_uptime: Callable[[float], None],
    ) -> None:
        self._hub = hub
        self._engine = engine
        self._store = store
        self._prompts = prompts
        self._models = models
        self._probe = probe
        self._loop = asyncio.get_running_loop()
        self._inbox: deque[e.HubEvent] = deque()
        self._is_scheduled = False
        self._hurry = asyncio.Event()
        self._fault: asyncio.Future[None] = self._loop.create_future()
        self._sinks: dict[int, Sink] = {}
        self._congested: set[int] = set()
        self._last_connection = 0
        self._inspector = ThreadPoolExecutor(max_workers=1, thread_name_prefix="inspector")
        self._inspections = 0
        self._save_uptime = save_uptime
        self._is_stopping = False
        self._is_reading_memory = False
        self._backlog = Backlog(self._loop.time)
        self._engine_waits = False
        self._ops: list[StoreOp] = []
        self._execute: dict[type, Callable[[Any], None]] = {
            e.Send: self._send,
            e.Disconnect: self._disconnect,
            e.Inspect: self._inspect,
            e.Submit: lambda command: engine.submit(command.request),
            e.CancelGeneration: lambda command: engine.cancel(command.key),
            e.ScanModels: lambda _command: self.scan(failed=lambda: self.post(e.ScanFailed())),
            e.RememberModel: lambda command: self._off_loop(
                "remembering a model", lambda: remember_model(command.name), lambda _: None
            ),
            e.SaveUptime: self._keep_uptime,
            e.LoadModel: lambda command: engine.load(command.model, again=command.again),
            e.WithdrawLoad: lambda command: engine.withdraw(command.name),
            e.Warn: lambda command: _log.warning("%s", command.message),
            PromptJob: prompts.render,
            **dict.fromkeys(get_args(StoreOp), self._ops.append),
            Append: self._append,
        }

    # --- the doors -------------------------------------------------------------------------------------------------

    def attach(self, sink: Sink, principal: str, role: str, hello: m.Hello) -> int:
        """Takes a connection after its hello; returns the number that names it from now on."""
        self._last_connection += 1
        connection = self._last_connection
        self._sinks[connection] = sink
        self.post(e.Attach(connection, principal, cast("e.UserRole", role), hello))
        return connection

    def receive(self, connection: int, message: m.ClientMessage) -> None:
        """Takes a message of an attached connection."""
        self.post(e.Receive(connection, message))

    def drained(self, connection: int) -> None:
        """The connection's write buffer fell below its low-water mark."""
        if connection in self._congested:
            self._congested.discard(connection)
            self.post(e.Drained(connection))

    def detach(self, connection: int) -> None:
        """The connection is gone."""
        self._sinks.pop(connection, None)
        self._congested.discard(connection)
        self.post(e.Detach(connection))

    @property
    def ready(self) -> bool:
        """Whether a model is loaded."""
        return bool(self._hub.resident)

    # --- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the threads."""
        self._store.start(self._notifier(self._take_store))
        self._prompts.start(lambda event: self._call_soon(self.post, event))
        self._engine.start(self._notifier(self._take_engine))
        self._store.survey()
        self._read_memory()

    async def run(self) -> None:
        """Ticks until cancelled; raises what the hub raised."""
        memory_due_s = self._loop.time() + MEMORY_INTERVAL_S
        while True:
            done, _ = await asyncio.wait([self._fault], timeout=TICK_S)
            if done:
                self._fault.result()
            self.post(e.Tick())
            if self._loop.time() >= memory_due_s:
                memory_due_s = self._loop.time() + MEMORY_INTERVAL_S
                self._read_memory()

    def scan(
        self,
        then: Callable[[tuple[ModelRef, ...]], None] = lambda _models: None,
        *,
        failed: Callable[[], None] = lambda: None,
    ) -> None:
        """Looks for models, tells the hub, and calls `then` with what was found."""

        def found(models: list[ModelRef]) -> None:
            self.post(e.ModelsScanned(tuple(models)))
            then(tuple(models))

        self._off_loop("looking for models", self._models.scan, found, failed=failed)

    async def drain(self, timeout_s: float) -> None:
        """Lets what runs finish, for a while; nothing new starts."""
        self.post(e.Drain())
        try:
            async with asyncio.timeout(timeout_s):
                # Polled: the hub tells nobody when it falls quiet, and stopping is no hot path.
                while not (self._is_quiet or self._fault.done() or self._hurry.is_set()):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        except TimeoutError:
            _log.info("requests are still running; they go on after the next start")

    @property
    def _is_quiet(self) -> bool:
        return not self._inbox and self._hub.is_quiet

    def hurry(self) -> None:
        """Ends a `drain` at once."""
        self._hurry.set()

    def stop(self) -> None:
        """Stops the threads; what is unfinished stays resumable. Blocks for a step and the last writes."""
        self._engine.close()
        self._prompts.close()
        self._is_stopping = True
        self._inspector.shutdown(cancel_futures=True)
        try:
            if not self._fault.done():
                self._inbox.clear()
                self._handle(e.Shutdown())
        finally:
            self._store.close()
        if not self._fault.done():
            self._fault.cancel()

    def post(self, event: e.HubEvent) -> None:
        """Queues an event. Call it on the loop's thread."""
        self._inbox.append(event)
        self._schedule()

    def _schedule(self) -> None:
        if self._inbox and not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._work)

    def _work(self) -> None:
        self._is_scheduled = False
        if self._fault.done():
            return
        try:
            self._handle(*(self._inbox.popleft() for _ in range(min(_SLICE, len(self._inbox)))))
            if self._engine_waits:
                self._take_engine()
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends the process: see the module's docstring
            self._fault.set_exception(error)
        self._schedule()

    def _handle(self, *events: e.HubEvent) -> None:
        for command in self._hub.handle(*events):
            self._execute[type(command)](command)
        if self._ops:
            # All at once: each call wakes the store's writer, which then contends with this thread for the interpreter.
            self._store.submit(*self._ops)
            self._ops.clear()
        for event in events:
            # Not before the hub has seen it: what it still appends to a session that has failed is never answered.
            self._backlog.answered(event)
            self._note(event)

    def _note(self, event: e.HubEvent) -> None:
        """Logs what an operator wants to know of models."""
        if isinstance(event, ModelLoaded):
            info = event.info
            tier = f"{info.tier} ({info.tier_reason})" if info.tier_reason else info.tier
            loaded = f"{info.ref.name}, {info.ref.size_bytes / 1e6:,.1f} MB, is loaded on {info.device}"
            _log.info("model %s: tier %s, context %d", loaded, tier, info.max_context)
            self._read_memory()
        elif isinstance(event, ModelUnloaded):
            self._read_memory()
        elif isinstance(event, ModelFailed):
            _log.error("model %s cannot be loaded (%s): %s", event.name, event.code, event.message)

    # --- threads ---------------------------------------------------------------------------------------------------

    def _call_soon(self, function: Callable[..., None], *args: object) -> None:
        # The loop may be closed by now, and then nobody listens any more.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *args)

    def _notifier(self, take: Callable[[], None]) -> Callable[[], None]:
        return lambda: self._call_soon(take)

    def _take_engine(self) -> None:
        # What is not taken stays in the engine's mailbox, and so the engine waits, until the store has caught up.
        self._engine_waits = self._backlog.is_full
        if not self._engine_waits:
            for event in self._engine.take():
                self.post(event)

    def _take_store(self) -> None:
        for event in self._store.take():
            self.post(event)
        self._take_engine()  # its call is on its way; what comes together is handled at one go

    def _append(self, command: Append) -> None:
        self._backlog.appended(command)
        self._ops.append(command)

    # --- commands --------------------------------------------------------------------------------------------------

    def _send(self, command: e.Send) -> None:
        sink = self._sinks.get(command.connection)
        if sink is None:
            return
        sink.try_send(*command.frames)
        if sink.congested and command.connection not in self._congested:
            self._congested.add(command.connection)
            # Ahead of everything queued: whatever comes next must not be pushed into the full buffer.
            self._inbox.appendleft(e.Congested(command.connection))
            self._schedule()

    def _disconnect(self, command: e.Disconnect) -> None:
        if sink := self._sinks.get(command.connection):
            sink.close(command.code, command.reason)

    def _inspect(self, command: e.Inspect) -> None:
        def answer(message: m.ServerMessage) -> None:
            self.post(e.Answer(command.connection, message))

        def failed() -> None:
            answer(m.Error(code=ErrorCode.INTERNAL, message="the server could not look that up", retryable=True))

        if self._inspections >= MAX_INSPECTIONS:
            answer(m.Error(code=ErrorCode.RATE_LIMITED, message="too many questions at once", retryable=True))
            return
        match command.message:
            case m.ListModels():
                self.scan(lambda models: answer(m.ModelsList(models=self._entries(models))), failed=failed)
            case m.GetResources():
                default, entries, load = (
                    self._hub.default,
                    self._entries(self._hub.available),
                    self._engine.load_state(),
                )
                work = functools.partial(self._probe.resources, default, entries, load)
                self._off_loop("reading resources", work, answer, failed=failed)
            case m.DeleteModel(model_name=name):
                self._off_loop("deleting a model", functools.partial(self._delete, name), answer, failed=failed)
                self.scan()

    def _entries(self, models: tuple[ModelRef, ...]) -> list[m.ModelEntry]:
        return [each.to_entry(loaded=each.name in self._hub.resident) for each in models]

    def _delete(self, name: str) -> m.ServerMessage:
        try:
            self._models.delete(name)
        except LlmwsError as error:
            return m.Error(code=error.code, message=str(error), retryable=error.code.retryable)
        return m.ModelDeleted(model_name=name, message=f"{name} is deleted.")

    def _keep_uptime(self, command: e.SaveUptime) -> None:
        save = functools.partial(self._save_uptime, command.uptime_s)
        if self._is_stopping:
            try:
                save()
            except LlmwsError as error:
                _log.error("%s", error)  # a full disk; the sessions' files are still to be closed
        else:
            self._off_loop("saving the uptime", save, lambda _: None)

    def _read_memory(self) -> None:
        if self._is_reading_memory:
            return  # the last reading has not come back: a driver that hangs must not fill the inspector's queue

        def ended() -> None:
            self._is_reading_memory = False

        def read(device: m.DeviceSummary) -> None:
            ended()
            self.post(e.MemoryRead(device))

        self._is_reading_memory = True
        self._off_loop("reading memory", self._probe.summary, read, failed=ended)

    def _off_loop(
        self,
        name: str,
        work: Callable[[], _T],
        then: Callable[[_T], None],
        *,
        failed: Callable[[], None] = lambda: None,
    ) -> None:
        """Runs `work` on the inspector's thread, and `then` on the loop with its result or `failed` without."""

        def finished(future: asyncio.Future[_T]) -> None:
            self._inspections -= 1
            if future.cancelled():
                return
            error = future.exception()
            if error is None:
                then(future.result())
            else:
                _log.error("%s failed", name, exc_info=error)
                failed()

        self._inspections += 1
        self._loop.run_in_executor(self._inspector, work).add_done_callback(finished)

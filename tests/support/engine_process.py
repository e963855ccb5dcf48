"""An engine in a child process, behind the same interface: what crosses the pipe are msgspec frames and nothing else.

Shows that an engine's values are data and that an engine needs nothing of the process it serves; the product itself
runs its engine on a thread. Invariant: the child's mailbox is emptied when the parent takes, never before, so that back
pressure reaches the engine as it does from a thread.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import queue
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

import msgspec

from llmws.engine_api import Engine, EngineEvent, GenerationRequest, ModelRef
from llmws.protocol.messages import EngineResources

TIMEOUT_S = 60
"""The first child waits until torch is imported."""


class Frame(msgspec.Struct, frozen=True, tag=True):
    """Base of what crosses the pipe."""


class Load(Frame, frozen=True):
    model: ModelRef
    again: bool


class Withdraw(Frame, frozen=True):
    name: str


class Submit(Frame, frozen=True):
    request: GenerationRequest


class Cancel(Frame, frozen=True):
    key: str


class Take(Frame, frozen=True):
    """Asks for `Taken`."""


class AskState(Frame, frozen=True):
    """Asks for `State`."""


class Close(Frame, frozen=True):
    """Closes the engine and asks for `Taken`, all that is left; the child's last answer."""


class News(Frame, frozen=True):
    """The engine has called `notify`."""


class Taken(Frame, frozen=True):
    events: list[EngineEvent]


class State(Frame, frozen=True):
    resources: EngineResources


_commands = msgspec.msgpack.Decoder(Load | Withdraw | Submit | Cancel | Take | AskState | Close)
_answers = msgspec.msgpack.Decoder(News | Taken | State)

_context = multiprocessing.get_context("forkserver")
# What a local engine imports for seconds is imported once, for all children.
_context.set_forkserver_preload([__name__, "llmws.engine.loading", "transformers.models.llama.modeling_llama"])


class ProcessEngine:
    """An `Engine` whose every call goes to a child process.

    Args:
        make_engine: called in the child; a function that can be found by its name.
    """

    def __init__(self, make_engine: Callable[[], Engine]) -> None:
        self._pipe, theirs = _context.Pipe()
        self._process = _context.Process(target=_serve, args=(theirs, make_engine), daemon=True)
        self._process.start()
        theirs.close()
        self._asking = threading.Lock()
        self._sending = threading.Lock()
        self._replies: queue.Queue[Taken | State] = queue.Queue()
        self._left: list[EngineEvent] = []
        self._closed = False

    def start(self, notify: Callable[[], None]) -> None:
        """See `Engine.start`. The child's engine starts by itself; `notify` must not call the engine."""
        self._reader = threading.Thread(target=self._read, args=(notify,), name="engine-pipe")
        self._reader.start()

    def load(self, model: ModelRef, *, again: bool = False) -> None:
        """See `Engine.load`."""
        self._send(Load(model, again))

    def withdraw(self, name: str) -> None:
        """See `Engine.withdraw`."""
        self._send(Withdraw(name))

    def submit(self, request: GenerationRequest) -> None:
        """See `Engine.submit`."""
        self._send(Submit(request))

    def cancel(self, key: str) -> None:
        """See `Engine.cancel`."""
        self._send(Cancel(key))

    def take(self) -> list[EngineEvent]:
        """See `Engine.take`."""
        if self._closed:
            left, self._left = self._left, []
            return left
        taken = self._ask(Take())
        assert isinstance(taken, Taken)
        return taken.events

    def load_state(self) -> EngineResources:
        """See `Engine.load_state`."""
        state = self._ask(AskState())
        assert isinstance(state, State)
        return state.resources

    def close(self) -> None:
        """See `Engine.close`."""
        if self._closed:
            return
        taken = self._ask(Close())
        assert isinstance(taken, Taken)
        self._left = taken.events
        self._closed = True
        self._process.join(TIMEOUT_S)
        self._reader.join(TIMEOUT_S)
        self._pipe.close()
        assert self._process.exitcode == 0

    def _send(self, command: Frame) -> None:
        with self._sending:
            if not self._closed:
                self._pipe.send_bytes(msgspec.msgpack.encode(command))

    def _ask(self, question: Frame) -> Taken | State:
        with self._asking:
            self._send(question)
            return self._replies.get(timeout=TIMEOUT_S)

    def _read(self, notify: Callable[[], None]) -> None:
        for frame in _frames(self._pipe):
            answer = _answers.decode(frame)
            if isinstance(answer, News):
                notify()
            else:
                self._replies.put(answer)


def _frames(pipe: Connection) -> Iterator[bytes]:
    """What comes until the other side is gone."""
    with contextlib.suppress(EOFError, ConnectionResetError):
        while True:
            yield pipe.recv_bytes()


def _serve(pipe: Connection, make_engine: Callable[[], Engine]) -> None:
    """The child."""
    engine = make_engine()
    sending = threading.Lock()

    def say(answer: Frame) -> None:
        with sending, contextlib.suppress(BrokenPipeError):
            pipe.send_bytes(msgspec.msgpack.encode(answer))

    engine.start(lambda: say(News()))
    for frame in _frames(pipe):
        match _commands.decode(frame):
            case Load(model, again):
                engine.load(model, again=again)
            case Withdraw(name):
                engine.withdraw(name)
            case Submit(request):
                engine.submit(request)
            case Cancel(key):
                engine.cancel(key)
            case Take():
                say(Taken(engine.take()))
            case AskState():
                say(State(engine.load_state()))
            case Close():
                engine.close()
                say(Taken(engine.take()))
                return
    engine.close()

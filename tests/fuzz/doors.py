"""The server's doors, as functions of what a stranger sends: what they say, what they keep, and what escapes."""

from __future__ import annotations

import asyncio
import atexit
import functools
import itertools
import json
import logging
import re
from collections.abc import Callable, Coroutine
from typing import Any, Final

from uvicorn.server import ServerState

from llmws.access import Identity
from llmws.config import LimitsSection, ServerSection
from llmws.protocol import decode_server
from llmws.protocol import messages as m
from llmws.server.auth import Denied
from llmws.server.door import MAX_HELLO_BYTES, Accepted, Close, Door, Forward, Reply
from llmws.server.entrance import Entrance
from llmws.server.listen import configure
from llmws.server.websocket import SLICE_BYTES, WebSocketProtocol
from tests.fuzz.target import PART, Target, flooded
from tests.fuzz.transport import READ_BYTES, FakeTransport
from tests.support.credentials import FixedCredentials
from tests.support.frames import UPGRADE, hello

TOKEN: Final = "good"
LIMITS: Final = LimitsSection(max_message_bytes=1024)
HELLO: Final = hello(TOKEN)
FLOOD_BYTES: Final = 64 * 1024
_STATUS: Final = re.compile(rb"^HTTP/1\.1 ([0-9]{3}) ", re.MULTILINE)
_ANSWERS: Final = frozenset({100, 101, 200, 400, 401, 403, 404, 405, 408, 413, 421, 426, 429, 431, 503})
_PIECES: Final = (READ_BYTES, 1, 2, 7, 64, 1024)
_MAX_STEPS: Final = 200


class _Complaints(logging.Handler):
    """What uvicorn logs as errors: a stranger must not be able to fill the log with tracebacks."""

    def __init__(self) -> None:
        super().__init__(level=logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())

    def __enter__(self) -> list[str]:
        logging.getLogger("uvicorn.error").addHandler(self)
        return self.messages

    def __exit__(self, *_: object) -> None:
        logging.getLogger("uvicorn.error").removeHandler(self)


class Sessions:
    """Says hello to whoever is attached, and counts."""

    ready = False

    def __init__(self, transport: FakeTransport) -> None:
        self.said_before = b""
        self.attached = 0
        self.detached = 0
        self._transport = transport

    def attach(self, sink: Any, principal: str, role: str, hello: m.Hello) -> int:
        self.said_before = bytes(self._transport.output)
        self.attached += 1
        sink.try_send(b'{"type":"attached"}')
        return self.attached

    def receive(self, connection: int, message: m.ClientMessage) -> None:
        assert self.attached == connection == 1
        assert not isinstance(message, m.Hello | m.Ping)

    def drained(self, connection: int) -> None:
        assert self.attached == connection

    def detach(self, connection: int) -> None:
        self.detached += 1


def door(data: bytes) -> None:
    """Before a valid hello come only pongs, one error and a close; after it nothing but answers and typed messages."""
    times = itertools.count()
    ours = Door(
        identify=lambda auth: Identity("local", "user") if auth == TOKEN else Denied(),
        needed="user",
        max_message_bytes=LIMITS.max_message_bytes,
        clock=lambda: next(times) / 1000,
    )
    for part in data.split(PART):
        was_accepted = ours.accepted
        outcomes = ours.receive(part.removeprefix(b"\x02"), text=not part.startswith(b"\x02"))
        if was_accepted:
            (outcome,) = outcomes
            assert isinstance(outcome, Reply | Forward | Close)
            assert not isinstance(outcome, Forward) or isinstance(outcome.message, m.ClientMessage)
        else:
            _check_greeting(outcomes)
        if any(isinstance(each, Close) for each in outcomes):
            return


def _check_greeting(outcomes: tuple[object, ...]) -> None:
    match outcomes:
        case (Reply(frame=frame),):
            assert isinstance(decode_server(frame), m.Pong)
        case (Reply(frame=frame), Close()):
            assert isinstance(decode_server(frame), m.Error)
        case (Close(),) | (Accepted(),):
            pass
        case _:
            raise AssertionError(outcomes)


def websocket_upgrade(data: bytes) -> int:
    """Whatever a request's head says, which is all that uvicorn hands over, it is upgraded or refused."""
    head, end, _ = data[1:].partition(b"\r\n\r\n")
    return _run(_converse(b"\0" + head + end, begin=b"", http=False))


def websocket(data: bytes) -> int:
    """Whatever frames come before the hello, only what a stranger may hear comes back, and little is kept of them."""
    return _run(_converse(data, begin=UPGRADE, http=False))


def websocket_session(data: bytes) -> int:
    """Whatever frames come after the hello, what comes back is frames, and the session is left as often as entered."""
    return _run(_converse(data, begin=UPGRADE + HELLO, http=False))


def websocket_flood(data: bytes) -> int:
    """Frames, and then the same again and again: they are taken in short steps, and little is kept of them."""
    return _run(_converse(b"\0" + flooded(data, FLOOD_BYTES), begin=UPGRADE, http=False))


def http(data: bytes) -> int:
    """Whatever is sent to the port, it is answered with a status that is known, and nothing escapes."""
    return _run(_converse(data, begin=b"", http=True))


def http_flood(data: bytes) -> int:
    """The same of a request's head, once, and what follows again and again."""
    return _run(_converse(b"\0" + flooded(data, FLOOD_BYTES), begin=b"", http=True))


async def _converse(data: bytes, *, begin: bytes, http: bool) -> int:
    """One connection from its beginning to its loss; the first byte of `data` says how the rest comes.

    Returns:
        Processor time of the longest step, in nanoseconds.
    """
    how, sent = data[:1] or b"\0", data[1:]
    loop = asyncio.get_running_loop()
    escaped: list[object] = []
    loop.set_exception_handler(lambda _, context: escaped.append(context))
    transport = FakeTransport(is_stuck=how >= b"\x80")
    sessions = Sessions(transport)
    times = itertools.count()
    entrance = Entrance(
        sessions=sessions,
        credentials=FixedCredentials({TOKEN: Identity("local", "user", "1")}),
        server=ServerSection(),
        limits=LIMITS,
        port=8765,
        clock=lambda: next(times) / 100,
    )
    state = ServerState()
    transport.begin(_http(entrance, state) if http else WebSocketProtocol(entrance, server_state=state))
    await transport.feed(begin)
    await asyncio.sleep(0)
    piece_bytes = _PIECES[how[0] % len(_PIECES)]
    for start in range(0, len(sent), piece_bytes):
        await transport.feed(sent[start : start + piece_bytes])
        await transport.taken()
        _check_held(transport.get_protocol(), is_in=sessions.attached > 0)
    await _settle(state, steps=10)
    transport.lose()
    await _settle(state, steps=_MAX_STEPS)
    for left in list(state.connections):  # what a flood has left is taken at its rate, or until the server stops
        left.cut()  # type: ignore[union-attr]
    assert not state.tasks, "a request goes on although its connection is gone"
    assert not escaped, escaped
    assert sessions.attached == sessions.detached <= 1
    assert entrance.connections == 0
    _check_said(bytes(transport.output), sessions, is_upgraded=begin != b"")
    return transport.longest_step_ns


def _http(entrance: Entrance, state: ServerState) -> Any:
    config = configure(entrance, None)
    config.load()
    make: Callable[..., Any] = config.http_protocol_class  # type: ignore[assignment]
    return make(config=config, server_state=state, app_state={})


async def _settle(state: ServerState, *, steps: int) -> None:
    """Lets the loop run until every request is answered, but not for ever."""
    for _ in range(steps):
        await asyncio.sleep(0)
        if not state.tasks:
            return


def _check_held(protocol: object, *, is_in: bool) -> None:
    """What a connection keeps of what it was sent is bounded."""
    if isinstance(protocol, WebSocketProtocol):
        held_bytes = len(protocol._message) + len(protocol.wire.reader.buffer)
        allowed_bytes = 4 * LIMITS.max_message_bytes if is_in else 2 * MAX_HELLO_BYTES
        assert held_bytes <= allowed_bytes + SLICE_BYTES


def _check_said(output: bytes, sessions: Sessions, *, is_upgraded: bool) -> None:
    head, end, frames = output.partition(b"\r\n\r\n")
    statuses = {int(status) for status in _STATUS.findall(output if not output.startswith(b"HTTP/1.1 101") else head)}
    assert statuses <= _ANSWERS, statuses
    if output.startswith(b"HTTP/1.1 101"):
        said = _frames(frames)
        before = len(sessions.said_before) - len(head + end) if sessions.attached else len(frames)
        _check_stranger(_frames(frames[: max(0, before)]))
        assert [opcode for opcode, _ in said[:-1] if opcode == 8] == [], "something was said after the close"
    else:
        assert not is_upgraded


def _frames(data: bytes) -> list[tuple[int, bytes]]:
    """The opcode and payload of each of a server's frames."""
    found = []
    while data:
        size, start = data[1], 2
        assert size < 128, "a server's frame is not masked"
        if size >= 126:
            start = 4 if size == 126 else 10
            size = int.from_bytes(data[2:start], "big")
        assert len(data) >= start + size, "a frame is cut short"
        found.append((data[0] & 0x0F, data[start : start + size]))
        data = data[start + size :]
    return found


def _check_stranger(said: list[tuple[int, bytes]]) -> None:
    texts = [json.loads(payload)["type"] for opcode, payload in said if opcode == 1]
    assert set(texts) <= {"pong", "error"}, texts
    assert texts.count("error") <= 1, texts
    assert {opcode for opcode, _ in said} <= {1, 8, 10}


@functools.cache
def _runner() -> asyncio.Runner:
    """One loop for all executions: a new one for each would take longer than they do."""
    runner = asyncio.Runner()
    atexit.register(runner.close)
    return runner


def _run(conversation: Coroutine[Any, Any, int]) -> int:
    with _Complaints() as messages:
        longest_step_ns = _runner().run(conversation)
    assert messages == []
    return longest_step_ns


DOORS = (
    Target(run=door, share=80),
    Target(run=websocket_upgrade, share=8, max_bytes=2048),
    Target(run=websocket, share=15),
    Target(run=websocket_session, share=15),
    Target(run=websocket_flood, share=1, max_bytes=256),
    Target(run=http, share=6, max_bytes=2048),
    Target(run=http_flood, share=1, max_bytes=512),
)

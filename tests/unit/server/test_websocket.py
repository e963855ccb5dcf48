"""The WebSocket door on a scripted transport: what needs no network to be seen."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from uvicorn.server import ServerState
from websockets.frames import Frame, Opcode

from llmws.access import Identity
from llmws.config import LimitsSection, ServerSection
from llmws.protocol import messages as m
from llmws.server.entrance import Entrance
from llmws.server.listen import accept, configure
from llmws.server.ports import Sink
from llmws.server.websocket import (
    FRAME_BURST,
    HIGH_WATER_BYTES,
    MAX_UNSENT_BYTES,
    SLICE_BYTES,
    WebSocketProtocol,
    text_header,
)
from tests.support.credentials import FixedCredentials
from tests.support.frames import UPGRADE

PING = b"\x89\x00"
MASKED_PING, PONG = b"\x89\x80\0\0\0\0", b"\x8a\x00"
SECRET = "the prompt that no log may hold"


class ScriptedTransport(asyncio.Transport):
    """Writes down what is done to it; `unsent_bytes` is what the test says."""

    def __init__(self) -> None:
        super().__init__(extra={"peername": ("127.0.0.1", 50000)})
        self.writes: asyncio.Queue[bytes] = asyncio.Queue()
        self.high: int | None = None
        self.unsent_bytes = 0
        self.reading = True
        self.aborted = asyncio.Event()
        self.protocol: asyncio.BaseProtocol | None = None

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self.protocol is not None
        return self.protocol

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = high
        if high is not None and self.unsent_bytes > high and self.protocol is not None:
            self.protocol.pause_writing()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.put_nowait(bytes(data))

    async def wrote(self) -> bytes:
        async with asyncio.timeout(5):
            return await self.writes.get()

    def is_closing(self) -> bool:
        return self.aborted.is_set()

    def get_write_buffer_size(self) -> int:
        return self.unsent_bytes

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def abort(self) -> None:
        self.aborted.set()


class Attached:
    """Sessions that keep the last sink, and count what they receive."""

    ready = True

    def __init__(self, answer: Callable[[], object] = lambda: None) -> None:
        self.sink: Sink | None = None
        self.received = self.left = 0
        self.answer = answer

    def attach(self, sink: Sink, principal: str, role: str, hello: m.Hello) -> int:
        self.sink = sink
        return 1

    def receive(self, connection: int, message: m.ClientMessage) -> None:
        self.received += 1
        self.answer()

    def drained(self, connection: int) -> None:
        pass

    def detach(self, connection: int) -> None:
        self.left += 1


def masked(text: str) -> bytes:
    return bytes([0x81, 0x80 | len(text)]) + b"\0\0\0\0" + text.encode()


def entrance_to(sessions: Attached, *, heartbeat_s: float = 20.0) -> Entrance:
    return Entrance(
        sessions=sessions,
        credentials=FixedCredentials({None: Identity("local", "admin")}),
        server=ServerSection(heartbeat_s=heartbeat_s),
        limits=LimitsSection(),
        port=8765,
        clock=lambda: 0.0,
    )


@contextlib.contextmanager
def upgrading(
    *, heartbeat_s: float = 20.0, sessions: Attached | None = None, **how: float
) -> Iterator[tuple[WebSocketProtocol, ScriptedTransport]]:
    """A connection that nothing was received from, and what it is written to."""
    entrance = entrance_to(sessions or Attached(), heartbeat_s=heartbeat_s)
    transport = ScriptedTransport()
    protocol = WebSocketProtocol(entrance, server_state=ServerState(), **how)
    protocol.connection_made(transport)
    yield protocol, transport
    protocol.connection_lost(None)


@contextlib.contextmanager
def connection(**how: Any) -> Iterator[tuple[WebSocketProtocol, ScriptedTransport]]:
    """A connection after its hello, and what it is written to."""
    with upgrading(**how) as (protocol, transport):
        protocol.data_received(UPGRADE)
        protocol.data_received(masked("{}"))
        assert transport.writes.get_nowait().startswith(b"HTTP/1.1 101 ")
        yield protocol, transport


async def test_the_high_water_mark_is_set() -> None:
    with connection() as (_, transport):
        assert transport.high == HIGH_WATER_BYTES == 32 * 1024


@pytest.mark.parametrize(("was_told", "unsent_bytes"), [(True, 0), (False, HIGH_WATER_BYTES + 1), (False, 0)])
async def test_a_connection_is_congested_from_the_upgrade_on_if_earlier_answers_are_unread(
    was_told: bool, unsent_bytes: int
) -> None:
    """The transport says it once: to the HTTP protocol, before the upgrade or when the limits are set in it."""
    entrance = entrance_to(Attached())
    config = configure(entrance, None)
    config.load()
    transport = ScriptedTransport()
    http: Any = accept(entrance, None, config=config, server_state=ServerState(), app_state={})
    transport.set_protocol(http)
    http.connection_made(transport)
    if was_told:
        http.pause_writing()
    transport.unsent_bytes = unsent_bytes
    http.data_received(UPGRADE)
    protocol = transport.get_protocol()
    assert isinstance(protocol, WebSocketProtocol)
    assert protocol.congested == (was_told or unsent_bytes > 0)
    protocol.resume_writing()
    assert not protocol.congested
    protocol.connection_lost(None)


async def test_a_frame_is_on_the_socket_when_try_send_returns() -> None:
    with connection() as (protocol, transport):
        protocol.try_send('{"data":"é"}'.encode())
        assert transport.writes.get_nowait() == b"\x81\x0d" + '{"data":"é"}'.encode()


@pytest.mark.parametrize("size_bytes", [0, 1, 125, 126, 65_535, 65_536])
def test_frames_are_those_of_the_library(size_bytes: int) -> None:
    data = b"x" * size_bytes
    assert text_header(size_bytes) + data == Frame(Opcode.TEXT, data).serialize(mask=False)


async def test_several_frames_are_one_write() -> None:
    with connection() as (protocol, transport):
        protocol.try_send(b"{}", b"[1]")
        assert transport.writes.get_nowait() == b"\x81\x02{}\x81\x03[1]"
        assert transport.writes.empty()


async def test_the_answer_to_a_message_that_came_with_the_upgrade_follows_the_handshake() -> None:
    with upgrading() as (protocol, transport):
        protocol.data_received(UPGRADE + masked('{"type":"ping"}'))
        handshake, frames = transport.writes.get_nowait().split(b"\r\n\r\n")
        assert handshake.startswith(b"HTTP/1.1 101 ")
        assert frames == b'\x81\x0f{"type":"pong"}'


async def test_nothing_is_written_once_the_transport_closes() -> None:
    with connection() as (protocol, transport):
        transport.abort()
        protocol.try_send(b"{}")
        protocol.close(4409, "late")
        assert transport.writes.empty()


async def test_a_full_socket_that_was_emptied_is_a_sign_of_life() -> None:
    with connection(heartbeat_s=0.02) as (protocol, transport):
        assert await transport.wrote() == PING
        protocol.pause_writing()
        protocol.resume_writing()
        assert await transport.wrote() == PING
        assert (await transport.wrote())[2:4] == (4504).to_bytes(2, "big")


async def test_the_hello_is_due_when_it_was_due_before_the_upgrade() -> None:
    """What the head has used up of the time, the hello does not get again."""
    with upgrading(hello_due_s=asyncio.get_running_loop().time()) as (protocol, transport):
        protocol.data_received(UPGRADE)
        assert transport.writes.get_nowait().startswith(b"HTTP/1.1 101 ")
        async with asyncio.timeout(5):
            said = await transport.writes.get()
        assert said[2:4] == (4408).to_bytes(2, "big")


async def test_a_client_that_does_not_answer_a_close_is_cut() -> None:
    with connection(close_timeout_s=0.02) as (protocol, transport):
        protocol.close(4409, "taken over")
        async with asyncio.timeout(5):
            await transport.aborted.wait()


async def test_reading_stops_above_the_bound_and_goes_on_when_the_client_reads_or_the_connection_closes() -> None:
    with connection() as (protocol, transport):
        protocol.pause_writing()
        transport.unsent_bytes = MAX_UNSENT_BYTES
        protocol.try_send(b"{}")
        assert transport.reading
        transport.unsent_bytes = MAX_UNSENT_BYTES + 1
        protocol.try_send(b"{}")
        assert not transport.reading
        protocol.resume_writing()
        assert transport.reading
        protocol.pause_writing()
        protocol.try_send(b"{}")
        assert not transport.reading
        protocol.close(4409, "taken over")
        assert transport.reading


async def test_a_flood_is_taken_a_slice_at_a_time_and_others_have_their_turn_between() -> None:
    """A quarter of a megabyte of empty frames, as asyncio reads it, would keep everybody waiting for seconds."""
    with connection() as (protocol, transport):
        pings = 3 * SLICE_BYTES // len(MASKED_PING)
        protocol.data_received(MASKED_PING * pings)
        at_once = transport.writes.get_nowait()
        assert at_once == PONG * (SLICE_BYTES // len(MASKED_PING))
        assert transport.writes.empty()
        assert not transport.reading
        answers = at_once
        while len(answers) < pings * len(PONG):
            answers += await transport.wrote()
        assert answers == PONG * pings
        await asyncio.sleep(0)
        assert transport.reading


async def test_above_its_rate_a_client_is_read_no_faster() -> None:
    with connection(frames_per_s=0.001) as (protocol, transport):
        protocol.data_received(MASKED_PING * (FRAME_BURST + 5 * SLICE_BYTES))
        for _ in range(10 * FRAME_BURST // SLICE_BYTES + 100):
            await asyncio.sleep(0)
        answered = sum(len(transport.writes.get_nowait()) for _ in range(transport.writes.qsize())) // len(PONG)
        assert FRAME_BURST // 2 < answered <= FRAME_BURST + SLICE_BYTES // len(MASKED_PING)
        assert not transport.reading


async def test_after_a_close_frame_nothing_is_said() -> None:
    with connection() as (protocol, transport):
        protocol.close(4409, "taken over")
        assert transport.writes.get_nowait().startswith(b"\x88")
        protocol.data_received(MASKED_PING)
        assert transport.writes.empty()


async def test_its_rate_holds_for_a_client_too_whose_frames_come_one_by_one() -> None:
    with connection(frames_per_s=0.001) as (protocol, transport):
        for _ in range(FRAME_BURST // 2 - 100):
            protocol.data_received(MASKED_PING)
        assert transport.reading
        for _ in range(200):
            protocol.data_received(MASKED_PING)
        assert not transport.reading


async def test_a_message_is_taken_when_the_answer_to_the_one_before_it_has_been_read() -> None:
    """Each of many short questions may have a long answer: together they would not fit into memory."""

    def answer() -> None:
        transport.unsent_bytes = MAX_UNSENT_BYTES + 1
        protocol.pause_writing()
        protocol.try_send(b"{}")

    # A session answers when it has its turn, not at once.
    sessions = Attached(lambda: asyncio.get_running_loop().call_soon(answer))
    with connection(sessions=sessions) as (protocol, transport):
        protocol.data_received(masked('{"type":"history"}') * 3)
        for taken in (1, 2, 3):
            for _ in range(5):
                await asyncio.sleep(0)
            assert (sessions.received, transport.reading) == (taken, False)
            transport.unsent_bytes = 0
            protocol.resume_writing()
        assert transport.reading


async def test_of_a_connection_that_is_lost_its_session_is_told_all_that_came_then_that_it_left() -> None:
    sessions = Attached(lambda: protocol.try_send(b"{}"))
    with connection(sessions=sessions) as (protocol, transport):
        protocol.data_received(masked('{"type":"history"}') * 3 + MASKED_PING)
        transport.abort()
        said = transport.writes.qsize()
        protocol.connection_lost(None)
        assert (sessions.received, sessions.left) == (1, 0)
        for _ in range(5):
            await asyncio.sleep(0)
        assert (sessions.received, sessions.left, transport.writes.qsize()) == (3, 1, said)


@pytest.mark.parametrize("end", ["cut", "close"])
async def test_what_came_before_a_cut_or_a_close_and_was_not_taken_is_not_taken_after_it(end: str) -> None:
    sessions = Attached()
    with connection(sessions=sessions) as (protocol, transport):
        protocol.data_received(masked('{"type":"history"}') * 3)
        transport.abort()
        protocol.connection_lost(None)
        protocol.cut() if end == "cut" else protocol.close(4401, "the token was revoked")
        for _ in range(5):
            await asyncio.sleep(0)
        assert (sessions.received, sessions.left) == (1, 1)


async def test_no_log_holds_what_was_said_at_any_level() -> None:
    records: list[logging.LogRecord] = []
    spy = logging.Handler(level=0)
    spy.emit = records.append  # type: ignore[method-assign]
    root = logging.getLogger()
    level = root.level
    root.addHandler(spy)
    root.setLevel(1)
    try:
        with connection() as (protocol, _):
            protocol.try_send(SECRET.encode())
            protocol.data_received(masked(f'{{"type":"inference","prompt":"{SECRET}"}}'))
    finally:
        root.removeHandler(spy)
        root.setLevel(level)
    assert [record for record in records if SECRET in record.getMessage()] == []

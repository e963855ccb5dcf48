"""The WebSocket door on a scripted transport: what needs no network to be seen."""

import asyncio
import logging

from uvicorn.server import ServerState

from llmws.config import LimitsSection, ServerSection
from llmws.protocol import messages as m
from llmws.server.entrance import Entrance
from llmws.server.ports import Identity, Sink
from llmws.server.websocket import HIGH_WATER_BYTES, WebSocketProtocol

UPGRADE = (
    b"GET /v1/ws HTTP/1.1\r\nHost: localhost:8765\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
SECRET = "the prompt that no log may hold"


class ScriptedTransport(asyncio.Transport):
    """Writes down what is written to it."""

    def __init__(self) -> None:
        super().__init__(extra={"peername": ("127.0.0.1", 50000)})
        self.written = b""
        self.high: int | None = None
        self.closing = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = high

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.closing

    def get_write_buffer_size(self) -> int:
        return 0

    def abort(self) -> None:
        self.closing = True


class Attached:
    """Sessions that keep the last sink."""

    ready = True

    def __init__(self) -> None:
        self.sink: Sink | None = None

    def attach(self, sink: Sink, principal: str, role: str, hello: m.Hello) -> int:
        self.sink = sink
        return 1

    def receive(self, connection: int, message: m.ClientMessage) -> None:
        pass

    def drained(self, connection: int) -> None:
        pass

    def detach(self, connection: int) -> None:
        pass


def masked(text: str) -> bytes:
    return bytes([0x81, 0x80 | len(text)]) + b"\0\0\0\0" + text.encode()


def open_connection() -> tuple[WebSocketProtocol, ScriptedTransport]:
    entrance = Entrance(
        sessions=Attached(),
        authenticate=lambda _: Identity("local", "admin"),
        server=ServerSection(),
        limits=LimitsSection(),
        port=8765,
        clock=lambda: 0.0,
    )
    connection, transport = WebSocketProtocol(entrance, server_state=ServerState()), ScriptedTransport()
    connection.connection_made(transport)
    connection.data_received(UPGRADE)
    connection.data_received(masked("{}"))
    return connection, transport


async def test_the_upgrade_is_answered_and_the_high_water_mark_set() -> None:
    connection, transport = open_connection()
    assert transport.written.startswith(b"HTTP/1.1 101 ")
    assert transport.high == HIGH_WATER_BYTES == 32 * 1024
    connection.connection_lost(None)


async def test_a_frame_is_on_the_socket_when_try_send_returns() -> None:
    connection, transport = open_connection()
    transport.written = b""
    connection.try_send('{"data":"é"}'.encode())
    assert transport.written == b"\x81\x0d" + '{"data":"é"}'.encode()
    connection.connection_lost(None)


async def test_nothing_is_written_once_the_transport_closes() -> None:
    connection, transport = open_connection()
    transport.abort()
    transport.written = b""
    connection.try_send(b"{}")
    connection.close(4409, "late")
    assert transport.written == b""
    connection.connection_lost(None)


async def test_no_log_holds_what_was_said_at_any_level() -> None:
    records: list[logging.LogRecord] = []
    spy = logging.Handler(level=0)
    spy.emit = records.append  # type: ignore[method-assign]
    root = logging.getLogger()
    level = root.level
    root.addHandler(spy)
    root.setLevel(1)
    try:
        connection, _ = open_connection()
        connection.try_send(SECRET.encode())
        connection.data_received(masked(f'{{"type":"inference","prompt":"{SECRET}"}}'))
        connection.connection_lost(None)
    finally:
        root.removeHandler(spy)
        root.setLevel(level)
    assert [record for record in records if SECRET in record.getMessage()] == []

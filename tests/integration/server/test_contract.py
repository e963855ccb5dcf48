"""What we rely on in uvicorn and websockets and nobody promises: a new version must fail here, not in the field."""

from __future__ import annotations

import inspect
from asyncio.sslproto import SSLProtocol

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState
from websockets.protocol import Protocol, State
from websockets.server import ServerProtocol

from llmws.server.http import HttpProtocol
from llmws.server.websocket import WebSocketProtocol
from tests.support.echo_server import Running


def parameters(function: object) -> set[str]:
    assert callable(function)
    return set(inspect.signature(function).parameters)


def test_the_upgrade_makes_our_protocol_with_these_arguments_and_hands_over_the_socket() -> None:
    source = inspect.getsource(H11Protocol.handle_websocket_upgrade)
    for line in (
        "self.connections.discard(self)",
        "self.ws_protocol_class(",
        "config=self.config",
        "server_state=self.server_state",
        "app_state=self.app_state",
        "protocol.connection_made(self.transport)",
        "protocol.data_received(",
        "self.transport.set_protocol(protocol)",
    ):
        assert line in source


def test_the_http_protocol_has_the_methods_and_state_that_ours_extends() -> None:
    assert parameters(H11Protocol) == {"config", "server_state", "app_state", "_loop"}
    assert {"connection_made", "connection_lost", "shutdown"} <= set(vars(H11Protocol))
    source = inspect.getsource(H11Protocol)
    assert "self.cycle: RequestResponseCycle = None" in source
    assert "self.response_complete = False" in inspect.getsource(RequestResponseCycle)


def test_asyncio_s_tls_is_built_and_extended_as_ours_does() -> None:
    made = parameters(SSLProtocol)
    assert {"loop", "app_protocol", "sslcontext", "waiter", "server_side", "call_connection_made"} <= made
    assert {"eof_received", "connection_lost", "_start_shutdown", "_set_app_protocol"} <= set(vars(SSLProtocol))
    source = inspect.getsource(SSLProtocol)
    for line in (
        "if self._waiter is None:",
        "self._app_transport = _SSLProtocolTransport(",
        "if len(self._ssl_buffer) < want:",
        "self._incoming.write(self._ssl_buffer_view[:nbytes])",
        "self._app_reading_paused = False",
        "self._app_protocol_get_buffer = app_protocol.get_buffer",
        "self._app_protocol_buffer_updated = app_protocol.buffer_updated",
        "if self._state != SSLProtocolState.DO_HANDSHAKE:",
        "self._loop.call_soon(self._app_protocol.connection_lost, exc)",
    ):
        assert line in source, line


def test_the_server_tells_every_connection_to_shut_down_and_waits_for_it_to_leave() -> None:
    assert isinstance(ServerState().connections, set)
    assert "connection.shutdown()" in inspect.getsource(uvicorn.Server.shutdown)
    assert parameters(uvicorn.Server.startup) == {"self", "sockets"}
    assert inspect.isgeneratorfunction(inspect.unwrap(uvicorn.Server.capture_signals))
    for ours in (WebSocketProtocol, HttpProtocol):
        assert {"shutdown", "cut"} <= set(dir(ours))


def test_the_sans_io_protocol_has_what_the_websocket_door_calls() -> None:
    for name in (
        "receive_data",
        "events_received",
        "data_to_send",
        "close_expected",
        "send_text",
        "send_close",
        "send_ping",
        "fail",
    ):
        assert name in vars(Protocol), name
    assert {"accept", "reject", "send_response"} <= set(vars(ServerProtocol))
    assert {"select_subprotocol", "max_size", "logger"} <= parameters(ServerProtocol)
    fresh = ServerProtocol()
    assert (fresh.state, fresh.close_rcvd) == (State.CONNECTING, None)


async def test_the_websockets_package_serves_the_socket(running: Running) -> None:
    await running.attached()
    sink = running.sessions.sinks[1]
    assert isinstance(sink, WebSocketProtocol)
    assert isinstance(sink.wire, ServerProtocol)

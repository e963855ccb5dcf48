"""The WebSocket door: one connection's socket, framing, heartbeat and way out.

Follows the integration guide of `websockets`' sans-I/O protocol class: bytes in, events out, bytes out. uvicorn's HTTP
protocol hands the socket over at the upgrade; ASGI never sees it, so a frame is sent by a plain call. Knows nothing of
what the messages mean: `Door` judges them, `Sessions` takes them. Invariant: one `detach` for every `attach`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Final, assert_never

from uvicorn.server import ServerState
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import SEND_EOF, Event, State
from websockets.server import ServerProtocol

from llmws.access import WEBSOCKET_ROUTES, Identity, Role
from llmws.protocol import CloseCode
from llmws.server.auth import Denied, credential, select_subprotocol
from llmws.server.door import MAX_HELLO_BYTES, Accepted, Close, Door, Forward, Reply
from llmws.server.entrance import Entrance, peer_address
from llmws.server.head import Head
from llmws.server.hosts import Refusal
from llmws.server.limits import TokenBucket
from llmws.server.pulse import Pulse

HIGH_WATER_BYTES: Final = 32 * 1024
"""Above this much unsent the connection is congested: live pushes to it stop."""

SLICE_BYTES: Final = 4096
"""So much is parsed before other connections have their turn: at most hundreds of frames, a few milliseconds."""

FRAMES_PER_S: Final = 5000.0
FRAME_BURST: Final = 10_000
"""What is read of a connection; a slice counts as a frame. What comes faster waits in the client's socket."""

MAX_UNSENT_BYTES: Final = 256 * 1024
"""Above this much unsent nothing more is read either: these are answers to a client that asks and does not listen."""

CLOSE_TIMEOUT_S: Final = 10.0
"""How long the other side may take to close its end; afterwards the connection is cut."""

STOP_TIMEOUT_S: Final = 2.0
"""The same, when the server stops."""

# At DEBUG the library logs frames, which hold prompts and answers; this logger stays above, whatever the root's level
# is.
_WIRE_LOG: Final = logging.getLogger("llmws.server.wire")
_WIRE_LOG.setLevel(logging.ERROR)


class WebSocketProtocol(asyncio.Protocol):
    """One connection, from the upgrade to the loss of the socket. It is the `Sink` of its session.

    Args:
        entrance: what all connections share.
        server_state: uvicorn's; its `connections` are told to shut down when the server stops.
        hello_due_s: when the hello must have come, by the loop's clock; None: a whole timeout from the upgrade on.
        close_timeout_s: how long a closed connection may linger.
        frames_per_s: how many are read of it, after a burst.
    """

    def __init__(
        self,
        entrance: Entrance,
        *,
        server_state: ServerState,
        hello_due_s: float | None = None,
        close_timeout_s: float = CLOSE_TIMEOUT_S,
        frames_per_s: float = FRAMES_PER_S,
        **_: object,
    ) -> None:
        self._entrance = entrance
        self._hello_due_s = hello_due_s
        self._close_timeout_s = close_timeout_s
        self._connections: set[object] = server_state.connections  # type: ignore[assignment]
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self.wire = ServerProtocol(
            select_subprotocol=lambda _, offered: select_subprotocol(offered),  # type: ignore[arg-type,return-value]
            max_size=2 * entrance.limits.max_message_bytes,
            logger=_WIRE_LOG,
        )
        self._door: Door | None = None
        self._number: int | None = None
        self._unread = bytearray()
        self._frames: deque[Event] = deque()
        self._turn: asyncio.Handle | None = None
        self._budget = TokenBucket(rate_per_s=frames_per_s, burst=FRAME_BURST, now_s=entrance.clock())
        self._message = bytearray()
        self._text = True
        self._incomplete_bytes = 0
        # Which may come together: while `_closing`, nothing that comes counts any more, but is read on, up to the other
        # side's close frame. It may be `_congested` then, but not `_is_clogged`. What came is taken in `_turn`s, also
        # after the socket was `_lost`, unless it was `_closing`. `_lost` is never `_congested`.
        self._congested = False
        self._closing = False
        self._lost = False
        # One at a time: the hello's timeout, then the heartbeat, then the closing's timeout.
        self._timer: asyncio.TimerHandle | None = None
        self._pulse = Pulse()
        self._written_bytes = 0

    # --- Sink ------------------------------------------------------------------------------------------------------

    def try_send(self, *frames: bytes) -> None:
        """Sends text frames now, in one write; does nothing once the connection is closing.

        Framed here: through the library, which asks for an object and several calls a frame, it costs three times this.
        """
        if self.wire.state is State.OPEN and not self._transport.is_closing():
            pieces = self.wire.data_to_send()  # the handshake, where a message came together with it, or a pong
            for frame in frames:
                pieces += (text_header(len(frame)), frame)
            self._write(b"".join(pieces))

    @property
    def congested(self) -> bool:
        """Whether more than 32 KiB wait to be sent."""
        return self._congested

    def close(self, code: int, reason: str) -> None:
        """Sends a close frame after what was sent, and cuts the connection if the client does not follow in time."""
        if self._transport.is_closing():
            self._closing = True  # nor is what has come and was not taken yet
        elif self.wire.state is State.OPEN:
            self.wire.send_close(code, _shortened(reason))
            self._flush()

    # --- called by uvicorn and asyncio -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Takes over the socket from the HTTP protocol."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        """Takes what it may take at once; asyncio calls this no more until all of it is taken."""
        self._pulse.sign()
        self._unread += data
        if self._turn is None:
            self._take()

    def eof_received(self) -> None:
        """The client has ended its half; it would not answer anything any more, but what it has said counts."""
        self._loop.call_soon(self._transport.abort)  # asyncio's TLS, which calls this, is not done with it yet

    def pause_writing(self) -> None:
        """The write buffer is above the high-water mark."""
        self._congested = True

    def resume_writing(self) -> None:
        """The write buffer is below the low-water mark again."""
        self._congested = False
        self._pulse.sign()
        self._go_on()
        if self._number is not None and not self._closing:
            self._entrance.sessions.drained(self._number)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  (asyncio's signature)
        """The socket is gone, whoever ended it; a session is still told what had come."""
        self._lost = True
        self._congested = False
        if self._closing or self._number is None:
            self._leave()
        else:
            self._go_on()

    def cut(self) -> None:
        """Ends the connection at once."""
        self._closing = True
        self._transport.abort()
        if self._lost:
            self._leave()

    def shutdown(self) -> None:
        """The server stops: the client is to come back, and has little time to say goodbye."""
        self.close(CloseCode.RESTART, "the server restarts")
        self._arm(STOP_TIMEOUT_S, self.cut)

    def drain(self) -> None:
        """The server is about to stop: who has no session yet gets none."""
        if self._number is None:
            self.close(CloseCode.DRAINING, "the server is about to restart")

    # --- inside ----------------------------------------------------------------------------------------------------

    def _take(self) -> None:
        """Takes what has come, up to the next message for the session, or the end of a slice.

        Others have their turn before it goes on, the session too: how much a client asks shows in the answer.
        """
        self._turn = None
        if not self._is_clogged:
            if self._unread and not self._frames:
                self._parse()
            while self._frames and not self._on_event(self._frames.popleft()):
                pass
            if not self._frames:
                if self._is_hello_too_large:
                    self.wire.fail(CloseCode.TOO_BIG, "the first message is too large")
                self._flush()
        self._go_on()

    def _parse(self) -> None:
        piece = self._unread[:SLICE_BYTES]
        del self._unread[:SLICE_BYTES]
        if self._door is not None:
            self._incomplete_bytes += len(piece)
        self.wire.receive_data(piece)
        self._frames.extend(self.wire.events_received())
        self._budget.spend(1 + len(self._frames))

    def _go_on(self) -> None:
        """Arranges that what has come is taken soon; only when all of it is, more is read, or the connection left."""
        if self._turn is not None or (self._transport.is_closing() and not self._lost):
            return
        wait_s = self._budget.wait_s(self._entrance.clock())
        if self._lost and (self._closing or not (self._unread or self._frames)):
            self._leave()
        elif self._is_clogged:
            self._transport.pause_reading()
        elif self._unread or self._frames or wait_s:
            self._transport.pause_reading()
            self._turn = self._loop.call_later(wait_s, self._take) if wait_s else self._loop.call_soon(self._take)
        else:
            self._transport.resume_reading()

    def _leave(self) -> None:
        for waiting in (self._timer, self._turn):
            if waiting is not None:
                waiting.cancel()
        self._connections.discard(self)
        self._entrance.left(self._transport)
        if self._number is not None:
            self._entrance.sessions.detach(self._number)

    @property
    def _is_hello_too_large(self) -> bool:
        hello_awaited = self._door is not None and not self._door.accepted
        return hello_awaited and self._incomplete_bytes > 2 * MAX_HELLO_BYTES and not self._closing

    @property
    def _is_clogged(self) -> bool:
        """Whether the client has to read before it is heard again."""
        return self._congested and not self._closing and self._transport.get_write_buffer_size() > MAX_UNSENT_BYTES

    def _on_event(self, event: Event) -> bool:
        """Acts on what the framing has found; returns whether it went to the session."""
        if isinstance(event, Request):
            self._open(event)
        elif isinstance(event, Frame):
            return self._on_frame(event)
        return False

    def _open(self, request: Request) -> None:
        """Answers the upgrade request."""
        head = Head.of(request.headers.get_all)
        is_secure = self._transport.get_extra_info("ssl_object") is not None
        caller = self._entrance.caller(head, peer=peer_address(self._transport), is_secure=is_secure)
        needed = WEBSOCKET_ROUTES.get(request.path.partition("?")[0])
        refusal = self._entrance.refusal(head, caller)
        if refusal is None and needed is None:
            refusal = Refusal(404, "no WebSocket here; it is at /v1/ws")
        if refusal is not None:
            response = self.wire.reject(refusal.status, refusal.message + "\n")
        else:
            response = self.wire.accept(request)
        self.wire.send_response(response)
        if needed is not None and self.wire.state is State.OPEN:
            self._entrance.upgraded(self._transport, caller)
            self._await_hello(needed, head, caller.address)

    def _await_hello(self, needed: Role, head: Head, address: str) -> None:
        def identify(hello_auth: str | None) -> Identity | Denied:
            token = credential(authorization=head.authorization, subprotocols=head.subprotocols, hello_auth=hello_auth)
            return self._entrance.authenticator.identify(token, address)

        self._door = Door(
            identify=identify,
            needed=needed,
            max_message_bytes=self._entrance.limits.max_message_bytes,
            clock=self._entrance.clock,
        )
        timeout_s = self._entrance.server.hello_timeout_s
        if self._hello_due_s is not None:
            timeout_s = max(0.0, self._hello_due_s - self._loop.time())
        self._arm(timeout_s, self._time_out)
        if self._entrance.draining:
            self.drain()

    def _on_frame(self, frame: Frame) -> bool:
        """Joins fragments; control frames have been answered by the framing."""
        if frame.opcode not in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            return False
        if frame.opcode is not Opcode.CONT:
            self._text = frame.opcode is Opcode.TEXT
        # One buffer and not a list of fragments: a million empty ones must cost nothing.
        self._message += frame.data
        if not frame.fin:
            return False
        data = bytes(self._message)
        self._message.clear()
        self._incomplete_bytes = 0
        return self._on_message(data)

    def _on_message(self, data: bytes) -> bool:
        assert self._door is not None
        if self._closing:
            return False
        is_for_session = False
        for outcome in self._door.receive(data, text=self._text):
            match outcome:
                case Reply(frame):
                    self.try_send(frame)
                case Accepted(hello, identity):
                    self._entrance.signed_in(self._transport, identity, self)
                    self._arm(self._entrance.server.heartbeat_s, self._beat)
                    self._number = self._entrance.sessions.attach(self, identity.principal, identity.role, hello)
                case Forward(message):
                    assert self._number is not None
                    self._entrance.sessions.receive(self._number, message)
                    is_for_session = True
                case Close(code, reason):
                    self.close(code, reason)
                case _:
                    assert_never(outcome)
        return is_for_session

    def _time_out(self) -> None:
        assert self._door is not None
        outcome = self._door.timed_out()
        self.close(outcome.code, outcome.reason)

    def _beat(self) -> None:
        unsent_bytes = self._transport.get_write_buffer_size()
        if not self._pulse.beat(written_bytes=self._written_bytes, unsent_bytes=unsent_bytes):
            self.close(CloseCode.HEARTBEAT, "no sign of life")
            return
        self.wire.send_ping(b"")
        self._flush()
        self._arm(self._entrance.server.heartbeat_s, self._beat)

    def _flush(self) -> None:
        """Writes what the framing has to say, and ends the connection when it says so."""
        pieces = self.wire.data_to_send()
        if self._transport.is_closing():
            return
        if any(pieces) and not self._closing:  # a close frame is the last, also where pings still come
            self._write(b"".join(pieces))
        if SEND_EOF in pieces:
            self._end()
        if self.wire.close_expected() and not self._closing:
            self._closing = True
            self._go_on()
            self._arm(self._close_timeout_s, self.cut)

    def _end(self) -> None:
        """Ends our half of the connection, or both halves when the client has said goodbye or was never let in.

        What a failed client is still sending must be read: closing on unread data resets the connection, and the reset
        overtakes the close frame that tells why.
        """
        still_sending = self.wire.state is not State.CONNECTING and self.wire.close_rcvd is None
        if still_sending and self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()

    def _write(self, data: bytes) -> None:
        self._transport.write(data)
        self._written_bytes += len(data)
        if self._is_clogged:
            self._transport.pause_reading()

    def _arm(self, delay_s: float, callback: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(delay_s, callback)


def text_header(size_bytes: int) -> bytes:
    """The header of an unfragmented, unmasked text frame. Source: RFC 6455, section 5.2."""
    if size_bytes < 126:
        return bytes((0x81, size_bytes))
    if size_bytes < 2**16:
        return b"\x81\x7e" + size_bytes.to_bytes(2, "big")
    return b"\x81\x7f" + size_bytes.to_bytes(8, "big")


def _shortened(reason: str) -> str:
    """At most 123 bytes of UTF-8. Source: RFC 6455, section 5.5."""
    return reason.encode()[:123].decode(errors="ignore")

"""What one connection may say, and what it hears from the door itself.

Owns the hello, the size and the rate of messages, and the answers that need no session. Knows neither sockets nor
sessions; the timer of the hello is outside. Invariant: before a valid hello the client gets only `pong`, one `error`
and a close.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import msgspec

from llmws.access import Identity, Role, permits
from llmws.protocol import VERSION, CloseCode, ErrorCode, FrameError, decode, encode
from llmws.protocol import messages as m
from llmws.server.auth import Denied
from llmws.server.limits import TokenBucket

MAX_HELLO_BYTES: Final = 8192
INVALID_UTF8: Final = 1007
"""Close code for a text frame that is not UTF-8. Source: RFC 6455, section 8.1."""

MESSAGES_PER_S: Final = 1000.0
MESSAGE_BURST: Final = 2000
"""An acknowledgement for every token of a fast stream stays well below."""

BAD_MESSAGES_PER_S: Final = 5.0
BAD_MESSAGE_BURST: Final = 100
"""Used up, nothing more is even decoded until it has refilled."""


class Reply(msgspec.Struct, frozen=True):
    """A frame for the client."""

    frame: bytes


class Accepted(msgspec.Struct, frozen=True):
    """A valid hello."""

    hello: m.Hello
    identity: Identity


class Forward(msgspec.Struct, frozen=True):
    """A message for the session."""

    message: m.ClientMessage


class Close(msgspec.Struct, frozen=True):
    """The end of the connection; nothing is received after it."""

    code: int
    reason: str


Outcome = Reply | Accepted | Forward | Close


class Door:
    """The rules for one connection. Feed it each complete message; do what it returns, in order.

    Args:
        identify: a token to who shows it; given the hello's `auth`.
        needed: the least role that may come in.
        max_message_bytes: a larger message is refused.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        *,
        identify: Callable[[str | None], Identity | Denied],
        needed: Role,
        max_message_bytes: int,
        clock: Callable[[], float],
    ) -> None:
        self._identify = identify
        self._needed = needed
        self._max_message_bytes = max_message_bytes
        self._clock = clock
        self._messages = TokenBucket(rate_per_s=MESSAGES_PER_S, burst=MESSAGE_BURST, now_s=clock())
        self._faults = TokenBucket(rate_per_s=BAD_MESSAGES_PER_S, burst=BAD_MESSAGE_BURST, now_s=clock())
        self._accepted = False

    @property
    def accepted(self) -> bool:
        """Whether a valid hello has come."""
        return self._accepted

    def receive(self, data: bytes, *, text: bool) -> tuple[Outcome, ...]:
        """Takes one message: the payload of a text frame, or of a binary one."""
        now_s = self._clock()
        wait_s = max(self._messages.wait_s(now_s), self._faults.wait_s(now_s))
        if wait_s > 0:
            limited = _rate_limited(wait_s, "too many messages; this one was dropped")
            return (limited,) if self._accepted else (limited, Close(CloseCode.BAD_HELLO, "too many messages"))
        self._messages.spend()
        try:
            frame = data.decode() if text else data
        except UnicodeDecodeError:
            return (Close(INVALID_UTF8, "a text frame must be UTF-8"),)
        if self._accepted:
            return (self._after_hello(frame, len(data)),)
        return self._before_hello(frame, len(data))

    def timed_out(self) -> Close:
        """No valid hello came in time."""
        return Close(CloseCode.NO_HELLO, "no hello in time")

    def _before_hello(self, frame: str | bytes, size_bytes: int) -> tuple[Outcome, ...]:
        if size_bytes > MAX_HELLO_BYTES:
            text = f"the first message may have {MAX_HELLO_BYTES} bytes"
            return _refuse(CloseCode.BAD_HELLO, ErrorCode.TOO_LARGE, text)
        try:
            message = decode(frame, first=True)
        except FrameError as error:
            return _refuse(CloseCode.BAD_HELLO, ErrorCode.BAD_MESSAGE, error.message, field=error.field)
        match message:
            case m.Ping(t=t):
                return (Reply(encode(m.Pong(t=t))),)
            case m.Hello():
                return self._hello(message)
            case _:
                return _refuse(CloseCode.BAD_HELLO, ErrorCode.BAD_MESSAGE, "the first message must be a hello")

    def _hello(self, hello: m.Hello) -> tuple[Outcome, ...]:
        identity = self._identify(hello.auth)
        if isinstance(identity, Denied):
            if identity.retry_after_s is not None:
                limited = _rate_limited(identity.retry_after_s, "too many failed sign-ins from this address")
                return (limited, Close(CloseCode.UNAUTHORIZED, "too many failed sign-ins"))
            return _refuse(CloseCode.UNAUTHORIZED, ErrorCode.UNAUTHORIZED, "a valid token is needed")
        if not permits(identity.role, self._needed):
            return _refuse(CloseCode.FORBIDDEN, ErrorCode.FORBIDDEN, "this token may not open a session")
        if hello.protocol is not None and VERSION not in hello.protocol:
            message = f"this server speaks protocol version {VERSION}"
            return _refuse(CloseCode.PROTOCOL, ErrorCode.UNSUPPORTED_PROTOCOL, message)
        self._accepted = True
        return (Accepted(hello, identity),)

    def _after_hello(self, frame: str | bytes, size_bytes: int) -> Outcome:
        try:
            message = self._decode(frame, size_bytes)
        except FrameError as error:
            if error.code != ErrorCode.UNKNOWN_TYPE:  # a client of a newer version means no harm, and costs little
                self._faults.spend()
            return Reply(encode(error.to_message()))
        if isinstance(message, m.Ping):
            return Reply(encode(m.Pong(t=message.t)))
        return Forward(message)

    def _decode(self, frame: str | bytes, size_bytes: int) -> m.ClientMessage:
        if size_bytes > self._max_message_bytes:
            raise FrameError(ErrorCode.TOO_LARGE, f"a message may have {self._max_message_bytes} bytes")
        message = decode(frame)
        if isinstance(message, m.Hello):
            raise FrameError(ErrorCode.BAD_MESSAGE, "the hello has been said already")
        return message


def _refuse(close: CloseCode, code: ErrorCode, message: str, *, field: str | None = None) -> tuple[Outcome, ...]:
    error = m.Error(code=code, message=message, retryable=code.retryable, field=field)
    return (Reply(encode(error)), Close(close, message))


def _rate_limited(wait_s: float, message: str) -> Reply:
    code = ErrorCode.RATE_LIMITED
    retry_after_ms = math.ceil(wait_s * 1000)
    return Reply(encode(m.Error(code=code, message=message, retryable=code.retryable, retry_after_ms=retry_after_ms)))

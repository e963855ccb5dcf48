"""Who loads the measured servers: one process, one loop, and as little CPU as can be, for the machine has few cores."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable
from typing import Any, Final

from bench.servers import HOST, TIMEOUT_S
from llmws.protocol import encode
from llmws.protocol import messages as m

LET_IN: Final = 50
"""Users who come at once."""


class SurpriseError(Exception):
    """A server did what no figure can be made of."""


def expect(is_so: bool, what: str, found: object) -> None:  # noqa: FBT001 - reads like the `assert` that -O would drop
    """Stops the run where something else came."""
    if not is_so:
        raise SurpriseError(f"expected {what}, got {found!r}")


class Wire(asyncio.Protocol):
    """One WebSocket connection that takes as little CPU as can be, for the machine has few cores to share.

    Knows no fragments, no message above 64 KiB, and of control frames ping and close: nothing else comes here.
    """

    def __init__(self, on_message: Callable[[bytes], None]) -> None:
        self.on_message = on_message
        self.on_lost: Callable[[], None] = lambda: None
        self.messages = 0
        self.message_bytes = 0
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asks for the upgrade."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(
            f"GET / HTTP/1.1\r\nHost: {HOST}:{transport.get_extra_info('peername')[1]}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        """Cuts out the messages."""
        data = self._rest + data
        at = 0
        if not self.opened.done():
            head, end, _ = data.partition(b"\r\n\r\n")
            if not end:
                self._rest = data
                return
            expect(head.startswith(b"HTTP/1.1 101"), "an upgrade", head)
            at = len(head) + len(end)
            self.opened.set_result(None)
        while len(data) >= at + 2:
            size, start = data[at + 1], at + 2
            if size == 126:
                size, start = (
                    int.from_bytes(data[at + 2 : at + 4]),
                    at + 4,
                )  # even where it is cut off, too long for what is there
            if len(data) < start + size:
                break
            if data[at] == 0x89:  # a ping, which is empty
                self.transport.write(b"\x8a\x80\0\0\0\0")
                at = start
                continue
            if data[at] == 0x88:
                self.transport.close()
                return
            expect(data[at] == 0x81, "a text message", data[at:start])
            at = start + size
            self.messages += 1
            self.message_bytes += size
            self.on_message(data[start:at])
        self._rest = data[at:]

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends a wait for the upgrade."""
        if not self.opened.done():
            self.opened.set_exception(exc or ConnectionError("closed before the upgrade"))
        self.on_lost()

    def send(self, message: bytes) -> None:
        """Sends a text message."""
        self.transport.write(framed(message))


def framed(message: bytes) -> bytes:
    """A text message on the wire, masked with zeros. Source: RFC 6455, section 5.2."""
    size = len(message)
    if size < 126:
        head = bytes([0x81, 0x80 | size])
    elif size < 2**16:
        head = b"\x81\xfe" + size.to_bytes(2)
    else:
        head = b"\x81\xff" + size.to_bytes(8)
    return head + bytes(4) + message


async def connect(port: int, on_message: Callable[[bytes], None], *, address: str | None = None) -> Wire:
    """Opens a connection, from one address of this machine where that is given."""
    loop = asyncio.get_running_loop()
    local = None if address is None else (address, 0)
    async with asyncio.timeout(TIMEOUT_S):
        _, wire = await loop.create_connection(lambda: Wire(on_message), HOST, port, local_addr=local)
        await wire.opened
    return wire


class User:
    """Asks, reads the answer to its end, acknowledges it and asks again.

    Attributes:
        late_ms: how old each token was when it came, where its text is when it was made.
    """

    def __init__(self, *, acknowledges: bool = True, token: str | None = None) -> None:
        self.welcome: dict[str, Any] = {}
        self.done: dict[str, Any] = {}
        self.wire: Wire
        self.late_ms: list[float] = []
        self.keeps_times = False
        self._acknowledges = acknowledges
        self._token = token
        self._left = self._tokens = 0
        self._idle: asyncio.Future[None]

    async def attach(self, port: int) -> None:
        """Begins a session."""
        self.wire = await connect(port, self._on_message)
        self._idle = asyncio.get_running_loop().create_future()
        self.wire.send(encode(m.Hello(auth=self._token)))
        await self._until_idle()

    async def ask(self, times: int, tokens: int) -> None:
        """Has so many answers of so many tokens; returns when the last is acknowledged."""
        self._left, self._tokens = times, tokens
        self._idle = asyncio.get_running_loop().create_future()
        self._ask()
        await self._until_idle()

    async def _until_idle(self) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            await self._idle

    def _ask(self) -> None:
        config = m.Sampling(max_new_tokens=self._tokens)
        self.wire.send(encode(m.Inference(request_id=str(uuid.uuid4()), input_ids=[1, 2, 3], config=config)))

    def _on_message(self, message: bytes) -> None:
        if message.startswith(b'{"type":"token"'):
            if self.keeps_times:
                made_ns = int(message.partition(b'"data":" ')[2].split(b'"', 1)[0].split(b" ", 1)[0])
                self.late_ms.append((time.monotonic_ns() - made_ns) / 1e6)
            return
        if message.startswith(b'{"type":"done"'):
            self.done = json.loads(message)
            self._left -= 1
            if self._acknowledges:
                self.wire.send(encode(m.Ack(seq=self.done["seq"])))
            if self._left:
                self._ask()
            elif not self._acknowledges:
                self._idle.set_result(None)
        elif message.startswith(b'{"type":"ack_received"'):
            if not self._left and json.loads(message)["seq"] == self.done["seq"]:
                self._idle.set_result(None)
        elif message.startswith(b'{"type":"welcome"'):
            self.welcome = json.loads(message)
            self._idle.set_result(None)
        else:
            expect(message.startswith(b'{"type":"start"'), "an event of an answer", message)


async def users(port: int, count: int) -> list[User]:
    """So many users with a session each, let in a few at a time."""
    everyone = [User() for _ in range(count)]
    for first in range(0, count, LET_IN):
        await asyncio.gather(*(user.attach(port) for user in everyone[first : first + LET_IN]))
    return everyone


async def answered(everyone: list[User], times: int, tokens: int) -> int:
    """Everyone has so many answers of so many tokens; returns how many messages came."""
    before = sum(user.wire.messages for user in everyone)
    await asyncio.gather(*(user.ask(times, tokens) for user in everyone))
    return sum(user.wire.messages for user in everyone) - before


class Echoes:
    """Clients of the yardstick, each with one message on its way at a time."""

    def __init__(self, wires: list[Wire]) -> None:
        self._wires = wires

    @classmethod
    async def connect(cls, port: int, count: int) -> Echoes:
        """So many connections."""
        return cls([await connect(port, lambda _: None) for _ in range(count)])

    async def send(self, times: int, payload: bytes) -> int:
        """Sends the payload to and fro so many times on every connection; returns how many messages came back."""
        loop = asyncio.get_running_loop()
        done = [loop.create_future() for _ in self._wires]
        for wire, over in zip(self._wires, done, strict=True):
            wire.on_message = _again(wire, wire.messages + times, payload, over)
            wire.send(payload)
        async with asyncio.timeout(TIMEOUT_S):
            await asyncio.gather(*done)
        return times * len(self._wires)


def _again(wire: Wire, until: int, payload: bytes, over: asyncio.Future[None]) -> Callable[[bytes], None]:
    def on_message(_: bytes) -> None:
        if wire.messages < until:
            wire.send(payload)
        else:
            over.set_result(None)

    return on_message

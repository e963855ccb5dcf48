"""A socket that is none: it hands bytes to a protocol as asyncio would, and keeps what comes back.

Knows no protocol of ours. Invariant: like a real transport it hands nothing over while reading is paused or once it is
closing.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

READ_BYTES: Final = 256 * 1024
"""The most that asyncio's transport reads from a socket at once for a protocol without a buffer of its own."""


class FakeTransport(asyncio.Transport):
    """One connection from loopback.

    Args:
        is_stuck: whether the other side reads nothing of what it is sent.

    Attributes:
        output: what the other side was sent.
        longest_step_ns: processor time of the read that took longest.
    """

    def __init__(self, *, is_stuck: bool) -> None:
        super().__init__(extra={"peername": ("127.0.0.1", 50_000), "sockname": ("127.0.0.1", 8765)})
        self.output = bytearray()
        self.longest_step_ns = 0
        self._is_stuck = is_stuck
        self._is_closing = False
        self._is_reading = True
        self._is_congested = False
        self._high_bytes = 64 * 1024
        self._protocol: Any = None

    def begin(self, protocol: Any) -> None:
        """The connection is made."""
        self._protocol = protocol
        protocol.connection_made(self)

    async def feed(self, data: bytes, *, patience: int = 50) -> None:
        """What the other side sends, in reads as asyncio makes them.

        Args:
            data: all of it.
            patience: how many steps of the loop it waits for reading to go on; what is left then is never read.
        """
        left = memoryview(data)
        while left and not self._is_closing:
            if not self._is_reading:
                if patience == 0:
                    return
                patience -= 1
                await asyncio.sleep(0)
                continue
            began_ns = time.thread_time_ns()
            left = left[self._hand_over(left) :]
            self.longest_step_ns = max(self.longest_step_ns, time.thread_time_ns() - began_ns)

    async def taken(self, *, patience: int = 50) -> None:
        """Lets the loop run a few steps, and on until what was read is dealt with and reading goes on."""
        for step in range(patience):
            await asyncio.sleep(0)
            if self._is_reading and step > 2:
                return

    def _hand_over(self, data: memoryview) -> int:
        """One read; returns how much it took."""
        if not isinstance(self._protocol, asyncio.BufferedProtocol):
            self._protocol.data_received(bytes(data[:READ_BYTES]))
            return READ_BYTES
        buffer = memoryview(self._protocol.get_buffer(-1))
        size = min(len(buffer), len(data))
        buffer[:size] = data[:size]
        self._protocol.buffer_updated(size)
        return size

    def lose(self) -> None:
        """The connection is gone."""
        self._is_closing = True
        self._protocol.connection_lost(None)

    # --- asyncio.Transport -----------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.output += data
        if self._is_stuck and not self._is_congested and len(self.output) > self._high_bytes:
            self._is_congested = True
            self._protocol.pause_writing()

    def get_write_buffer_size(self) -> int:
        return len(self.output) if self._is_stuck else 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high_bytes = high or 0

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol

    def pause_reading(self) -> None:
        self._is_reading = False

    def resume_reading(self) -> None:
        self._is_reading = True

    def is_reading(self) -> bool:
        return self._is_reading

    def is_closing(self) -> bool:
        return self._is_closing

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """The other side may still send."""

    def close(self) -> None:
        self._is_closing = True

    def abort(self) -> None:
        self._is_closing = True

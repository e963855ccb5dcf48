"""A network in memory: latency, odd packet sizes, bounded buffers, resets, half-open connections, black holes.

Two `Transport`s make a `Wire`. Bytes pass the sender's buffer, what is on the way, and the receiver; each is bounded,
so a side that does not read is felt at the other. Invariant: what one side reads is a prefix of what the other wrote.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from typing import Any

from tests.faults.simulation.loop import VirtualLoop

ON_THE_WAY_BYTES = 16 * 1024
PACKETS_BYTES = (1, 7, 60, 536, 1400, 1400, 9000)
LATENCIES_S = (0.0002, 0.002, 0.02, 0.02, 0.2, 1.5)


class Listener:
    """What stands for a listening socket."""

    def __init__(self, port: int) -> None:
        self.port = port

    def getsockname(self) -> tuple[str, int]:
        return ("127.0.0.1", self.port)

    def listen(self, backlog: int) -> None:
        pass

    def close(self) -> None:
        pass


class SimulatedServer:
    """What stands for `asyncio.Server`."""

    def __init__(self, network: SimulatedNetwork, port: int, factory: Callable[[], asyncio.Protocol]) -> None:
        self.factory = factory
        self._network = network
        self._port = port

    def close(self) -> None:
        if self._network.servers.get(self._port) is self:
            del self._network.servers[self._port]

    async def wait_closed(self) -> None:
        pass


class SimulatedNetwork:
    """All wires there are. While it is parted nothing arrives anywhere, and nobody is told."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.servers: dict[int, SimulatedServer] = {}
        self.wires: list[Wire] = []
        self.made = 0
        self.latencies_s = LATENCIES_S
        self._whole = asyncio.Event()
        self._whole.set()

    def listen(self, factory: Callable[[], asyncio.Protocol], listener: Listener) -> SimulatedServer:
        server = self.servers[listener.port] = SimulatedServer(self, listener.port, factory)
        return server

    async def connect(
        self, loop: VirtualLoop, factory: Callable[[], asyncio.Protocol], port: int
    ) -> tuple[asyncio.Transport, asyncio.Protocol]:
        self.made += 1
        rng = random.Random(f"{self.rng.random()}")
        wire = Wire(loop, rng, self.made, latency_s=rng.choice(self.latencies_s))
        await asyncio.sleep(wire.latency_s())
        await self._whole.wait()
        if (server := self.servers.get(port)) is None:
            raise ConnectionRefusedError(111, "Connection refused")
        self.wires = [each for each in self.wires if not each.is_over]
        self.wires.append(wire)
        wire.server.set_protocol(server.factory())
        wire.server.protocol.connection_made(wire.server)
        wire.client.set_protocol(factory())
        wire.client.protocol.connection_made(wire.client)
        return wire.client, wire.client.protocol

    def live(self) -> list[Wire]:
        """The connections that neither side has given up."""
        return [wire for wire in self.wires if not (wire.client.is_closing() or wire.server.is_closing())]

    def part(self) -> None:
        """Nothing gets through any more, on any connection there is or will be; the old ones never recover."""
        self._whole.clear()
        for wire in self.wires:
            wire.is_stalled = True

    def join(self) -> None:
        """New connections get through again."""
        self._whole.set()

    def heal(self) -> None:
        """New connections get through, and are quick."""
        self.join()
        self.latencies_s = LATENCIES_S[:2]


class Wire:
    """One connection. `is_stalled`: what is on the way never arrives, and neither side is told."""

    def __init__(self, loop: VirtualLoop, rng: random.Random, number: int, *, latency_s: float) -> None:
        self.loop = loop
        self.rng = rng
        self.number = number
        self.is_stalled = False
        self._packets_bytes = rng.sample(PACKETS_BYTES, 2)
        self._latency_s = latency_s
        self.client = Transport(self, ("127.0.0.1", 40_000 + number % 20_000))
        self.server = Transport(self, ("127.0.0.1", 8765))
        self.client.peer, self.server.peer = self.server, self.client

    @property
    def is_over(self) -> bool:
        return self.client.is_lost and self.server.is_lost

    def latency_s(self) -> float:
        return self._latency_s * (0.5 + self.rng.random())

    def packet_bytes(self) -> int:
        return self.rng.choice(self._packets_bytes)

    def reset(self) -> None:
        """A box on the way forgets the connection: both sides are told, one of them perhaps much later."""
        for side in self.rng.sample([self.client, self.server], 2):
            self.loop.call_later(self.rng.choice([0.0, 0.0, 0.1, 30.0]), side.lose, ConnectionResetError(104, "reset"))
        self.is_stalled = True


class Transport(asyncio.Transport):
    """One end of a wire, as asyncio has it."""

    peer: Transport

    def __init__(self, wire: Wire, address: tuple[str, int]) -> None:
        super().__init__()
        self.is_lost = False
        self._wire = wire
        self._address = address
        self._protocol: asyncio.Protocol | None = None
        self._unsent = bytearray()
        self._on_the_way_bytes = 0
        self._coming: deque[bytes] = deque()
        self._arrived: deque[bytes] = deque()
        self._last_arrival_s = 0.0
        self._high, self._low = 64 * 1024, 16 * 1024
        self._is_paused = self._is_full = self._is_closing = self._has_ended = False

    # --- asyncio.Transport -----------------------------------------------------------------------------------------

    @property
    def protocol(self) -> asyncio.Protocol:
        assert self._protocol is not None
        return self._protocol

    def set_protocol(self, protocol: Any) -> None:
        self._protocol = protocol

    def get_protocol(self) -> Any:
        return self._protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": self.peer._address, "sockname": self._address}.get(name, default)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = 64 * 1024 if high is None else high
        self._low = self._high // 4 if low is None else low

    def get_write_buffer_size(self) -> int:
        return len(self._unsent)

    def write(self, data: Any) -> None:
        if self._has_ended or self.is_lost:
            return
        self._unsent += data
        self._send()
        if len(self._unsent) > self._high and not self._is_full:
            self._is_full = True
            self.protocol.pause_writing()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if not self._has_ended:
            self._has_ended = True
            self._end_if_sent()

    def is_closing(self) -> bool:
        return self._is_closing

    def is_reading(self) -> bool:
        return not (self._is_paused or self._is_closing)

    def pause_reading(self) -> None:
        self._is_paused = True

    def resume_reading(self) -> None:
        if self._is_paused and not self._is_closing:
            self._is_paused = False
            self._wire.loop.call_soon(self._read)

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            had_ended, self._has_ended = self._has_ended, True
            if not had_ended:
                self._end_if_sent()
            elif not self._unsent:
                self._wire.loop.call_soon(self.lose, None)

    def abort(self) -> None:
        """The other side reads what is on the way and then the end, or hears of a reset at once."""
        if self.is_lost:
            return
        self._is_closing = True
        self._unsent.clear()
        if self._wire.rng.random() < 0.5 or self._has_ended:
            self._reset_peer()
        else:
            self._arrive_later(b"")
        self._wire.loop.call_soon(self.lose, None)

    # --- the wire --------------------------------------------------------------------------------------------------

    def lose(self, error: Exception | None) -> None:
        """The connection is over for this side, which is told so once."""
        if self.is_lost:
            return
        self.is_lost = self._is_closing = self._has_ended = True
        self._unsent.clear()
        self._arrived.clear()
        self.protocol.connection_lost(error)

    def _send(self) -> None:
        while self._unsent and self._on_the_way_bytes < ON_THE_WAY_BYTES:
            packet = bytes(self._unsent[: self._wire.packet_bytes()])
            del self._unsent[: len(packet)]
            self._on_the_way_bytes += len(packet)
            self._arrive_later(packet)
        if self._is_full and len(self._unsent) <= self._low:
            self._is_full = False
            self.protocol.resume_writing()

    def _end_if_sent(self) -> None:
        """Our half of the connection ends once all of it was sent."""
        if self._has_ended and not self._unsent and not self.is_lost:
            self._arrive_later(b"")
            if self._is_closing:
                self._wire.loop.call_soon(self.lose, None)

    def _arrive_later(self, packet: bytes) -> None:
        at_s = max(self._last_arrival_s, self._wire.loop.now_s + self._wire.latency_s())
        self._last_arrival_s = at_s
        self.peer._coming.append(packet)
        self._wire.loop.call_at(at_s, self.peer._arrive)

    def _arrive(self) -> None:
        packet = self._coming.popleft()
        if self._wire.is_stalled:
            return
        if self._is_closing:
            if packet and self.is_lost:
                self._reset_peer()
            return
        self._arrived.append(packet)
        self._read()

    def _read(self) -> None:
        while self._arrived and not self._is_paused and not self._is_closing:
            packet = self._arrived.popleft()
            if packet:
                self.protocol.data_received(packet)
                self.peer._taken(len(packet))
            elif not self.protocol.eof_received():
                self.close()

    def _taken(self, size_bytes: int) -> None:
        if not self.is_lost:
            self._on_the_way_bytes -= size_bytes
            had_unsent = bool(self._unsent)
            self._send()
            if had_unsent:
                self._end_if_sent()

    def _reset_peer(self) -> None:
        if not self._wire.is_stalled:
            error = ConnectionResetError(104, "Connection reset by peer")
            self._wire.loop.call_later(self._wire.latency_s(), self.peer.lose, error)

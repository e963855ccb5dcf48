"""A TCP proxy that does to connections what networks do to them.

Owns the sockets between a client and a server; knows nothing of what they say, but that a WebSocket begins with an
upgrade and a hello. What happens to a connection is a value, its `Treatment`, so that a seed decides and repeats it.
Invariant: until its fault strikes, a connection carries every byte, once and in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import math
import random
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple, Self

import msgspec

from tests.support.frames import reset_at_end

CHUNK_BYTES = 65_536
CLOSE_TIMEOUT_S = 5.0
HEAD_END = b"\r\n\r\n"


class Fault(enum.StrEnum):
    """How a connection comes to harm.

    `REFUSED`: reset as soon as it is accepted. `CUT`: both sides are closed in the normal way. `RESET`: both get a RST.
    `BLACK_HOLE`: bytes vanish in both directions, and so does its end; then both get a RST. `HALF_CLOSE`: the stream's
    receiver sees it end while the other stream goes on; then both get a RST. `LATE_DEATH`: the client gets a RST, the
    server hears of it later.
    """

    REFUSED = "refused"
    CUT = "cut"
    RESET = "reset"
    BLACK_HOLE = "black hole"
    HALF_CLOSE = "half-close"
    LATE_DEATH = "late death"


class Stream(enum.StrEnum):
    """`UP` goes from the client to the server."""

    UP = "up"
    DOWN = "down"


class Treatment(msgspec.Struct, frozen=True, kw_only=True):
    """What happens to one connection.

    Attributes:
        fault: how it comes to harm; None: not at all.
        stream: whose bytes decide when.
        after_bytes: so many of them arrive.
        lasting_s: how long a black hole, a half-close or a dead client stays as it is.
        latency_s: what each read waits before it goes on.
        jitter_s: up to so much more.
        dribble_bytes: so many bytes of each stream go on one by one.
        is_doubled: the connection is made twice; the server answers the first hello into the void.
    """

    fault: Fault | None = None
    stream: Stream = Stream.DOWN
    after_bytes: int = 0
    lasting_s: float = 0.0
    latency_s: float = 0.0
    jitter_s: float = 0.0
    dribble_bytes: int = 0
    is_doubled: bool = False


UNHARMED = Treatment()


def draw(chance: random.Random, *, reach_bytes: int, lasting_s: float) -> Treatment:
    """A treatment at random.

    Args:
        chance: decides.
        reach_bytes: faults strike within so many bytes from the server, a quarter of them while it is let in.
        lasting_s: what lasts, lasts up to so long.
    """
    stream = chance.choice([Stream.DOWN, Stream.DOWN, Stream.DOWN, Stream.UP])
    is_early = stream is Stream.UP or chance.random() < 0.25
    return Treatment(
        fault=chance.choice(list(Fault)),
        stream=stream,
        after_bytes=chance.randrange(1200 if is_early else reach_bytes),
        lasting_s=chance.random() * lasting_s,
        latency_s=chance.choice([0.0, 0.0, 0.002, 0.01]),
        jitter_s=chance.choice([0.0, 0.0, 0.005]),
        dribble_bytes=chance.choice([0, 0, 0, 1000, 3000]),
        is_doubled=chance.random() < 0.15,
    )


class FaultProxy:
    """Listens on a port of its own and carries what comes to the server's, each connection as it is to be treated.

    Args:
        target: the server's port, asked for with each connection: a server that was killed comes back on another.
        treat: connection number, from 0 -> its treatment.
        chance: decides the jitter.

    Attributes:
        port: to connect to.
        struck: how many connections came to which harm, and which had latency, 1-byte writes or were doubled.
        is_calm: new connections are not harmed any more.
    """

    def __init__(
        self, target: Callable[[], int], treat: Callable[[int], Treatment], *, chance: random.Random | None = None
    ) -> None:
        self.port = 0
        self.struck: Counter[str] = Counter()
        self.is_calm = False
        self._target = target
        self._treat = treat
        self._chance = chance or random.Random(0)
        self._accepted = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Where a client finds the server behind it."""
        return f"ws://127.0.0.1:{self.port}/v1/ws"

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        await _stop(*self._tasks)

    def calm(self) -> None:
        """From now on nothing is harmed; what was begun otherwise is reset, whatever has become of it."""
        self.is_calm = True
        for task in self._tasks:
            task.cancel()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        treatment = UNHARMED if self.is_calm else self._treat(self._accepted)
        self._accepted += 1
        connection = _Connection(End(reader, writer), treatment, self.struck, self._chance)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await connection.carry(self._target())
        except asyncio.CancelledError:
            pass  # by calm or at the end: nobody else knows of this task
        finally:
            connection.reset()
            self._tasks.discard(task)


class End(NamedTuple):
    """The proxy's end of a socket."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def connect(cls, port: int) -> End:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    def reset(self) -> None:
        """Ends it by RST; nothing happens to one that has ended."""
        with contextlib.suppress(OSError):
            sock = self.writer.get_extra_info("socket")
            reset_at_end(sock)
        self.writer.transport.abort()

    async def swallow(self) -> None:
        """Reads what comes; never ends by itself."""
        with contextlib.suppress(OSError):
            while await self.reader.read(CHUNK_BYTES):
                pass
        await asyncio.Event().wait()


class StruckError(Exception):
    """The moment has come."""


class _Connection:
    """One client's connection and what stands for it at the server."""

    def __init__(self, client: End, treatment: Treatment, struck: Counter[str], chance: random.Random) -> None:
        self._client = client
        self._ends = [client]
        self._treatment = treatment
        self._struck = struck
        self._chance = chance

    async def carry(self, port: int) -> None:
        """Carries bytes until both streams have ended, or the fault has."""
        treatment = self._treatment
        if treatment.fault is Fault.REFUSED:
            self._struck[Fault.REFUSED] += 1
            return
        try:
            server = await self._connect(port)
        except (OSError, EOFError):
            return
        self._note_manner()
        up = asyncio.create_task(self._flow(Stream.UP, self._client.reader, server.writer))
        down = asyncio.create_task(self._flow(Stream.DOWN, server.reader, self._client.writer))
        try:
            await asyncio.gather(up, down)
            await _close(self._client, server)
        except OSError:
            return
        except StruckError:
            assert treatment.fault is not None
            self._struck[treatment.fault] += 1
            await self._harm(treatment, server, going_on=up if treatment.stream is Stream.DOWN else down)
        finally:
            await _stop(up, down)

    def reset(self) -> None:
        """Ends by RST what has not ended."""
        for end in self._ends:
            end.reset()

    async def _connect(self, port: int) -> End:
        """The server's end; made twice where that is the treatment, the first one after its welcome left to die."""
        server = await End.connect(port)
        self._ends.append(server)
        if not self._treatment.is_doubled:
            return server
        head = await self._client.reader.readuntil(HEAD_END)
        server.writer.write(head)
        self._client.writer.write(await server.reader.readuntil(HEAD_END))
        hello = await self._client.reader.read(CHUNK_BYTES)
        server.writer.write(hello)
        await server.reader.readexactly(1)
        second = await End.connect(port)
        self._ends.append(second)
        second.writer.write(head)
        await second.reader.readuntil(HEAD_END)
        second.writer.write(hello)
        return second

    def _note_manner(self) -> None:
        treatment = self._treatment
        self._struck["latency"] += treatment.latency_s + treatment.jitter_s > 0
        self._struck["1-byte writes"] += treatment.dribble_bytes > 0
        self._struck["double connect"] += treatment.is_doubled

    async def _flow(self, stream: Stream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        treatment = self._treatment
        is_fatal = treatment.fault is not None and treatment.stream is stream
        room_bytes = treatment.after_bytes if is_fatal else math.inf
        dribble_bytes = treatment.dribble_bytes
        while data := await reader.read(CHUNK_BYTES):
            if delay_s := treatment.latency_s + treatment.jitter_s * self._chance.random():
                await asyncio.sleep(delay_s)
            if len(data) >= room_bytes:
                data = data[: int(room_bytes)]
            for number in range(min(dribble_bytes, len(data))):
                writer.write(data[number : number + 1])
                await writer.drain()
                await asyncio.sleep(0)
            writer.write(data[dribble_bytes:])
            await writer.drain()
            dribble_bytes = max(0, dribble_bytes - len(data))
            room_bytes -= len(data)
            if room_bytes <= 0:
                raise StruckError
        if writer.can_write_eof():
            writer.write_eof()

    async def _harm(self, treatment: Treatment, server: End, *, going_on: asyncio.Task[None]) -> None:
        match treatment.fault:
            case Fault.CUT:
                await _close(self._client, server)
            case Fault.BLACK_HOLE:
                await _stop(going_on)
                await _for(treatment.lasting_s, self._client.swallow(), server.swallow())
            case Fault.HALF_CLOSE:
                sender, receiver = (server, self._client) if treatment.stream is Stream.DOWN else (self._client, server)
                with contextlib.suppress(OSError):
                    receiver.writer.write_eof()
                await _for(treatment.lasting_s, sender.swallow())
            case Fault.LATE_DEATH:
                await _stop(going_on)
                self._client.reset()
                await _for(treatment.lasting_s, server.swallow())


async def _close(*ends: End) -> None:
    """Ends connections in the normal way, after what was written to them."""
    for end in ends:
        end.writer.close()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await asyncio.gather(*(end.writer.wait_closed() for end in ends))


async def _stop(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=CLOSE_TIMEOUT_S)


async def _for(seconds: float, *waits) -> None:
    """Lets them go on for so long."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.gather(*waits)

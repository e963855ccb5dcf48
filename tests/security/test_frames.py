"""WebSocket frames that are small on the wire and large in the server, or that never end."""

from __future__ import annotations

import json
import zlib

from llmws.config import LimitsSection, ServerSection
from tests.support.echo_server import Running, Serve
from tests.support.frames import CONT, PING, TEXT, frame

PING_MESSAGE = '{"type":"ping","t":1}'


async def test_a_compression_bomb_is_never_unpacked(running: Running) -> None:
    """A kilobyte became gigabytes in websockets (CVE-2018-1000518) and in Bandit (GHSA-frh3-6pv6-rc8j)."""
    offers = ("permessage-deflate", "permessage-deflate; client_max_window_bits", "x-webkit-deflate-frame")
    for offer in offers:
        client = await running.upgraded(headers={"Sec-WebSocket-Extensions": offer})
        assert client.status == 101
        assert "sec-websocket-extensions" not in client.headers
        compressor = zlib.compressobj(wbits=-15)
        bomb = compressor.compress(bytes(2**24)) + compressor.flush()
        compressed = bytearray(frame(bomb))
        compressed[0] |= 0x40  # RSV1: this frame is compressed
        client.writer.write(bytes(compressed))
        assert await client.close_code() in (1002, 1009)


async def test_a_declared_length_reserves_no_memory(running: Running) -> None:
    """Eight bytes say how much is to come; whoever makes room for it at once can be made to make room for 2**63."""
    for size in (2**21 + 1, 2**32, 2**63 - 1):
        client = await running.attached()
        client.writer.write(bytes([0x80 | TEXT, 0x80 | 127]) + size.to_bytes(8, "big") + b"\0\0\0\0")
        assert await client.close_code() == 1009


async def test_a_frame_that_proxies_could_misread_ends_the_connection(running: Running) -> None:
    """Unmasked or malformed frames have been used to poison caches between. Source: RFC 6455, section 10.3."""
    whole = frame(PING_MESSAGE.encode())
    wires = {
        "unmasked": frame(PING_MESSAGE.encode(), mask=False),
        "RSV2": bytes([0x80 | 0x20 | TEXT]) + whole[1:],
        "RSV3": bytes([0x80 | 0x10 | TEXT]) + whole[1:],
        "opcode 3": frame(b"", opcode=3),
        "opcode 11": frame(b"", opcode=11),
        "a long ping": frame(b"x" * 126, opcode=PING),
        "a ping in parts": frame(b"x", opcode=PING, fin=False),
        "a negative length": bytes([0x80 | TEXT, 0x80 | 127]) + (2**63).to_bytes(8, "big") + bytes(4),
    }
    actual = {}
    for name, wire in wires.items():
        client = await running.attached()
        client.writer.write(wire)
        actual[name] = await client.close_code()
    assert actual == {**dict.fromkeys(wires, 1002), "a negative length": 1009}


async def test_endless_fragments_cost_no_memory(serve: Serve) -> None:
    """The ws library held an object for each fragment, however small, so that few bytes on the wire were gigabytes."""
    running = await serve(limits=LimitsSection(max_message_bytes=65_536))
    client = await running.attached()
    client.send("", fin=False)
    client.writer.write(frame(b"", opcode=CONT, fin=False) * 5_000)
    client.send("x" * 131_073, opcode=CONT, fin=False)
    assert await client.close_code() == 1009


async def test_a_stranger_may_say_little(running: Running) -> None:
    """Before anybody has signed in, memory is for the taking: 16 KiB are the end, in one frame or several."""
    for wire in (
        frame(b"x" * 20_000),
        frame(b"x" * 1_000_000)[:20_000],
        frame(b"x" * 9_000, fin=False) + frame(b"x" * 9_000, opcode=CONT),
    ):
        client = await running.upgraded()
        client.writer.write(wire)
        opcode, payload = await client.receive()
        if opcode == TEXT:
            assert json.loads(payload)["code"] == "too_large"
            opcode, payload = await client.receive()
        assert int.from_bytes(payload[:2], "big") in (1009, 4400)


async def test_a_flood_of_hellos_is_answered_once(running: Running) -> None:
    """Each sign-in costs a hash and a look at a file; a connection has one."""
    client = await running.upgraded()
    client.writer.write(frame(b'{"type":"hello","auth":"wrong"}') * 1000)
    assert '"unauthorized"' in await client.text()
    assert await client.close_code() == 4401
    assert await client.at_end()
    assert running.sessions.calls == []


async def test_a_flood_of_connections_leaves_room_for_those_signed_in(serve: Serve) -> None:
    """Whoever opens more than it may have pushes out its own oldest, and nobody who has signed in."""
    running = await serve(limits=LimitsSection(max_unauthenticated=8))
    owner = await running.attached()
    crowd = [await running.connect() for _ in range(40)]
    assert await crowd[0].at_end()
    owner.send(PING_MESSAGE)
    assert '"pong"' in await owner.text()
    assert running.server.connections <= 9


async def test_a_silent_stranger_is_shown_out(serve: Serve) -> None:
    """Ten seconds to say who one is, whatever pings are sent meanwhile; otherwise waiting is free."""
    running = await serve(server=ServerSection(hello_timeout_s=0.2))
    client = await running.upgraded()
    for _ in range(3):
        client.send(PING_MESSAGE)
        assert '"pong"' in await client.text()
    assert await client.close_code() == 4408

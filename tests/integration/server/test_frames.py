"""Frames as they should not be, and connections that end as they should not: each attach has exactly one detach."""

from __future__ import annotations

import json

import pytest
import websockets

from llmws.config import LimitsSection
from llmws.protocol import messages as m
from tests.support.echo_server import RawClient, Running, Serve
from tests.support.frames import BINARY, CLOSE, CONT, PING, PONG, TEXT, frame

SMALL = LimitsSection(max_message_bytes=20_000)
ACK = '{"type":"ack","seq":1}'


async def code(client: RawClient) -> object:
    return json.loads(await client.text()).get("code")


async def test_a_websockets_client_talks_to_the_session(running: Running) -> None:
    async with websockets.connect(running.url) as client:
        await client.send(json.dumps({"auth": running.token, "window": 5}))
        assert json.loads(await client.recv())["window"] == 5
        await client.send(ACK)
        assert await client.recv() == ACK
    await running.sessions.saw("detach", 1)
    assert running.sessions.calls == [
        ("attach", 1, "local", "admin"),
        ("receive", 1, m.Ack(seq=1)),
        ("detach", 1),
    ]


async def test_between_the_limit_and_twice_it_a_message_is_refused_and_the_connection_stays(serve: Serve) -> None:
    client = await (await serve(limits=SMALL)).attached()
    client.send("x" * 20_001)
    assert await code(client) == "too_large"
    client.send("x" * 40_000)
    assert await code(client) == "too_large"
    client.send(ACK)
    assert await client.text() == ACK


@pytest.mark.parametrize("size_bytes", [40_001, 10_000_000])
async def test_above_twice_the_limit_the_client_reads_1009_although_it_is_still_sending(
    serve: Serve, size_bytes: int
) -> None:
    client = await (await serve(limits=SMALL)).attached()
    client.send("x" * size_bytes)
    assert await client.close_code() == 1009
    await client.writer.drain()
    assert await client.reader.read() == b""


async def test_a_fragmented_message_above_twice_the_limit(serve: Serve) -> None:
    client = await (await serve(limits=SMALL)).attached()
    client.send("x" * 20_000, fin=False)
    client.send("x" * 20_000, opcode=CONT, fin=False)
    client.send("x", opcode=CONT)
    assert await client.close_code() == 1009


async def test_what_came_whole_before_a_failure_is_received(serve: Serve) -> None:
    running = await serve(limits=SMALL)
    client = await running.attached()
    client.writer.write(frame(ACK.encode()) + frame(b"x" * 40_001))
    assert await client.close_code() == 1009
    await running.sessions.saw("receive", 1, m.Ack(seq=1))


async def test_before_the_hello_many_small_messages_are_no_large_one(running: Running) -> None:
    client = await running.upgraded()
    client.writer.write(frame(b'{"type":"ping","t":"%s"}' % (b"x" * 200)) * 500)
    for _ in range(500):
        assert '"pong"' in await client.text()
    client.send(json.dumps({"auth": running.token}))
    assert '"hello"' in await client.text()


async def test_before_the_hello_little_is_buffered(running: Running) -> None:
    client = await running.upgraded()
    client.writer.write(frame(b"x" * 1_000_000)[:100_000])
    assert await client.close_code() == 1009


async def test_a_hello_above_its_own_limit(running: Running) -> None:
    client = await running.upgraded()
    client.send(json.dumps({"auth": "x" * 8192}))
    assert await code(client) == "too_large"
    assert await client.close_code() == 4400


async def test_a_binary_frame_is_a_bad_message(running: Running) -> None:
    client = await running.attached()
    client.send(ACK.encode(), opcode=BINARY)
    assert await code(client) == "bad_message"
    client.send(ACK)
    assert await client.text() == ACK


async def test_fragments_with_a_ping_between_them_are_one_message(running: Running) -> None:
    client = await running.attached()
    client.send(ACK[:5], fin=False)
    client.send(b"beat", opcode=PING)
    for _ in range(1000):
        client.send(b"", opcode=CONT, fin=False)
    client.send(ACK[5:], opcode=CONT)
    assert await client.receive() == (PONG, b"beat")
    assert await client.text() == ACK


async def test_a_message_in_single_bytes_on_the_wire(running: Running) -> None:
    client = await running.attached()
    for byte in frame(ACK.encode()):
        client.writer.write(bytes([byte]))
        await client.writer.drain()
    assert await client.text() == ACK


async def test_many_messages_in_one_segment_are_answered_in_order(running: Running) -> None:
    client = await running.attached()
    client.writer.write(b"".join(frame(f'{{"type":"ack","seq":{n}}}'.encode()) for n in range(500)))
    assert [json.loads(await client.text())["seq"] for _ in range(500)] == list(range(500))


@pytest.mark.parametrize(
    ("wire", "expected"),
    [
        (frame(b"\xff\xfe"), 1007),
        (frame(ACK.encode(), mask=False), 1002),
        (b"\xff\x80\0\0\0\0", 1002),
        (frame(b"x" * 126, opcode=PING), 1002),
        (frame(b"x", opcode=CONT), 1002),
        (frame(b"{", fin=False) + frame(b"}", opcode=TEXT), 1002),
        (frame(b"\x03", opcode=CLOSE), 1002),
    ],
)
async def test_a_violation_of_the_framing_ends_the_connection(running: Running, wire: bytes, expected: int) -> None:
    client = await running.attached()
    client.writer.write(wire)
    assert await client.close_code() == expected
    client.writer.close()
    await running.sessions.saw("detach", 1)


async def test_a_close_frame_is_answered_and_the_connection_ended(running: Running) -> None:
    client = await running.attached()
    client.writer.write(frame(ACK.encode()) + frame(b"\x03\xe8", opcode=CLOSE))
    assert await client.close_code() == 1000
    assert await client.at_end()
    await running.sessions.saw("detach", 1)
    assert ("receive", 1, m.Ack(seq=1)) in running.sessions.calls


async def test_a_reset_in_the_middle_of_a_frame_detaches_once_and_silences_the_sink(running: Running) -> None:
    client = await running.attached()
    client.writer.write(frame(ACK.encode())[:9])
    client.reset()
    await running.sessions.saw("detach", 1)
    sink = running.sessions.sinks[1]
    sink.try_send(b"{}")
    sink.close(4409, "late")
    assert running.sessions.calls.count(("detach", 1)) == 1


async def test_a_half_closed_connection_with_a_full_buffer_is_given_up_too(running: Running) -> None:
    client = await running.attached(receive_buffer_bytes=4096)
    client.writer.transport.pause_reading()
    while not running.sessions.sinks[1].congested:
        running.sessions.sinks[1].try_send(b"x" * 1000)
    client.writer.write_eof()
    await running.sessions.saw("detach", 1)


async def test_a_half_closed_connection_is_given_up(running: Running) -> None:
    client = await running.attached()
    client.send(ACK)
    client.writer.write_eof()
    assert await client.text() == ACK
    assert await client.at_end()
    await running.sessions.saw("detach", 1)


async def test_the_session_closes_and_what_it_sent_comes_first(running: Running) -> None:
    client = await running.attached()
    sink = running.sessions.sinks[1]
    sink.try_send(b'{"last":true}')
    sink.close(4409, "taken over " + "é" * 200)
    sink.try_send(b'{"too":"late"}')
    client.send(ACK)
    assert await client.text() == '{"last":true}'
    assert await client.close_code() == 4409
    client.writer.close()
    await running.sessions.saw("detach", 1)
    assert ("receive", 1, m.Ack(seq=1)) not in running.sessions.calls


async def test_two_hundred_connections_come_and_go_in_every_way(running: Running) -> None:
    for n in range(200):
        client = await running.attached()
        match n % 4:
            case 0:
                client.reset()
            case 1:
                client.writer.write_eof()
            case 2:
                client.send(b"\x03\xe8", opcode=CLOSE)
            case _:
                running.sessions.sinks[n + 1].close(4409, "taken over")
                client.writer.close()
        await running.sessions.saw("detach", n + 1)
    assert [call for call in running.sessions.calls if call[0] == "detach"] == [("detach", n + 1) for n in range(200)]

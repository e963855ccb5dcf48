"""Golden transcript 10, the door, played against a real socket."""

from __future__ import annotations

import json

from llmws.config import ServerSection
from tests.support.echo_server import RawClient, Running, Serve


async def answer(client: RawClient) -> dict[str, object]:
    message = json.loads(await client.text())
    assert isinstance(message, dict)
    return message


async def test_ping_before_any_hello_and_then_the_hello(running: Running) -> None:
    client = await running.upgraded()
    client.send('{"type":"ping"}')
    assert await answer(client) == {"type": "pong"}
    client.send(json.dumps({"type": "hello", "protocol": [1], "auth": running.token}))
    assert (await answer(client))["type"] == "hello"
    assert running.sessions.calls == [("attach", 1, "local", "admin")]


async def test_another_message_first(running: Running) -> None:
    client = await running.upgraded()
    client.send('{"type":"inference","prompt":"hi"}')
    assert (await answer(client))["code"] == "bad_message"
    assert await client.close_code() == 4400
    assert await client.at_end()


async def test_a_wrong_token(running: Running) -> None:
    client = await running.upgraded()
    client.send('{"type":"hello","auth":"wrong"}')
    assert (await answer(client))["code"] == "unauthorized"
    assert await client.close_code() == 4401
    assert await client.at_end()


async def test_no_token_on_a_server_with_authentication(running: Running) -> None:
    client = await running.upgraded()
    client.send("{}")
    assert (await answer(client))["code"] == "unauthorized"
    assert await client.close_code() == 4401


async def test_no_token_on_a_server_without_authentication(serve: Serve) -> None:
    running = await serve(auth=False)
    client = await running.upgraded()
    client.send("{}")
    assert (await answer(client))["type"] == "hello"


async def test_no_hello_in_time_whatever_else_was_said(serve: Serve) -> None:
    running = await serve(server=ServerSection(hello_timeout_s=0.1))
    client = await running.upgraded()
    client.send('{"type":"ping"}')
    assert await answer(client) == {"type": "pong"}
    assert await client.close_code() == 4408
    assert await client.at_end()
    assert running.sessions.calls == []


async def test_a_second_hello(running: Running) -> None:
    client = await running.attached()
    client.send(json.dumps({"type": "hello", "auth": running.token}))
    assert (await answer(client))["code"] == "bad_message"
    client.send('{"type":"ping","t":1}')
    assert await answer(client) == {"type": "pong", "t": 1}


async def test_a_protocol_that_this_server_does_not_speak(running: Running) -> None:
    client = await running.upgraded()
    client.send(json.dumps({"auth": running.token, "protocol": [9]}))
    assert (await answer(client))["code"] == "unsupported_protocol"
    assert await client.close_code() == 4426


async def test_nothing_is_received_after_the_door_has_closed(running: Running) -> None:
    """The token comes too late: the connection was given up with the first frame."""
    client = await running.upgraded()
    client.send("not JSON")
    client.send(json.dumps({"auth": running.token}))
    assert (await answer(client))["code"] == "bad_message"
    assert await client.close_code() == 4400
    assert await client.at_end()
    assert running.sessions.calls == []

"""A token that is revoked closes the connections that it opened, and no others."""

from __future__ import annotations

from llmws.access import Identity
from tests.support.echo_server import Running
from tests.support.frames import CLOSE


async def test_revoking_a_token_closes_its_live_connections(running: Running) -> None:
    """At once, also of one that was silent; nothing that they say counts any more."""
    running.credentials.tokens["second"] = Identity("local", "admin", "another")
    first, again = await running.attached(), await running.attached()
    running.token = "second"
    other = await running.attached()
    running.credentials.revoked.add("first")
    for client in (first, again):
        assert await client.close_code() == 4401
    other.send('{"type":"ack","seq":1}')
    assert await other.text() == '{"type":"ack","seq":1}'
    await running.sessions.saw("detach", 1)


async def test_what_a_revoked_client_still_sends_is_not_heard(running: Running) -> None:
    client = await running.attached()
    running.credentials.revoked.add("first")
    opcode, _ = await client.receive()
    assert opcode == CLOSE
    client.send('{"type":"ack","seq":1}')
    client.send(b"\x0f\xa1", opcode=CLOSE)
    await running.sessions.saw("detach", 1)
    assert [call[0] for call in running.sessions.calls] == ["attach", "detach"]


async def test_without_a_token_there_is_nothing_to_revoke(serve) -> None:
    running = await serve(auth=False)
    running.credentials.tokens[None] = Identity("local", "admin")
    client = await running.attached()
    running.credentials.revoked.add("first")
    client.send('{"type":"ping"}')
    assert await client.text() == '{"type":"pong"}'

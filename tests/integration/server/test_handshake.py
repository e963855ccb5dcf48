"""What the upgrade answers, on a real socket; the table of Host, Origin and token is in tests/security."""

from __future__ import annotations

import base64

import pytest
import websockets
from websockets.exceptions import InvalidStatus

from tests.support.echo_server import Running, Serve


def bearer_offer(token: str) -> str:
    return "llmws.bearer." + base64.urlsafe_b64encode(token.encode()).rstrip(b"=").decode()


async def outcome(running: Running, headers: dict[str, str], hello_auth: str | None) -> int:
    """The status that refused the upgrade, or the close code that answered the hello, or 101 for a session."""
    client = await running.upgraded(headers=headers)
    if client.status != 101:
        assert "sec-websocket-accept" not in client.headers
        client.writer.close()
        return int(client.status)
    client.send("{}" if hello_auth is None else f'{{"auth":"{hello_auth}"}}')
    answer = await client.text()
    if '"hello"' in answer:
        client.writer.close()
        return 101
    assert '"error"' in answer
    return int(await client.close_code())


async def test_without_authentication_origin_null_is_refused_whatever_it_shows(serve: Serve) -> None:
    running = await serve(auth=False)
    assert await outcome(running, {}, None) == 101
    assert await outcome(running, {"Origin": "null"}, None) == 403
    assert await outcome(running, {"Origin": "null", "Authorization": f"Bearer {running.token}"}, None) == 403


async def test_the_subprotocol_is_echoed_and_the_token_never(running: Running) -> None:
    offers = [websockets.Subprotocol("llmws.v1"), websockets.Subprotocol(bearer_offer(running.token))]
    async with websockets.connect(running.url, subprotocols=offers) as client:
        assert client.subprotocol == "llmws.v1"
        assert client.response is not None
        assert "bearer" not in str(client.response.headers)
        await client.send("{}")
        assert '"hello"' in str(await client.recv())


async def test_compression_is_not_negotiated(running: Running) -> None:
    async with websockets.connect(running.url, compression="deflate") as client:
        assert client.protocol.extensions == []


@pytest.mark.parametrize(
    ("path", "expected"), [("/", 101), ("/v1/ws", 101), ("/v1/ws?x=1", 101), ("/v1/ws/", 404), ("/%761/ws", 404)]
)
async def test_paths(running: Running, path: str, expected: int) -> None:
    client = await running.upgraded(path=path)
    assert client.status == expected


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Sec-WebSocket-Version": "8"}, 400),
        ({"Sec-WebSocket-Key": "short"}, 400),
        ({"X-Bomb": "x" * 9000}, 431),
        ({f"X-Bomb-{n}": "x" for n in range(200)}, 431),
    ],
)
async def test_a_malformed_or_monstrous_upgrade_is_refused(
    running: Running, headers: dict[str, str], expected: int
) -> None:
    client = await running.upgraded(headers=headers)
    assert client.status == expected


async def test_a_head_above_the_limit_ends_the_connection(running: Running) -> None:
    client = await running.connect()
    client.writer.write(b"GET / HTTP/1.1\r\nX-Bomb: " + b"x" * (128 * 1024))
    assert await client.at_end()


async def test_eleven_wrong_tokens(running: Running) -> None:
    """Ten are refused; then whoever guesses on is told how long to wait, and a valid token comes in all the same."""
    refused = [await outcome(running, {}, "wrong") for _ in range(10)]
    assert refused == [4401] * 10
    client = await running.upgraded()
    client.send('{"auth":"wrong"}')
    answer = await client.text()
    assert '"rate_limited"' in answer
    assert '"retry_after_ms"' in answer
    assert await client.close_code() == 4401
    client = await running.upgraded()
    client.send(f'{{"auth":"{running.token}"}}')
    assert running.token in await client.text()  # the fake sessions echo the hello


async def test_a_websockets_client_reads_the_refusal(running: Running) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with websockets.connect(running.url, origin=websockets.Origin("http://evil.example")):
            pass
    assert refused.value.response.status_code == 403

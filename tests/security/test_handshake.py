"""Who gets through the door: every row of Host, Origin and token, on every route that there is."""

from __future__ import annotations

import base64
import itertools
from typing import NamedTuple

from llmws.access import HTTP_ROUTES, WEBSOCKET_ROUTES
from llmws.config import ServerSection
from tests.security.wire import ask
from tests.support.echo_server import Running, Serve

NAMED = ServerSection(hosts=("llm.example.org",), origins=("https://llm.example.org",))

LET_IN = {
    ("GET", "/"): 200,
    ("GET", "/healthz"): 200,
    ("GET", "/health"): 200,
    ("GET", "/readyz"): 200,
    ("POST", "/v1/auth/exchange"): 401,
}
"""What each open route answers whom it hears; the exchange is shown a code that never was."""


class Shown(NamedTuple):
    """How a token is shown: in a header, or in the hello of a WebSocket."""

    headers: dict[str, str]
    hello: str = "{}"
    is_for_http: bool = True


def ways_to_show(token: str) -> dict[str, Shown]:
    offer = "llmws.bearer." + base64.urlsafe_b64encode(token.encode()).rstrip(b"=").decode()
    return {
        "header": Shown({"Authorization": f"Bearer {token}"}),
        "subprotocol": Shown({"Sec-WebSocket-Protocol": f"llmws.v1, {offer}"}, is_for_http=False),
        "hello": Shown({}, hello=f'{{"auth":"{token}"}}', is_for_http=False),
        "wrong": Shown({"Authorization": "Bearer llmws_wrong"}),
        "none": Shown({}),
    }


async def over_http(running: Running, method: str, path: str, headers: dict[str, str]) -> int:
    body = b'{"code":"never was"}' if method == "POST" else b""
    return (await ask(running, path, method=method, headers=headers, body=body)).status


async def over_websocket(running: Running, path: str, headers: dict[str, str], hello: str) -> int:
    """The status that refused the upgrade, or the close code that answered the hello, or 101 for a session."""
    client = await running.upgraded(path=path, headers=headers)
    if client.status == 101:
        client.send(hello)
        if '"error"' in await client.text():
            return await client.close_code()
    client.writer.close()
    return client.status


async def test_every_row_of_host_origin_and_token_on_every_route(serve: Serve) -> None:
    """A foreign Host is 421, a foreign Origin 403, `null` needs a token in the request; then the token decides."""
    minutes = itertools.count(step=60.0)
    running = await serve(server=NAMED, clock=lambda: next(minutes))  # so that no wrong token is one too many
    own = f"127.0.0.1:{running.port}"
    hosts = {
        own: True,
        "localhost": True,
        "llm.example.org": True,
        f"evil.example:{running.port}": False,
        f"llm.example.org.evil.example:{running.port}": False,
        "0.0.0.0": False,
    }
    origins = {
        None: lambda host, token: True,
        f"http://{own}": lambda host, token: host == own,
        "https://llm.example.org": lambda host, token: True,
        "http://evil.example": lambda host, token: False,
        f"http://localhost:{running.port}": lambda host, token: False,
        "null": lambda host, token: token in ("header", "subprotocol"),
    }
    ways = ways_to_show(running.token)
    expected, actual = {}, {}
    for host, origin, token in itertools.product(hosts, origins, ways):
        way = ways[token]
        headers = {"Host": host, **way.headers, **({} if origin is None else {"Origin": origin})}
        refusal = 421 if not hosts[host] else None if origins[origin](host, token) else 403
        for path in WEBSOCKET_ROUTES:
            row = (host, origin, token, "WebSocket", path)
            expected[row] = refusal or (4401 if token in ("wrong", "none") else 101)
            actual[row] = await over_websocket(running, path, headers, way.hello)
        for path, methods in HTTP_ROUTES.items() if way.is_for_http else ():
            for method, access in methods.items():
                assert access == "open", "a route that asks for a role has rows of its own"
                row = (host, origin, token, method, path)
                expected[row] = refusal or LET_IN[method, path]
                actual[row] = await over_http(running, method, path, headers)
    assert len(expected) == 6 * 6 * (5 * len(WEBSOCKET_ROUTES) + 3 * len(LET_IN))
    assert actual == expected

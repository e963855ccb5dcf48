"""The HTTP door, called as ASGI: the order of its checks, and that no route escapes the table of roles."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message

from llmws.config import LimitsSection, ServerSection
from llmws.protocol import messages as m
from llmws.server.asgi import SECURITY_HEADERS, Guard, create_app, create_routes
from llmws.server.auth import HTTP_ROUTES, Access
from llmws.server.entrance import Entrance
from llmws.server.ports import Identity, Sink

HOST = "localhost:8765"
IDENTITIES = {"meter": Identity("local", "metrics"), "user": Identity("local", "user")}


class NoSessions:
    """Sessions that nobody reaches over HTTP; `ready` is what the test says."""

    def __init__(self) -> None:
        self.ready = True

    def attach(self, sink: Sink, principal: str, role: str, hello: m.Hello) -> int:
        raise AssertionError

    def receive(self, connection: int, message: m.ClientMessage) -> None:
        raise AssertionError

    def drained(self, connection: int) -> None:
        raise AssertionError

    def detach(self, connection: int) -> None:
        raise AssertionError


def new_entrance(sessions: NoSessions | None = None) -> Entrance:
    return Entrance(
        sessions=sessions or NoSessions(),
        authenticate=lambda token: IDENTITIES.get(token or ""),
        server=ServerSection(),
        limits=LimitsSection(),
        port=8765,
        clock=lambda: 0.0,
    )


async def get(
    app: ASGIApp, path: str, *, method: str = "GET", headers: Mapping[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    values = {"host": HOST, **(headers or {})}
    scope: dict[str, Any] = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in values.items()],
        "client": ("192.0.2.1", 50000),
        "server": ("127.0.0.1", 8765),
    }
    await app(scope, receive, send)
    answer = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], answer, b"".join(message.get("body", b"") for message in sent[1:])


def test_every_route_has_a_role_and_every_role_a_route() -> None:
    assert {route.path for route in create_routes(NoSessions())} == set(HTTP_ROUTES)


async def test_a_route_without_a_role_is_not_served() -> None:
    guard = Guard(PlainTextResponse("reached"), new_entrance(), routes={"/known": "open"})
    assert (await get(guard, "/known"))[0] == 200
    assert (await get(guard, "/forgotten"))[0] == 404


@pytest.mark.parametrize(
    ("needed", "authorization", "expected"),
    [
        ("open", None, 200),
        ("metrics", None, 401),
        ("metrics", "Bearer wrong", 401),
        ("metrics", "Bearer meter", 200),
        ("user", "Bearer meter", 403),
        ("user", "Bearer user", 200),
        ("admin", "Bearer user", 403),
    ],
)
async def test_a_route_with_a_role_needs_a_token_of_it(
    needed: Access, authorization: str | None, expected: int
) -> None:
    guard = Guard(PlainTextResponse("reached"), new_entrance(), routes={"/x": needed})
    headers = {} if authorization is None else {"authorization": authorization}
    status, answer, _ = await get(guard, "/x", headers=headers)
    assert status == expected
    assert answer.get("www-authenticate") == ("Bearer" if expected == 401 else None)


async def test_after_ten_wrong_tokens_the_eleventh_is_told_to_wait() -> None:
    guard = Guard(PlainTextResponse("reached"), new_entrance(), routes={"/x": "user"})
    wrong = [(await get(guard, "/x", headers={"authorization": f"Bearer {n}"}))[0] for n in range(10)]
    assert wrong == [401] * 10
    status, answer, _ = await get(guard, "/x", headers={"authorization": "Bearer wrong"})
    assert (status, answer["retry-after"]) == (429, "6")
    assert (await get(guard, "/x", headers={"authorization": "Bearer user"}))[0] == 200


async def test_the_open_routes() -> None:
    sessions = NoSessions()
    app = create_app(new_entrance(sessions))
    assert {path: (await get(app, path))[0] for path in HTTP_ROUTES} == dict.fromkeys(HTTP_ROUTES, 200)
    sessions.ready = False
    status, answer, _ = await get(app, "/readyz")
    assert (status, answer["retry-after"]) == (503, "5")
    assert (await get(app, "/healthz"))[0] == 200


async def test_while_draining_only_the_process_itself_is_well() -> None:
    entrance = new_entrance()
    entrance.draining = True
    app = create_app(entrance)
    statuses = {path: (await get(app, path))[0] for path in HTTP_ROUTES}
    assert statuses == {"/": 503, "/healthz": 200, "/health": 200, "/readyz": 503}


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/nope", "/%2e%2e/etc/passwd"])
async def test_every_answer_forbids_the_browser_everything(path: str) -> None:
    _, answer, _ = await get(create_app(new_entrance()), path)
    assert {name: answer[name] for name in SECURITY_HEADERS} == dict(SECURITY_HEADERS)


async def test_what_is_not_there_is_said_in_json() -> None:
    status, answer, body = await get(create_app(new_entrance()), "/v1/nope")
    assert (status, answer["content-type"]) == (404, "application/json")
    assert json.loads(body)["error"]["code"] == "not_found"


async def test_a_wrong_method_is_said_in_json_with_the_right_ones() -> None:
    status, answer, body = await get(create_app(new_entrance()), "/healthz", method="POST")
    assert (status, set(answer["allow"].split(", "))) == (405, {"GET", "HEAD"})
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", [*HTTP_ROUTES, "/nope"])
@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"host": "evil.example:8765"}, 421),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "null", "authorization": "Bearer wrong"}, 403),
    ],
)
async def test_foreign_names_are_refused_on_every_path(path: str, headers: dict[str, str], expected: int) -> None:
    assert (await get(create_app(new_entrance()), path, headers=headers))[0] == expected


async def test_origin_null_with_a_token_reaches_the_routes() -> None:
    headers = {"origin": "null", "authorization": "Bearer user"}
    assert (await get(create_app(new_entrance()), "/healthz", headers=headers))[0] == 200

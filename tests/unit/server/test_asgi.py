"""The HTTP door, called as ASGI: the order of its checks, and that no route escapes the table of roles."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message

from llmws.access import HTTP_ROUTES, Access, Identity
from llmws.config import LimitsSection, ServerSection
from llmws.places import page_path
from llmws.protocol import messages as m
from llmws.server.asgi import SECURITY_HEADERS, Guard, create_app, create_routes
from llmws.server.entrance import Entrance
from llmws.server.page import load_page
from llmws.server.ports import Sink
from tests.support.credentials import FixedCredentials

HOST = "localhost:8765"
READABLE = [path for path, methods in HTTP_ROUTES.items() if "GET" in methods]
IDENTITIES: dict[str | None, Identity] = {"meter": Identity("local", "metrics"), "user": Identity("local", "user")}


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


def new_entrance(
    sessions: NoSessions | None = None,
    *,
    credentials: FixedCredentials | None = None,
    server: ServerSection | None = None,
) -> Entrance:
    return Entrance(
        sessions=sessions or NoSessions(),
        credentials=credentials or FixedCredentials(IDENTITIES),
        server=server or ServerSection(),
        limits=LimitsSection(),
        port=8765,
        clock=lambda: 0.0,
    )


async def get(
    app: ASGIApp,
    path: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    peer: str = "192.0.2.1",
) -> tuple[int, dict[str, str], bytes]:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

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
        "client": (peer, 50000),
        "server": ("127.0.0.1", 8765),
    }
    await app(scope, receive, send)
    answer = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], answer, b"".join(message.get("body", b"") for message in sent[1:])


def test_every_route_has_a_role_and_every_role_a_route() -> None:
    routes = {route.path: set(route.methods or ()) - {"HEAD"} for route in create_routes(new_entrance())}
    assert routes == {path: set(methods) for path, methods in HTTP_ROUTES.items()}


async def test_a_route_without_a_role_is_not_served() -> None:
    guard = Guard(PlainTextResponse("reached"), new_entrance(), routes={"/known": {"GET": "open"}})
    assert (await get(guard, "/known"))[0] == 200
    assert (await get(guard, "/forgotten"))[0] == 404
    assert (await get(guard, "/known", method="POST"))[0] == 405


async def test_a_head_that_is_too_large_is_refused_however_it_is_made_up() -> None:
    app = create_app(new_entrance())
    assert (await get(app, "/healthz", headers={"x": "x" * 65_000}))[0] == 200
    assert (await get(app, "/healthz", headers={"x": "x" * 65_536}))[0] == 431
    assert (await get(app, "/healthz", headers={f"x-{n}": "x" * 100 for n in range(700)}))[0] == 431
    assert (await get(app, "/" + "x" * 65_536))[0] == 431


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
    guard = Guard(PlainTextResponse("reached"), new_entrance(), routes={"/x": {"GET": needed}})
    headers = {} if authorization is None else {"authorization": authorization}
    status, answer, _ = await get(guard, "/x", headers=headers)
    assert status == expected
    assert answer.get("www-authenticate") == ("Bearer" if expected == 401 else None)


async def test_after_ten_wrong_tokens_the_eleventh_is_told_to_wait() -> None:
    guard = Guard(PlainTextResponse("reached"), new_entrance(), routes={"/x": {"GET": "user"}})
    wrong = [(await get(guard, "/x", headers={"authorization": f"Bearer {n}"}))[0] for n in range(10)]
    assert wrong == [401] * 10
    status, answer, _ = await get(guard, "/x", headers={"authorization": "Bearer wrong"})
    assert (status, answer["retry-after"]) == (429, "6")
    assert (await get(guard, "/x", headers={"authorization": "Bearer user"}))[0] == 200


async def test_the_open_routes() -> None:
    sessions = NoSessions()
    app = create_app(new_entrance(sessions))
    assert {path: (await get(app, path))[0] for path in READABLE} == dict.fromkeys(READABLE, 200)
    sessions.ready = False
    status, answer, _ = await get(app, "/readyz")
    assert (status, answer["retry-after"]) == (503, "5")
    assert (await get(app, "/healthz"))[0] == 200


async def test_while_draining_only_the_process_itself_is_well() -> None:
    entrance = new_entrance()
    entrance.draining = True
    app = create_app(entrance)
    statuses = {path: (await get(app, path))[0] for path in READABLE}
    assert statuses == {"/": 503, "/healthz": 200, "/health": 200, "/readyz": 503}


async def test_the_page_may_run_its_own_script_and_is_as_strict_in_all_else() -> None:
    _, answer, html = await get(create_app(new_entrance()), "/")
    page = load_page(page_path())
    assert html == page.html
    assert {name: answer[name] for name in SECURITY_HEADERS} == {
        **SECURITY_HEADERS,
        "content-security-policy": page.policy,
    }


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/nope", "/%2e%2e/etc/passwd"])
async def test_every_answer_forbids_the_browser_everything(path: str) -> None:
    _, answer, _ = await get(create_app(new_entrance()), path)
    assert {name: answer[name] for name in SECURITY_HEADERS} == dict(SECURITY_HEADERS)


async def test_what_is_not_there_is_said_in_json() -> None:
    status, answer, body = await get(create_app(new_entrance()), "/v1/nope")
    assert (status, answer["content-type"]) == (404, "application/json")
    assert json.loads(body)["error"]["code"] == "not_found"


async def test_a_wrong_method_is_said_in_json_with_the_right_ones() -> None:
    status, answer, body = await get(create_app(new_entrance()), "/healthz", method="POST")
    assert (status, answer["allow"]) == (405, "GET")
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


async def exchange(entrance: Entrance, body: bytes, *, headers: Mapping[str, str] | None = None) -> tuple[int, Any]:
    status, _, answer = await get(create_app(entrance), "/v1/auth/exchange", method="POST", body=body, headers=headers)
    return status, json.loads(answer)


async def test_a_code_is_exchanged_for_a_token_once() -> None:
    credentials = FixedCredentials(IDENTITIES)
    entrance = new_entrance(credentials=credentials)
    body = json.dumps({"code": entrance.codes.mint(IDENTITIES["user"])}).encode()
    status, answer = await exchange(entrance, body)
    assert (status, credentials.issued) == (200, [IDENTITIES["user"]])
    assert credentials.identify(answer["token"]) == IDENTITIES["user"]
    status, answer = await exchange(entrance, body)
    assert (status, answer["error"]["code"]) == (401, "unauthorized")


async def test_guessed_codes_slow_the_guesser_down_and_nobody_with_a_right_one() -> None:
    entrance = new_entrance(credentials=FixedCredentials(IDENTITIES))
    code = entrance.codes.mint(IDENTITIES["user"])
    guesses = [(await exchange(entrance, b'{"code": "guess"}'))[0] for _ in range(11)]
    assert guesses == [401] * 10 + [429]
    assert (await exchange(entrance, json.dumps({"code": code}).encode()))[0] == 200


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", 400),
        (b"{}", 400),
        (b'{"code": 7}', 400),
        (b'{"code": "' + b"x" * 300 + b'"}', 400),
        (b"[" * 4000, 400),
        (b'{"code": "' + b"x" * 5000 + b'"}', 413),
    ],
)
async def test_what_is_no_code_is_a_bad_request(body: bytes, expected: int) -> None:
    assert (await exchange(new_entrance(), body))[0] == expected


async def test_a_foreign_page_cannot_use_a_code_up() -> None:
    entrance = new_entrance(credentials=FixedCredentials(IDENTITIES))
    body = json.dumps({"code": entrance.codes.mint(IDENTITIES["user"])}).encode()
    assert (await exchange(entrance, body, headers={"origin": "http://evil.example"}))[0] == 403
    assert (await exchange(entrance, body, headers={"origin": f"http://{HOST}"}))[0] == 200


async def test_two_lengths_of_one_request_are_refused() -> None:
    headers = {"transfer-encoding": "chunked", "content-length": "5"}
    assert (await get(create_app(new_entrance()), "/healthz", headers=headers))[0] == 400


PROXIED = ServerSection(behind_proxy=True, proxies=("192.0.2.1", "::ffff:192.0.2.3"), hosts=("llm.example.org",))


@pytest.mark.parametrize(
    ("peer", "headers", "expected"),
    [
        ("192.0.2.1", {}, 200),
        ("192.0.2.1", {"origin": "https://llm.example.org", "x-forwarded-proto": "https"}, 200),
        ("::ffff:192.0.2.1", {"origin": "https://llm.example.org", "x-forwarded-proto": "https"}, 200),
        ("192.0.2.3", {"origin": "https://llm.example.org", "x-forwarded-proto": "https"}, 200),
        ("192.0.2.1", {"origin": "https://llm.example.org"}, 403),
        ("192.0.2.1", {"origin": "http://llm.example.org", "x-forwarded-proto": "https"}, 403),
        ("192.0.2.2", {"x-forwarded-for": "192.0.2.1"}, 403),
        ("127.0.0.1", {}, 200),
        ("127.0.0.1", {"origin": "https://llm.example.org", "x-forwarded-proto": "https"}, 403),
    ],
)
async def test_behind_a_proxy_only_it_is_believed_and_nobody_passes_it_by(
    peer: str, headers: dict[str, str], expected: int
) -> None:
    app = create_app(new_entrance(server=PROXIED))
    assert (await get(app, "/healthz", peer=peer, headers={"host": "llm.example.org", **headers}))[0] == expected


async def test_behind_a_proxy_programs_of_this_machine_come_in_at_the_address_bound_to() -> None:
    """With such an address the server has no loopback; `llm` on the same machine comes from the address itself."""
    server = ServerSection(host="192.0.2.9", behind_proxy=True, proxies=("192.0.2.1",))
    app = create_app(new_entrance(server=server))
    headers = {"host": "192.0.2.9:8765"}
    assert [(await get(app, "/healthz", peer=peer, headers=headers))[0] for peer in ("192.0.2.9", "192.0.2.8")] == [
        200,
        403,
    ]


async def test_behind_a_proxy_each_client_has_its_own_count_of_failures() -> None:
    guard = Guard(PlainTextResponse("reached"), new_entrance(server=PROXIED), routes={"/x": {"GET": "user"}})

    async def guess(forwarded_for: str) -> int:
        headers = {"host": "llm.example.org", "authorization": "Bearer guess", "x-forwarded-for": forwarded_for}
        return (await get(guard, "/x", peer="192.0.2.1", headers=headers))[0]

    # What stands before the last entry, the guesser wrote; it does not make it another.
    assert [await guess(f"203.0.113.{n}, 198.51.100.7") for n in range(11)] == [401] * 10 + [429]
    assert await guess("198.51.100.8") == 401

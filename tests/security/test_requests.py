"""HTTP that is bent until two readers of it disagree, or until one gives up."""

from __future__ import annotations

import gzip
import json
import zlib

from llmws.access import Identity
from llmws.config import ServerSection
from tests.security.wire import ask, send
from tests.support.echo_server import Running, Serve

PATHS = (
    "//",
    "//evil.example/%2e%2e",
    "//healthz",
    "/./healthz",
    "/x/../healthz",
    "/healthz/",
    "/healthz;x=1",
    "/healthz%00",
    "/healthz%2f",
    "/HEALTHZ",
    "/healthz\\",
    "/v1//ws",
    "/V1/ws",
    "/%2e%2e/%2e%2e/etc/passwd",
    "/%68ealthz",
    "/v1/%77s",
    "/v1%2Fws",
    "/../../etc/passwd",
    "/v1/ws/",
    "/v1/ws;x=1",
    "/v1/ws/../../",
    "http://evil.example/healthz",
    "http://127.0.0.1/healthz",
    "*",
)


async def test_a_path_is_served_in_one_spelling_only(running: Running) -> None:
    """Where the guard and the router read a path differently, the guard is passed by: CVE-2026-48746, vLLM."""
    actual = {}
    for path in PATHS:
        client = await running.upgraded(path=path)
        client.writer.close()
        answer = await ask(running, path)
        assert "\nlocation:" not in answer.head, "a redirect leads where the path says: CVE-2019-10856, Jupyter"
        actual[path] = (answer.status, client.status)
    assert actual == dict.fromkeys(PATHS, (404, 404))


async def test_the_host_header_cannot_rename_the_path(running: Running) -> None:
    """A path that vLLM read out of the Host began otherwise, and needed no key: CVE-2026-48746."""
    for host in ("localhost/v1/models?", "localhost#", "localhost\\@evil.example", "a@localhost", "localhost:80:80"):
        assert (await ask(running, "/nope", headers={"Host": host})).status == 421


async def test_a_request_names_exactly_one_host(running: Running) -> None:
    """Of none, or of two, each reader would choose another one; HTTP/1.0 names none."""
    own = f"127.0.0.1:{running.port}"
    expected = {
        "GET / HTTP/1.1\r\n": 400,
        f"GET / HTTP/1.1\r\nHost: {own}\r\nHost: evil.example\r\n": 400,
        f"GET / HTTP/1.1\r\nHost: {own}\r\nHost: {own}\r\n": 400,
        f"GET / HTTP/1.1\r\nHost: {own}, evil.example\r\n": 421,
        "GET / HTTP/1.1\r\nHost:\r\n": 421,
        "GET / HTTP/1.0\r\n": 421,
        "GET / HTTP/1.0\r\nHost: evil.example\r\n": 421,
        f"GET / HTTP/1.0\r\nHost: {own}\r\n": 200,
    }
    actual = {head: (await send(running, f"{head}Connection: close\r\n\r\n".encode())).status for head in expected}
    assert actual == expected


SMUGGLED = "GET /healthz HTTP/1.1\r\nHost: {own}\r\nConnection: close\r\n\r\n"


LENGTHS = (
    "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    "Content-Length: 6\r\nContent-Length: 5\r\n",
    "Content-Length: +6\r\n",
    "Content-Length: 6, 5\r\n",
    "Content-Length: -1\r\n",
    "Content-Length: 0x6\r\n",
    "Transfer-Encoding: gzip, chunked\r\n",
    "Transfer-Encoding: chunked, identity\r\n",
    "Transfer-Encoding: xchunked\r\n",
    "Transfer-Encoding : chunked\r\n",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    "X: a\rTransfer-Encoding: chunked\r\n",
    "X: a\0b\r\n",
    "X\r\n",
    "X y: z\r\n",
)


async def test_a_length_that_can_be_read_in_two_ways_ends_the_connection(running: Running) -> None:
    """What one reader takes for a body is the next request to another: CVE-2025-43859, h11 itself, before 0.16."""
    own = f"127.0.0.1:{running.port}"
    actual = {}
    for fields in LENGTHS:
        request = f"POST / HTTP/1.1\r\nHost: {own}\r\n{fields}\r\n0\r\n\r\n" + SMUGGLED.format(own=own)
        answer = await send(running, request.encode("latin-1"))
        actual[fields] = [status for status in answer.statuses if status not in (400, 501)]
    assert actual == {fields: [] for fields in LENGTHS}


async def test_a_bad_end_of_a_chunk_ends_the_connection(running: Running) -> None:
    """h11 skipped two bytes there without looking at them: CVE-2025-43859."""
    own = f"127.0.0.1:{running.port}"
    request = f"POST / HTTP/1.1\r\nHost: {own}\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxAB0\r\n\r\n"
    answer = await send(running, (request + SMUGGLED.format(own=own)).encode())
    assert 200 not in answer.statuses


async def test_a_folded_line_hides_no_header(running: Running) -> None:
    """Folding makes one reader see a header where the other sees a value."""
    own = f"127.0.0.1:{running.port}"
    request = f"GET / HTTP/1.1\r\nHost: {own}\r\nX: a\r\n Origin: http://evil.example\r\nConnection: close\r\n\r\n"
    assert (await send(running, request.encode())).status in (200, 400)
    request = f"GET / HTTP/1.1\r\nX: a\r\n Host: {own}\r\nConnection: close\r\n\r\n"
    assert (await send(running, request.encode())).status == 400


async def test_a_header_bomb_is_not_held_in_memory(running: Running) -> None:
    """Headers of any size went into vLLM (CVE-2025-48956); the ws library fell over their number (CVE-2024-37890)."""
    for times in (1, 10):  # in one read of the socket, and in several
        bombs = {
            "/": "X: " + "x" * 70_000 * times,
            "/healthz": "\r\n".join(f"X-{number}: {'x' * 200}" for number in range(350 * times)),
            "/nope": "Cookie: " + "a=b; " * 14_000 * times,
            "/" + "x" * 70_000 * times: "X: x",
        }
        for path, bomb in bombs.items():
            head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{running.port}\r\n{bomb}\r\nConnection: close\r\n\r\n"
            assert (await send(running, head.encode())).status in (0, 400, 431), bomb[:20]


async def test_a_header_does_not_stand_in_for_the_path_or_the_method(running: Running) -> None:
    """Headers for rewriting proxies let a client reach what the path did not say: CVE-2018-14773, Symfony."""
    for name in ("X-Original-URL", "X-Rewrite-URL", "X-Forwarded-Prefix", "X-Script-Name"):
        assert (await ask(running, "/nope", headers={name: "/healthz"})).status == 404
    for name in ("X-HTTP-Method-Override", "X-Method-Override", "X-HTTP-Method"):
        assert (await ask(running, "/v1/auth/exchange", headers={name: "POST"})).status == 405


async def test_a_compressed_body_is_not_unpacked(running: Running) -> None:
    """Ten megabytes in ten kilobytes: servers that obey `Content-Encoding` before they count."""
    bomb = gzip.compress(b'{"code":"' + b"x" * 10_000_000 + b'"}')[:4000]
    for encoding, body in (("gzip", bomb), ("deflate", zlib.compress(bytes(10**6)))):
        headers = {"Content-Encoding": encoding}
        answer = await ask(running, "/v1/auth/exchange", method="POST", headers=headers, body=body)
        assert answer.status == 400
    code = gzip.compress(json.dumps({"code": running.server.mint_code(Identity("local", "admin"))}).encode())
    answer = await ask(running, "/v1/auth/exchange", method="POST", headers={"Content-Encoding": "gzip"}, body=code)
    assert answer.status == 400
    assert running.credentials.issued == []


async def test_a_body_is_bounded_and_must_come(serve: Serve) -> None:
    """A body of any size was held before anybody was asked who sends it: CVE-2024-12537, Open WebUI."""
    running = await serve(server=ServerSection(hello_timeout_s=0.2))
    host = f"POST /v1/auth/exchange HTTP/1.1\r\nHost: 127.0.0.1:{running.port}\r\n"
    large = await send(running, (host + "Content-Length: 100000\r\n\r\n" + "x" * 100_000).encode())
    endless = await send(running, (host + "Transfer-Encoding: chunked\r\n\r\n" + "1000\r\n" + "x" * 4096).encode())
    announced = await send(running, (host + "Content-Length: 10000000000\r\n\r\n").encode())
    assert (large.status, endless.status, announced.status) == (413, 408, 408)


async def test_slow_requests_do_not_hold_the_door(serve: Serve) -> None:
    """Slowloris, CVE-2007-6750: a byte now and then kept a connection for ever."""
    running = await serve(server=ServerSection(hello_timeout_s=0.2))
    slow = [await running.connect() for _ in range(20)]
    for number, client in enumerate(slow):
        client.writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: "[: number * 2])
    assert (await ask(running, "/healthz")).status == 200
    assert [await client.at_end() for client in slow] == [True] * len(slow)
    assert running.server.connections == 0

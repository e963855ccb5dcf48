"""A page in somebody's browser reaches every port of their machine: what it may not do here.

The incidents are of servers that trusted whoever could connect.
"""

from __future__ import annotations

from llmws.config import ServerSection
from tests.security.wire import ask
from tests.support.echo_server import Running, Serve

PAGE = {"Origin": "https://evil.example"}


async def test_a_rebound_dns_name_reaches_nothing(running: Running) -> None:
    """A name of the attacker's that turns into 127.0.0.1 is one origin with the server: CVE-2024-28224, Ollama."""
    for name in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "2130706433", "0x7f.1", "0.0.0.0"):
        host = f"{name}:{running.port}"
        headers = {"Host": host, "Origin": f"http://{host}"}
        client = await running.upgraded(headers=headers)
        assert ((await ask(running, "/", headers=headers)).status, client.status) == (421, 421)
        client.writer.close()
    assert running.sessions.calls == []


async def test_a_page_of_another_origin_cannot_open_a_socket(serve: Serve) -> None:
    """Browsers let any page open a WebSocket anywhere: GHSA-vg6x-rcgg-rjx6, Vite. Worst where no token is asked for."""
    running = await serve(auth=False)
    for path in ("/", "/v1/ws"):
        client = await running.upgraded(path=path, headers=PAGE)
        assert client.status == 403
        client.writer.close()
    assert running.sessions.calls == []


ORIGINS = (
    "http://127.0.0.1:{port}.evil.example",
    "http://127.0.0.1:{port}@evil.example",
    "http://127.0.0.1:{port}/",
    "http://127.0.0.1",
    "http://localhost:{port}",
    "https://127.0.0.1:{port}",
    "file://",
    "http://127.0.0.1:{port} http://evil.example",
    "",
)


async def test_an_origin_is_compared_whole(running: Running) -> None:
    """Prefixes, suffixes and patterns of origins were fooled often: PYSEC-2026-3472, Jupyter Server's pattern."""
    actual = {}
    for origin in ORIGINS:
        client = await running.upgraded(headers={"Origin": origin.format(port=running.port)})
        client.writer.close()
        actual[origin] = client.status
    assert actual == dict.fromkeys(ORIGINS, 403)


async def test_a_sandboxed_frame_is_no_page_of_ours(serve: Serve) -> None:
    """Any page can put one of origin `null` into itself; Gradio took that for its own: CVE-2024-47165."""
    for running in (await serve(), await serve(auth=False)):
        assert (await ask(running, "/", headers={"Origin": "null"})).status == 403
        client = await running.upgraded(headers={"Origin": "null"})
        assert client.status == 403
        client.writer.close()


async def test_nothing_is_shared_with_other_origins(serve: Serve) -> None:
    """`Access-Control-Allow-*` lets other pages read answers; many model servers send it with a star."""
    listed = ServerSection(origins=("https://llm.example.org",))
    running = await serve(server=listed)
    for origin in ("https://evil.example", "https://llm.example.org", f"http://127.0.0.1:{running.port}"):
        for method in ("GET", "OPTIONS"):
            asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
            answer = await ask(running, "/", method=method, headers=asked)
            assert "access-control-allow" not in answer.head


async def test_the_page_cannot_be_framed_sniffed_or_cached(running: Running) -> None:
    """A framed page is clicked through another one's; a sniffed answer becomes a script."""
    for path in ("/", "/nope", "/readyz"):
        head = (await ask(running, path)).head
        assert "frame-ancestors 'none'" in head
        assert "x-content-type-options: nosniff" in head
        assert "cross-origin-resource-policy: same-origin" in head
        assert "cache-control: no-store" in head


async def test_what_a_link_says_is_not_written_into_a_page(running: Running) -> None:
    """Reflected text runs as a script of this origin, with this origin's token."""
    script = "<script>alert(1)</script>"
    for path in (f"/?x={script}", f"/{script}", f"/v1/{script}"):
        answer = await ask(running, path, headers={"Referer": f"http://evil.example/{script}"})
        assert answer.status in (200, 404)
        assert "<script>alert" not in answer.head + answer.body


async def test_a_cookie_is_no_credential(running: Running) -> None:
    """A browser sends it along for any page that asks: every forged cross-site request rests on that."""
    stolen = f"token={running.token}; authorization=Bearer {running.token}; llmws={running.token}"
    client = await running.upgraded(headers={"Cookie": stolen})
    client.send("{}")
    assert '"unauthorized"' in await client.text()
    assert await client.close_code() == 4401
    assert "set-cookie" not in (await ask(running, "/")).head


async def test_a_token_in_the_address_is_no_credential(running: Running) -> None:
    """Addresses are logged, kept in histories and sent as `Referer`: GHSA-c3mw-737p-c7g2, Jupyter Server."""
    for name in ("token", "access_token", "auth", "api_key", "key"):
        client = await running.upgraded(path=f"/v1/ws?{name}={running.token}")
        client.send("{}")
        assert '"unauthorized"' in await client.text()
        assert await client.close_code() == 4401

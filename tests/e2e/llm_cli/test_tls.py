"""`llm` as a process, and servers with TLS."""

import asyncio
import sys

import pytest

from llmws.client.discovery import local_servers
from tests.integration.client.fake_server import FakeServer
from tests.support.certificates import Authority, serving
from tests.support.paths import ROOT
from tests.support.terminal import Terminal, run


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path / "authority")


@pytest.fixture
async def server(authority):
    async with FakeServer(tls=serving(authority.issue("127.0.0.1"))) as server:
        yield server


async def test_a_server_that_nobody_vouches_for_is_one_line_and_status_3(server, tmp_path):
    status, out, err = await run(tmp_path, "--url", server.url, "hi")
    assert (status, out, err.count("\n")) == (3, "", 1)
    assert err.startswith(f"llm: {server.url}: the server's certificate is not trusted")
    assert err.endswith("trust it or its authority: --tls-ca FILE, or `tls` of the Python client\n")
    assert server.received == []


async def test_a_session_of_a_server_that_was_named_with_its_authority_goes_on(server, authority, tmp_path):
    """Where the session is was remembered, TLS included; what to trust is said each time, as the token is."""
    ca = ("--tls-ca", str(authority.file))
    assert await run(tmp_path, "--url", server.url, *ca, "hi") == (0, "Hello\n", "")
    assert await run(tmp_path, "--continue", *ca, "again") == (0, "Hello\n", "")
    assert len(server.session().requests) == 2
    status, _, err = await run(tmp_path, "--continue", "once more")
    assert (status, "is not trusted" in err) == (3, True)


async def test_the_chat_gives_up_on_a_certificate_that_is_not_believed(server, tmp_path):
    async with Terminal(tmp_path, "--url", server.url) as terminal:
        await terminal.sees("the server's certificate is not trusted")
        assert await terminal.leave() == 3
    assert server.received == []


async def test_a_token_that_can_be_read_on_its_way_is_warned_of_once(tmp_path):
    arguments = ("--url", "ws://192.0.2.1", "--token", "secret", "--wait", "0.05", "hi")
    status, _, err = await run(tmp_path, *arguments)
    said = "llm: the token can be read on its way to ws://192.0.2.1/v1/ws; use https:// or wss://, or a tunnel"
    assert (status, err.splitlines()[0], err.count("can be read")) == (3, said, 1)


async def test_this_accounts_server_is_found_and_believed_without_a_word(authority, tmp_path):
    """Although its certificate is for another name, and of an authority that nobody knows."""
    server = (sys.executable, str(ROOT / "tests/support/scripted_server.py"), str(tmp_path))
    arguments = ("--tls", str(authority.issue("llm.example")))
    async with Terminal(tmp_path, program=(*server, *arguments), PYTHONPATH=str(ROOT)) as terminal:
        await terminal.sees("ready\n")
        (wss,) = (each.ws_url for each in local_servers({"XDG_STATE_HOME": str(tmp_path)}))
        assert wss.startswith("wss://127.0.0.1:")
        async with Terminal(tmp_path, "hi") as asked:
            ended = asyncio.ensure_future(asked.end())
            while not ended.done():
                terminal.type("step\n")
                await asyncio.wait({ended}, timeout=0.05)
        assert (asked.returncode, asked.text) == (0, "Hello\n")

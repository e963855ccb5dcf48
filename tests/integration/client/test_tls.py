"""Which servers the client believes over TLS, on real sockets."""

import asyncio
import contextlib
import datetime as dt
import json
import os

import pytest

from llmws.client import Backoff, CertificateError, Client, ReadableTokenWarning, UnreachableError, trusting
from llmws.client.discovery import local_server, state_dir
from tests.integration.client.fake_server import FakeServer
from tests.integration.client.harness import client, eventually
from tests.support.certificates import Authority, serving


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@contextlib.asynccontextmanager
async def server_with(certificate):
    async with FakeServer(tls=serving(certificate)) as server:
        yield server


def announce(folder, server, certificate):
    """Writes the server's ready file, as one of this account's does."""
    servers = state_dir({"XDG_STATE_HOME": str(folder)}) / "servers"
    servers.mkdir(parents=True, exist_ok=True)
    ready = {"url": "", "ws_url": server.url, "port": server.port, "pid": os.getpid(), "tls_cert": str(certificate)}
    path = servers / f"{server.port}.json"
    path.write_text(json.dumps(ready))
    path.chmod(0o600)


async def test_an_answer_over_tls_from_a_server_that_a_private_authority_vouches_for(authority):
    async with (
        server_with(authority.issue("127.0.0.1")) as server,
        client(server, tls=trusting(authority.file)) as c,
    ):
        assert (await c.generate("hi")).text == "Hello"
        await server.restart()
        assert (await c.generate("hi")).text == "Hello"


async def test_a_servers_own_certificate_may_be_trusted_instead_of_its_authority(authority, tmp_path):
    certificate = authority.issue("127.0.0.1")
    alone = tmp_path / "server.pem"
    alone.write_text(certificate.read_text().partition("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----\n")
    async with server_with(certificate) as server, client(server, tls=trusting(alone)) as c:
        assert (await c.generate("hi")).text == "Hello"


async def test_a_certificate_that_is_not_believed_is_final_and_says_what_to_do(authority):
    """One attempt, and no second: a certificate does not become another by waiting."""
    other = Authority(authority.file.parent / "other")
    long_ago = dt.timedelta(days=99)
    served = {
        "unknown": (authority.issue("127.0.0.1"), None),
        "of another authority": (other.issue("127.0.0.1"), trusting(authority.file)),
        "for another name": (authority.issue("llm.example"), trusting(authority.file)),
        "expired": (authority.issue("127.0.0.1", age=long_ago), trusting(authority.file)),
        "not yet valid": (authority.issue("127.0.0.1", age=-dt.timedelta(days=1)), trusting(authority.file)),
    }
    said = {}
    for kind, (certificate, tls) in served.items():
        async with server_with(certificate) as server:
            notices = []
            with pytest.raises(CertificateError) as caught:
                await client(server, tls=tls, listen=notices.append).open()
            assert server.connections == 0
            assert [notice.retry_in_s for notice in notices] == [None]
            said[kind] = str(caught.value).partition("; ")[2]
    trust_it = "if it is your own, trust it or its authority: --tls-ca FILE, or `tls` of the Python client"
    assert said == {
        "unknown": trust_it,
        "of another authority": trust_it,
        "for another name": "use an address or a name that the certificate is for",
        "expired": "renew it on the server, and restart that",
        "not yet valid": "set this machine's clock, or the server's certificate, right",
    }


async def test_a_server_that_changes_into_another_gets_no_second_hello(authority):
    """Whoever takes the server's place in the middle of a session is not told the token."""
    async with FakeServer(tls=serving(authority.issue("127.0.0.1"))) as server:
        async with client(server, token="secret", tls=trusting(authority.file)) as c:
            server.tls = serving(Authority(authority.file.parent / "impostor").issue("127.0.0.1"))
            await server.restart()
            with pytest.raises(CertificateError):
                await c.generate("hi")
        assert len(server.received) == 1


async def test_this_accounts_server_is_known_by_exactly_its_certificate(authority, tmp_path, monkeypatch):
    """Its name plays no part; that its authority vouches for another certificate of the same name neither."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    certificate = authority.issue("llm.example")
    async with server_with(certificate) as server:
        announce(tmp_path, server, certificate)
        async with Client() as c:
            assert (await c.generate("hi")).text == "Hello"
    async with server_with(authority.issue("llm.example")) as impostor:
        announce(tmp_path, impostor, certificate)
        with pytest.raises(CertificateError, match="restart the server if it was renewed"):
            await Client().open()


@pytest.mark.parametrize(
    "content", [None, b"", b"\xff\x00", b"-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n"]
)
async def test_a_certificate_of_this_accounts_server_that_cannot_be_read_is_said(
    tmp_path, monkeypatch, content, server
):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    path = tmp_path / "server.pem"
    if content is not None:
        path.write_bytes(content)
    announce(tmp_path, server, path)
    with pytest.raises(CertificateError, match=f"names {path} as its certificate: "):
        Client()
    with pytest.raises(CertificateError):
        local_server(server.port).tls()


@contextlib.asynccontextmanager
async def stranger(talk):
    """Listens for what is no TLS server; its address."""
    listener = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with listener:
        yield f"wss://127.0.0.1:{listener.sockets[0].getsockname()[1]}"


async def test_a_server_without_tls_is_told_from_one_that_is_gone():
    async def refuse(reader, writer):
        await reader.readexactly(16)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with stranger(refuse) as url:
        with pytest.raises(CertificateError, match="no TLS there"):
            await Client(url).open()


async def test_a_connection_that_is_lost_in_the_handshake_is_tried_again():
    """What only the network does is never final."""
    attempts = []

    async def cut(reader, writer):
        await reader.readexactly(16)
        attempts.append(None)
        if len(attempts) == 1:
            writer.write(b"\x16\x03\x03\x00\x40half of a record")
        writer.close()

    async with stranger(cut) as url:
        c = Client(url, backoff=Backoff(jitter=lambda: 0.0))
        opening = asyncio.ensure_future(c.open())
        await eventually(lambda: len(attempts) > 3 or opening.done())
        assert not opening.done()
        opening.cancel()
        await asyncio.wait([opening])


async def test_a_server_that_speaks_tls_alone_is_not_taken_for_one_that_is_gone(authority):
    async with server_with(authority.issue("127.0.0.1")) as server:
        address = server.url.replace("wss", "ws")
        with pytest.raises(UnreachableError, match=f"perhaps it speaks TLS: https://127.0.0.1:{server.port}"):
            await Client(address, connect_timeout_s=0.2).open()


def test_a_token_that_can_be_read_on_its_way_is_warned_of():
    with pytest.warns(ReadableTokenWarning, match="on its way to http://far; use https"):
        Client("http://far", "secret")
    Client("http://far")
    Client("https://far", "secret")
    Client("http://127.0.0.1", "secret")


def test_who_asks_for_tls_does_not_get_a_connection_without(authority):
    with pytest.raises(ValueError, match="no address with TLS"):
        Client("ws://127.0.0.1", tls=trusting(authority.file))

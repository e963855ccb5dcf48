"""Servers that could be reached by everybody, and asked nobody who they were."""

from __future__ import annotations

import ssl
from pathlib import Path

import msgspec
import pytest

from llmws.access import MESSAGES
from llmws.config import Config, override
from llmws.errors import ConfigError
from llmws.protocol import messages as m
from llmws.server.exposure import check_exposure
from llmws.server.tls import tls_context
from tests.support.certificates import Authority
from tests.support.echo_server import Running, Serve

OUTSIDE = ("0.0.0.0", "::", "192.0.2.1", "llm.example.org", "::ffff:192.0.2.1")


@pytest.mark.parametrize("host", OUTSIDE)
def test_nothing_beyond_this_machine_is_served_by_accident(host: str) -> None:
    """A variable that makes Ollama listen everywhere left 175,000 of them open to the world; nothing asked."""
    outside = override(Config(), {"server": {"host": host}})
    with pytest.raises(ConfigError, match="--tls-cert"):
        check_exposure(outside)


@pytest.mark.parametrize("host", OUTSIDE)
def test_nobody_beyond_this_machine_comes_in_without_a_token(host: str) -> None:
    """Ray's dashboard ran jobs for whoever reached it: CVE-2023-48022. No other setting makes up for a token."""
    for setting in ({"insecure_lan": True}, {"behind_proxy": True}, {"tls_cert": "c", "tls_key": "k"}):
        with pytest.raises(ConfigError, match="--no-auth"):
            check_exposure(override(Config(), {"server": {"host": host, **setting}, "auth": {"required": False}}))
    with pytest.raises(ConfigError, match="--no-auth"):
        check_exposure(override(Config(), {"server": {"behind_proxy": True}, "auth": {"required": False}}))


async def test_a_stranger_s_messages_are_not_even_looked_at(running: Running) -> None:
    """MLflow asked for a password on some of its routes: CVE-2026-0545. Here nothing but a sign-in comes first."""
    for kind in MESSAGES.keys() - {m.Hello, m.Ping}:
        client = await running.upgraded()
        client.send(msgspec.json.encode({"type": kind.__struct_config__.tag, "auth": running.token}).decode())
        assert '"bad_message"' in await client.text()
        assert await client.close_code() == 4400
    assert running.sessions.calls == []


async def test_old_and_plain_speakers_hear_nothing_from_a_tls_port(serve: Serve, tmp_path: Path) -> None:
    """Versions before 1.2 are broken (CVE-2014-3566, CVE-2011-3389), and a downgrade to plain text is no answer."""
    certificate = Authority(tmp_path).issue("127.0.0.1")
    context = tls_context(certificate, certificate)
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    running = await serve(tls=context)
    client = await running.connect()
    client.writer.write(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{running.port}\r\n\r\n".encode())
    assert b"HTTP/1.1" not in await client.reader.read()


@pytest.mark.parametrize(("mode", "is_taken"), [(0o600, True), (0o640, True), (0o644, False), (0o604, False)])
def test_a_tls_key_that_every_account_can_read_stops_the_start(tmp_path: Path, mode: int, is_taken: bool) -> None:
    """Who has the key is the server to everybody who trusts its certificate."""
    certificate = Authority(tmp_path).issue("127.0.0.1")
    certificate.chmod(mode)
    if is_taken:
        tls_context(certificate, certificate)
    else:
        with pytest.raises(ConfigError, match="chmod o="):
            tls_context(certificate, certificate)

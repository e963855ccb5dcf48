"""Which server `llm` talks to, and with which token."""

import json
import os
import ssl

import pytest

from llm_cli.arguments import parse
from llm_cli.bookmark import Record
from llm_cli.target import Target, choose
from tests.support.certificates import Authority


def found(url: str) -> Record:
    """The bookmark of a session whose server was found on this account."""
    return Record(session_id="s", url=url, is_discovered=True)


@pytest.fixture
def local(tmp_path, monkeypatch):
    """A server of this account on port 9000, with a token."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    folder = tmp_path / "llmws" / "servers"
    folder.mkdir(parents=True)
    (tmp_path / "token").write_text("mine\n")
    announce(tmp_path, port=9000)


def announce(place, *, port, scheme="ws", host="127.0.0.1", tls_cert=None):
    path = place / "llmws" / "servers" / f"{port}.json"
    ready = {"url": "", "ws_url": f"{scheme}://{host}:{port}/v1/ws", "port": port, "pid": os.getpid()}
    path.write_text(json.dumps(ready | {"token_file": str(place / "token"), "tls_cert": tls_cert}))
    path.chmod(0o600)


@pytest.fixture
def local_tls(local, tmp_path):
    """The same server with TLS."""
    announce(tmp_path, port=9000, scheme="wss", tls_cert=str(Authority(tmp_path).issue("llm.example")))


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path).file


@pytest.mark.parametrize(
    ("argv", "remembered", "target"),
    [
        ([], None, Target("ws://127.0.0.1:9000/v1/ws", "mine")),
        (["--port", "9000"], None, Target("ws://127.0.0.1:9000/v1/ws", "mine")),
        (["--url", "http://localhost:9000"], None, Target("ws://localhost:9000/v1/ws", "mine")),
        (["--url", "localhost:9000"], None, Target("ws://localhost:9000/v1/ws", "mine")),
        (["--port", "9000", "--token", "other"], None, Target("ws://127.0.0.1:9000/v1/ws", "other")),
        (["--port", "9001"], None, Target("ws://127.0.0.1:9001/v1/ws", None)),
        (["--host", "::1"], None, Target("ws://[::1]:8765/v1/ws", None)),
        ([], "ws://127.0.0.1:9001/v1/ws", Target("ws://127.0.0.1:9000/v1/ws", "mine")),
        ([], "ws://localhost:9000/v1/ws", Target("ws://localhost:9000/v1/ws", "mine")),
        ([], "wss://far:9000/v1/ws", Target("wss://far:9000/v1/ws", None)),
        (["--url", "wss://far:9000"], None, Target("wss://far:9000/v1/ws", None)),
    ],
)
def test_the_token_goes_only_to_the_server_it_belongs_to(local, argv, remembered, target):
    assert choose(parse(argv), None if remembered is None else found(remembered))[:2] == target[:2]


def test_a_server_that_was_named_is_not_taken_for_this_accounts_even_if_it_is_gone(local):
    named = Record(session_id="s", url="ws://127.0.0.1:9001/v1/ws")
    assert choose(parse([]), named) == Target("ws://127.0.0.1:9001/v1/ws", None, False)


def test_what_was_found_and_not_named_is_known_as_such(local):
    assert [
        choose(parse(argv), record).is_discovered
        for argv, record in [([], None), (["--port", "9000"], None), ([], found("ws://127.0.0.1:9000/v1/ws"))]
    ] == [True, False, True]


def test_without_a_server_it_is_the_default_port(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert choose(parse([]), None) == Target("ws://127.0.0.1:8765/v1/ws", None)


def test_the_token_file_is_read(local, tmp_path):
    (tmp_path / "t").write_text("given\n")
    assert choose(parse(["--token-file", str(tmp_path / "t")]), None).token == "given"


def test_a_remembered_server_is_kept_while_none_runs_here(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert choose(parse([]), found("ws://127.0.0.1:9001/v1/ws")).url == "ws://127.0.0.1:9001/v1/ws"


def test_a_token_file_that_cannot_be_read_is_said_plainly(local, tmp_path):
    path = tmp_path / "t"
    with pytest.raises(ValueError, match=f"^{path}: No such file or directory$"):
        choose(parse(["--token-file", str(path)]), None)
    path.write_bytes(b"\xff")
    with pytest.raises(ValueError, match="it is not text"):
        choose(parse(["--token-file", str(path)]), None)


@pytest.mark.parametrize("argv", [["--url", "http://localhost:abc"], ["--url", "a..b"], ["--host", "foo bar"]])
def test_what_is_no_address_is_said(local, argv):
    with pytest.raises(ValueError, match="is not the address of a server"):
        choose(parse(argv), None)


@pytest.mark.parametrize(("scheme", "port"), [("http", 80), ("https", 443)])
def test_a_url_without_a_port_is_its_schemes_and_not_the_servers_usual_one(local, tmp_path, scheme, port):
    announce(tmp_path, port=8765)
    assert choose(parse(["--url", f"{scheme}://localhost"]), None).token is None
    announce(tmp_path, port=port)
    assert choose(parse(["--url", f"{scheme}://localhost"]), None).token == "mine"


def test_a_server_that_does_not_listen_on_loopback_is_known_by_its_address(local, tmp_path):
    """What listens at the same port of a loopback address is another's, and is not shown the token."""
    announce(tmp_path, port=9000, host="192.0.2.1")
    assert choose(parse([]), None)[:2] == ("ws://192.0.2.1:9000/v1/ws", "mine")
    assert choose(parse(["--host", "192.0.2.1", "--port", "9000"]), None).token == "mine"
    assert choose(parse(["--host", "192.0.2.2", "--port", "9000"]), None).token is None
    assert choose(parse(["--port", "9000"]), None).token is None


@pytest.mark.parametrize(
    ("argv", "record"),
    [
        ([], None),
        (["--port", "9000"], None),
        (["--url", "127.0.0.1:9000"], None),
        (["--url", "http://127.0.0.1:9000"], None),
        ([], found("ws://127.0.0.1:9000/v1/ws")),
        ([], found("wss://127.0.0.1:9000/v1/ws")),
        ([], found("ws://127.0.0.1:9001/v1/ws")),
        ([], Record(session_id="s", url="wss://127.0.0.1:9000/v1/ws")),
    ],
)
def test_this_accounts_server_is_talked_to_as_it_says(local_tls, argv, record):
    """By TLS, and known by its certificate and not by a name, however one came to it."""
    target = choose(parse(argv), record)
    assert (target.url, target.token) == ("wss://127.0.0.1:9000/v1/ws", "mine")
    assert (target.tls.check_hostname, target.tls.verify_mode) == (False, ssl.CERT_REQUIRED)


def test_a_server_that_was_found_with_tls_and_has_none_any_more_is_talked_to_without(local):
    assert choose(parse([]), found("wss://127.0.0.1:9000/v1/ws")) == Target("ws://127.0.0.1:9000/v1/ws", "mine", True)


def test_what_was_named_with_tls_never_goes_without(local):
    assert choose(parse(["--url", "https://localhost:9000"]), None).url == "wss://localhost:9000/v1/ws"


@pytest.mark.parametrize(
    ("argv", "url"),
    [
        (["--url", "https://far"], "wss://far/v1/ws"),
        (["--url", "far:9000"], "wss://far:9000/v1/ws"),
        (["--host", "far"], "wss://far:8765/v1/ws"),
        (["--host", "::1"], "wss://[::1]:8765/v1/ws"),
    ],
)
def test_an_authority_is_trusted_for_a_server_with_tls_and_for_its_name(local, authority, argv, url):
    target = choose(parse([*argv, "--tls-ca", str(authority)]), None)
    assert (target.url, target.tls.check_hostname, target.tls.verify_mode) == (url, True, ssl.CERT_REQUIRED)
    assert len(target.tls.get_ca_certs()) == 1


def test_the_authority_that_was_named_goes_before_the_certificate_of_this_accounts_server(local_tls, authority):
    assert choose(parse(["--tls-ca", str(authority)]), None).tls.check_hostname


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--url", "http://far"], "--tls-ca is for a server with TLS"),
        ([], "--tls-ca is for a server with TLS"),
        (["--url", "https://far", "--tls-ca", "/nowhere"], "^/nowhere: No such file or directory$"),
        (["--url", "https://far", "--tls-ca", __file__], "holds no certificate in PEM form"),
    ],
)
def test_an_authority_that_cannot_be_used_is_said(local, authority, argv, message):
    with pytest.raises(ValueError, match=message):
        choose(parse(["--tls-ca", str(authority), *argv]), None)


def test_the_server_is_named_again_as_it_was_but_for_the_token(local, authority, tmp_path):
    """So that the line which leads back to a session can be pasted, and no secret is in it."""
    files = ["--token-file", str(tmp_path / "token"), "--tls-ca", str(authority)]
    named = ["--host", "far", "--port", "9"]
    assert choose(parse(["--url", "https://far", *files]), None).arguments == ("--url", "https://far", *files)
    assert choose(parse([*named, "--token", "secret"]), None).arguments == tuple(named)


@pytest.mark.parametrize(
    ("argv", "is_readable"),
    [
        (["--url", "ws://far", "--token", "t"], True),
        (["--url", "http://192.0.2.1:8765", "--token", "t"], True),
        (["--url", "wss://far", "--token", "t"], False),
        (["--url", "ws://far"], False),
        (["--url", "ws://127.0.0.2", "--token", "t"], False),
        (["--url", "ws://[::1]", "--token", "t"], False),
        (["--url", "ws://localhost:9000"], False),
        (["--url", "ws://localhost.far", "--token", "t"], True),
    ],
)
def test_a_token_that_others_can_read_on_its_way_is_known_as_such(local, argv, is_readable):
    assert choose(parse(argv), None).is_readable_on_the_way == is_readable

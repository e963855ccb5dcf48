"""Which server `llm` talks to, and with which token."""

import json
import os

import pytest

from llm_cli.arguments import parse
from llm_cli.bookmark import Record
from llm_cli.target import Target, choose


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
    path = folder / "9000.json"
    ready = {"url": "", "ws_url": "ws://127.0.0.1:9000/v1/ws", "port": 9000, "pid": os.getpid()}
    path.write_text(json.dumps(ready | {"token_file": str(tmp_path / "token")}))
    path.chmod(0o600)


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

"""Tokens: made once, kept as hashes, honoured and revoked at once."""

import itertools
import os
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from llmws.errors import ConfigError
from llmws.store.tokens import Identity, TokenFile


@pytest.fixture
def tokens(tmp_path) -> TokenFile:
    counter = itertools.count(1)
    return TokenFile(
        tmp_path / "tokens.json", now_s=lambda: 5.0, random=lambda size: next(counter).to_bytes(size, "big")
    )


def test_a_token_names_its_id_and_carries_256_bits(tmp_path):
    token = TokenFile(tmp_path / "tokens.json").create("ann", "user")
    assert re.fullmatch(r"llmws_[0-9a-f]{12}_[A-Za-z0-9_-]{43}", token)


def test_a_token_is_its_principal(tokens):
    token = tokens.create("ann", "user")
    assert tokens.identify(token) == Identity(principal="ann", role="user", token_id="000000000001")


def test_two_tokens_of_one_principal_are_the_same_person(tokens):
    first, second = tokens.create("ann", "user"), tokens.create("ann", "admin")
    assert tokens.identify(first).principal == tokens.identify(second).principal == "ann"
    assert [entry.role for entry in tokens.list()] == ["user", "admin"]


def test_anything_else_is_nobody(tokens):
    token = tokens.create("ann", "user")
    other = tokens.create("bob", "user")
    stitched = token[:19] + other[19:]
    for wrong in (
        "",
        "llmws_",
        token[:-1],
        token + "A",
        token.upper(),
        token[6:],
        "x" + token[1:],
        stitched,
        "\ud800",
        "é",
    ):
        assert tokens.identify(wrong) is None


def test_neither_the_token_nor_its_secret_is_in_the_file(tokens, tmp_path):
    token = tokens.create("ann", "user")
    stored = (tmp_path / "tokens.json").read_text()
    assert token not in stored
    assert token.split("_", 2)[2] not in stored
    assert (tmp_path / "tokens.json").stat().st_mode & 0o777 == 0o600


def test_a_running_server_honours_and_forgets_tokens_at_once(tmp_path):
    """The server and `llmws token` are two processes with one file."""
    server, command = TokenFile(tmp_path / "tokens.json"), TokenFile(tmp_path / "tokens.json")
    assert server.identify("llmws_000000000000_x") is None
    token = command.create("ann", "user")
    assert server.identify(token).principal == "ann"
    assert command.revoke(server.identify(token).token_id)
    assert server.identify(token) is None
    assert not command.revoke("000000000000")


@contextmanager
def no_file_handle_to_be_had() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_file_is_read_where_it_has_changed_and_again_where_it_could_not_be_read(tmp_path, caplog):
    server, command = TokenFile(tmp_path / "tokens.json"), TokenFile(tmp_path / "tokens.json")
    ann = command.create("ann", "user")
    token_id = server.identify(ann).token_id
    with no_file_handle_to_be_had():
        assert server.identify(ann) is not None
    bob = command.create("bob", "user")
    with no_file_handle_to_be_had():
        assert [server.identify(ann), server.identify(bob)] == [None, None]
        assert server.holds(token_id), "nobody is thrown out by that"
    assert [server.identify(token).principal for token in (ann, bob)] == ["ann", "bob"]
    assert len(caplog.records) == 1


def test_a_change_that_leaves_time_size_and_inode_as_they_were_is_noticed(tokens, tmp_path):
    path = tmp_path / "tokens.json"
    token = tokens.create("ann", "user")
    assert tokens.identify(token) is not None
    before = path.stat()
    path.write_bytes(b"?" * before.st_size)
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # it ticks every few milliseconds
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert tokens.identify(token) is None


def test_the_first_start_makes_an_admin_token_that_the_same_account_can_find(tokens, tmp_path):
    path = tokens.ensure_first()
    text = path.read_text()
    assert path == tmp_path / "admin.token"
    assert text.endswith("\n")
    assert path.stat().st_mode & 0o777 == 0o600
    assert tokens.identify(text.strip()) == Identity(principal="local", role="admin", token_id="000000000001")


def test_later_starts_make_no_other_one(tokens):
    text = tokens.ensure_first().read_text()
    assert tokens.ensure_first().read_text() == text
    tokens.create("ann", "admin")
    for entry in tokens.list():
        if entry.principal == "local":
            tokens.revoke(entry.id)
    assert tokens.ensure_first() is None  # the file is still there, but its token is worth nothing
    assert len(tokens.list()) == 1


def test_a_browsers_token_does_not_lock_the_account_out(tokens):
    """It opens no terminal; after the first token was revoked a start makes another one."""
    first = tokens.ensure_first().read_text()
    tokens.issue(Identity(principal="local", role="admin"))
    tokens.revoke(tokens.identify(first.strip()).token_id)
    second = tokens.ensure_first().read_text()
    assert tokens.identify(second.strip()).role == "admin"
    assert tokens.ensure_first().read_text() == second != first
    assert [entry.note for entry in tokens.list()] == ["browser", "first"]


def test_a_server_with_tokens_of_its_own_gets_no_admin_token(tokens, tmp_path):
    tokens.create("ann", "admin")
    assert tokens.ensure_first() is None
    assert not (tmp_path / "admin.token").exists()


@pytest.mark.parametrize("name", ["", "x" * 257])
def test_a_name_must_be_sayable(tokens, name):
    with pytest.raises(ConfigError, match="a token cannot be made"):
        tokens.create(name, "user")


@pytest.mark.parametrize("text", ["", "[]", "nonsense", '{"tokens":[{"id":"x"}]}', '{"tokens":[],"more":1}', "\xff"])
def test_a_damaged_file_stops_the_start_and_lets_nobody_in(tmp_path, text):
    tokens = TokenFile(tmp_path / "tokens.json")
    token = tokens.create("ann", "user")
    (tmp_path / "tokens.json").write_bytes(text.encode("latin-1"))
    assert tokens.identify(token) is None
    with pytest.raises(ConfigError, match=r"tokens\.json: not a token file"):
        tokens.ensure_first()


def test_a_deleted_file_holds_no_token(tokens, tmp_path):
    token = tokens.create("ann", "user")
    assert tokens.identify(token) is not None
    (tmp_path / "tokens.json").unlink()
    assert tokens.identify(token) is None


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2J", "a\u202eb"])
def test_a_name_that_a_terminal_would_obey_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="it holds control characters"):
        TokenFile(tmp_path / "tokens.json").create(name, "user")

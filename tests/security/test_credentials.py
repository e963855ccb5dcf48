"""Tokens, codes and keys: guessing them, timing them, keeping them, taking them away."""

from __future__ import annotations

import _hashlib
import hmac
import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from llmws.access import Identity
from llmws.cli.main import main
from llmws.client.discovery import local_servers
from llmws.config import ServerSection
from llmws.errors import ConfigError
from llmws.server.codes import LIFETIME_S, Codes
from llmws.store.disk import DRAFT_SUFFIX
from llmws.store.keys import load_keys
from llmws.store.lock import hold_state_folder
from llmws.store.tokens import TokenFile
from tests.security.wire import ask
from tests.support.echo_server import Running, Serve

FORWARDED = ("X-Forwarded-For", "X-Real-IP", "Forwarded", "True-Client-IP", "CF-Connecting-IP", "X-Client-IP")


def native_calls(action: Callable[[], object]) -> Counter[object]:
    """Which functions written in C an action calls, and how often."""
    counted: Counter[object] = Counter()

    def note(_: object, event: str, called: object) -> None:
        if event == "c_call":
            counted[called] += 1

    sys.setprofile(note)
    try:
        action()
    finally:
        sys.setprofile(None)
    return counted


def test_the_time_of_a_refusal_says_nothing_about_a_guess(tmp_path: Path) -> None:
    """Keys were compared letter by letter in vLLM: CVE-2025-59425. Here hashes are, for ids that do not exist too."""
    tokens = TokenFile(tmp_path / "tokens.json")
    valid = tokens.create("ann", "user")
    unknown = f"llmws_{'0' * 12}_{valid.split('_', 2)[2]}"
    tokens.identify(valid)  # reads the file
    for token in (valid, valid[:-1] + "!", unknown, "x", ""):
        counted = native_calls(lambda token=token: tokens.identify(token))
        assert (counted[hmac.compare_digest], counted[_hashlib.openssl_sha256]) == (1, 1), token


async def fails(running: Running, **headers: str) -> str:
    """The code that answers a wrong token."""
    client = await running.upgraded(headers=headers)
    client.send('{"auth":"llmws_wrong"}')
    code = json.loads(await client.text())["code"]
    assert await client.close_code() == 4401
    return code


async def test_guessing_is_slowed_down_on_loopback_too(running: Running) -> None:
    """Whoever exempts loopback exempts every page, and everybody behind a proxy or a tunnel."""
    assert [await fails(running) for _ in range(12)] == ["unauthorized"] * 10 + ["rate_limited"] * 2


@pytest.mark.parametrize("server", [ServerSection(), ServerSection(proxies=("127.0.0.1",))])
async def test_a_header_does_not_make_a_guesser_somebody_else(serve: Serve, server: ServerSection) -> None:
    """Limits by `X-Forwarded-For` are none where the client writes it: each guess came from an address of its own."""
    running = await serve(server=server)
    codes = []
    for number in range(12):
        address = f"192.0.2.{number}"
        codes.append(await fails(running, **dict.fromkeys(FORWARDED, address), Via=address))
    assert codes == ["unauthorized"] * 10 + ["rate_limited"] * 2


async def test_what_a_client_writes_before_the_proxy_is_not_believed(serve: Serve) -> None:
    """The first address of `X-Forwarded-For` is the client's own word; the last is what the proxy saw."""
    running = await serve(server=ServerSection(behind_proxy=True))
    codes = [await fails(running, **{"X-Forwarded-For": f"203.0.113.{number}, 192.0.2.1"}) for number in range(12)]
    assert codes == ["unauthorized"] * 10 + ["rate_limited"] * 2
    assert await fails(running, **{"X-Forwarded-For": "192.0.2.2"}) == "unauthorized"


async def test_codes_are_guessed_no_faster_than_tokens(running: Running) -> None:
    """A second way in is a second thing to guess at; both spend from one allowance."""
    body = b'{"code":"guess"}'
    statuses = [(await ask(running, "/v1/auth/exchange", method="POST", body=body)).status for _ in range(12)]
    assert statuses == [401] * 10 + [429] * 2
    assert await fails(running) == "rate_limited"


async def test_a_guesser_does_not_lock_the_owner_out(running: Running) -> None:
    """A lock that anybody can close is itself an attack, most of all from an address that many share."""
    for _ in range(15):
        await fails(running)
    assert (await running.attached()).status == 101


async def test_a_code_lets_in_once(running: Running) -> None:
    """It stood in an address, so it is in a history by now."""
    body = json.dumps({"code": running.server.mint_code(Identity("local", "admin"))}).encode()
    answers = [await ask(running, "/v1/auth/exchange", method="POST", body=body) for _ in range(2)]
    assert [answer.status for answer in answers] == [200, 401]
    assert "llmws_issued_1" in answers[0].body


async def test_a_foreign_page_cannot_trade_a_code(running: Running) -> None:
    """Even with the code in its hands, which it may have seen as a `Referer`."""
    body = json.dumps({"code": running.server.mint_code(Identity("local", "admin"))}).encode()
    foreign = {"Origin": "https://evil.example", "Content-Type": "text/plain"}
    assert (await ask(running, "/v1/auth/exchange", method="POST", headers=foreign, body=body)).status == 403
    assert (await ask(running, f"/v1/auth/exchange?code={json.loads(body)['code']}")).status == 405
    assert running.credentials.issued == []


def test_a_code_is_worth_nothing_after_ten_minutes() -> None:
    """What was printed on a terminal stays on it."""
    now = itertools.count(step=LIFETIME_S)
    codes = Codes(clock=lambda: next(now))
    assert codes.redeem(codes.mint(Identity("local", "admin"))) is None


async def test_a_revoked_token_is_thrown_out_of_open_connections(running: Running) -> None:
    """Otherwise whoever stole it stays for as long as they keep the line open."""
    client = await running.attached()
    running.credentials.revoked.add("first")
    assert await client.close_code() == 4401
    again = await running.upgraded()
    again.send(f'{{"auth":"{running.token}"}}')
    assert '"unauthorized"' in await again.text()


def test_a_damaged_token_file_lets_nobody_in(tmp_path: Path) -> None:
    """A guard that fails open is none."""
    tokens = TokenFile(tmp_path / "tokens.json")
    valid = tokens.create("ann", "admin")
    assert tokens.identify(valid) is not None
    for damage in ("", "{}", "null", '{"tokens":[{}]}', "[" * 5000):
        (tmp_path / "tokens.json").write_text(damage)
        assert [tokens.identify(token) for token in (valid, "", None)] == [None] * 3


def test_a_file_that_was_not_finished_is_not_read(tmp_path: Path) -> None:
    """What is written beside a file counts once it has taken the file's name, and not before."""
    TokenFile(tmp_path / "tokens.json").create("ann", "user")
    other = TokenFile(tmp_path / "other.json")
    stranger = other.create("mallory", "admin")
    (tmp_path / "other.json").rename(tmp_path / ("tokens.json" + DRAFT_SUFFIX))
    tokens = TokenFile(tmp_path / "tokens.json")
    assert tokens.identify(stranger) is None
    tokens.create("bob", "user")
    assert [entry.principal for entry in tokens.list()] == ["ann", "bob"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o666])
def test_a_key_that_others_can_read_stops_the_start(tmp_path: Path, mode: int) -> None:
    """What a backup or another account has read is no secret any more; better to say so than to go on."""
    load_keys(tmp_path, environ={})
    (tmp_path / "keys" / "master.key").chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_keys(tmp_path, environ={})


@pytest.mark.parametrize("mode", [0o755, 0o775])
def test_a_state_folder_that_others_could_read_is_made_private(tmp_path: Path, mode: int) -> None:
    """As a lax umask has made it."""
    state = tmp_path / "state"
    state.mkdir()
    state.chmod(mode)
    hold_state_folder(state).close()
    assert state.stat().st_mode & 0o777 == 0o700


def test_a_state_folder_of_another_account_is_not_used(tmp_path: Path) -> None:
    """Its owner can rename what is in it, whatever the modes of the files are."""
    state = tmp_path / "state"
    state.mkdir()
    if os.getuid() == 0:
        os.chown(state, 65534, 65534)  # a folder of root's may be used
    with pytest.raises(ConfigError, match="belongs to another account"):
        hold_state_folder(state, account=12345)


@pytest.mark.parametrize(
    "command", [["token", "list"], ["token", "create", "--name=a", "--role=user"], ["keys", "list"]]
)
def test_a_command_looks_at_the_state_folder_as_the_server_does(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "state"
    state.mkdir()
    load_keys(state, environ={})
    state.chmod(0o1777)
    assert main([*command, "--config", str(tmp_path / "config.json"), "--state-dir", str(state)]) == os.EX_CONFIG
    assert "everybody may write there" in capsys.readouterr().err


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o703])
@pytest.mark.parametrize("account", [None, 12345])
def test_a_folder_of_everybodys_is_no_state_folder(tmp_path: Path, mode: int, account: int | None) -> None:
    """Anybody can have put tokens of their own there, which closing it now would not take out: CWE-379."""
    state = tmp_path / "tmp"
    state.mkdir()
    state.chmod(mode)
    with pytest.raises(ConfigError, match="everybody may write there"):
        hold_state_folder(state, account=account)
    assert state.stat().st_mode & 0o7777 == mode


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o644, 0o666])
def test_a_ready_file_that_others_could_write_is_not_believed(tmp_path: Path, mode: int) -> None:
    """It names the address to which `llm` shows this account's token."""
    ready = tmp_path / "llmws" / "servers" / "8765.json"
    ready.parent.mkdir(parents=True)
    content = {"url": "http://x", "ws_url": "ws://x/v1/ws", "port": 8765, "pid": os.getpid(), "token_file": "/t"}
    ready.write_text(json.dumps(content))
    ready.chmod(0o600)
    environ = {"XDG_STATE_HOME": str(tmp_path)}
    assert [server.port for server in local_servers(environ)] == [8765]
    ready.chmod(mode)
    assert local_servers(environ) == []

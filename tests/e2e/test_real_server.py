"""`llmws serve` with the built-in model, as a whole: bad input, secrets on disk, stopping, configuration faults."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.support.paths import ROOT
from tests.support.real_server import LoudServer, RealServer

TIMEOUT_S = 60
CANARY = "zanzibar-quartz-1789"
QUESTION = "How does llmws keep my answer when the connection drops?"


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[RealServer]:
    server = RealServer(tmp_path_factory.mktemp("server"), "--model", "llmws-guide")
    server.start()
    try:
        yield server
    finally:
        server.close()


class Line:
    """One connection of one session."""

    def __init__(self, server: RealServer, **hello: Any) -> None:
        self.connecting = connect(server.ready["ws_url"], compression=None, max_size=2**22)
        self.hello = {"type": "hello", "auth": server.token, **hello}

    def __enter__(self) -> Self:
        self.socket: ClientConnection = self.connecting.__enter__()
        self.send(self.hello)
        self.welcome = self.receive()
        return self

    def __exit__(self, *fault: object) -> None:
        self.connecting.__exit__(*fault)  # type: ignore[arg-type]

    def send(self, message: dict[str, Any] | str | bytes) -> None:
        self.socket.send(json.dumps(message) if isinstance(message, dict) else message)

    def receive(self) -> dict[str, Any]:
        return json.loads(self.socket.recv(timeout=TIMEOUT_S))

    def until(self, *types: str) -> list[dict[str, Any]]:
        seen = [self.receive()]
        while seen[-1]["type"] not in types:
            seen.append(self.receive())
        return seen

    def rest(self) -> list[dict[str, Any]]:
        """What still comes until the server closes."""
        seen = []
        with contextlib.suppress(ConnectionClosed):
            while True:
                seen.append(self.receive())
        return seen

    def ask(self, **request: Any) -> None:
        config = {"temperature": 0, **request.pop("config", {})}
        self.send({"type": "inference", "prompt": QUESTION, "config": config, **request})


def text_of(events: list[dict[str, Any]]) -> str:
    return "".join(event["data"] for event in events if event["type"] == "token")


NESTED = "[" * 5000
BAD: list[tuple[str, dict[str, Any] | str | bytes, str, str | None]] = [
    ("not JSON", "how do I resume", "bad_message", None),
    ("no object", "[1]", "bad_message", None),
    ("no type", "{}", "bad_message", None),
    ("unknown type", {"type": "nonsense"}, "unknown_type", None),
    ("binary frame", b"\x00\x01", "bad_message", None),
    ("5,000 brackets", NESTED, "bad_message", None),
    ("5,000 brackets inside", '{"type":"inference","prompt":' + NESTED, "bad_message", None),
    ("too large", json.dumps({"type": "inference", "prompt": "x" * (2**20)}), "too_large", None),
    ("wrong type", {"type": "inference", "request_id": "b", "prompt": 5}, "bad_request", "prompt"),
    ("bad id", {"type": "inference", "request_id": "no spaces", "prompt": "x"}, "bad_request", "request_id"),
    *(
        (field, {"type": "inference", "prompt": "x", "config": {field: value}}, "bad_request", f"config.{field}")
        for field, value in (("temperature", 3), ("top_p", 0), ("seed", 2**53), ("max_new_tokens", 0), ("top_k", 1.5))
    ),
    ("infinity", '{"type":"inference","prompt":"x","config":{"temperature":1e999}}', "bad_request", None),
    ("NaN", '{"type":"inference","prompt":"x","config":{"temperature":NaN}}', "bad_message", None),
    ("unknown model", {"type": "inference", "prompt": "x", "model": "nope"}, "model_not_found", "model"),
    ("path as model", {"type": "inference", "prompt": "x", "model": "../../etc"}, "model_not_found", "model"),
    ("bad token id", {"type": "inference", "input_ids": [-1]}, "bad_request", "input_ids[0]"),
    ("ack ahead", {"type": "ack", "seq": 10**6}, "bad_request", "seq"),
    ("no such request", {"type": "cancel", "request_id": "zzz"}, "bad_request", None),
    ("delete by path", {"type": "delete_model", "model_name": "../llmws-guide"}, "bad_request", None),
    ("delete the loaded one", {"type": "delete_model", "model_name": "llmws-guide"}, "conflict", None),
    ("switch to nothing", {"type": "switch_model"}, "bad_request", "name"),
    ("switch to unknown", {"type": "switch_model", "name": "/etc/passwd"}, "model_not_found", None),
]


def test_bad_input_gets_a_coded_error_and_disturbs_nothing(server):
    """While an answer runs in another session, and one waits in the same, nothing of either changes."""
    with Line(server) as calm, Line(server) as wild:
        calm.ask()
        expected = text_of(calm.until("done"))
        calm.ask(config={"max_new_tokens": 400, "ignore_eos": True})
        calm.until("token")
        for name, frame, code, field in BAD:
            wild.send(frame)
            error = wild.receive()
            assert (error["type"], error["code"], "seq" in error) == ("error", code, False), name
            if field is not None:
                assert error["field"] == field, name
        wild.ask()
        assert text_of(wild.until("done")) == expected
        assert calm.until("done")[-1]["total_tokens"] == 400


def test_a_prompt_that_is_too_long_is_accepted_and_ends_in_an_error(server):
    with Line(server) as line:
        line.ask(request_id="long", prompt="word " * 20_000)
        error = line.until("error")[-1]
        assert (error["code"], error["request_id"], error["seq"]) == ("context_too_long", "long", 1)
        line.ask(request_id="ids", prompt=None, input_ids=[1] * 5000)
        assert line.until("error")[-1]["code"] == "context_too_long"
        line.ask(request_id="vocabulary", prompt=None, input_ids=[2**31 - 1])
        refused = line.until("error")[-1]
        assert (refused["code"], refused["field"], "seq" in refused) == ("bad_request", "input_ids[0]", False)
        line.ask()
        assert line.until("done")[-1]["finish_reason"] == "stop"


def test_neither_prompt_nor_answer_nor_token_is_readable_on_disk(tmp_path):
    """Before and after acknowledgements, a stop and a kill; also in settings that quote the user, and in loud logs."""
    server = LoudServer(tmp_path, "--model", "llmws-guide")
    server.start()
    try:
        with Line(server) as line:
            line.send({"type": "config", "data": {"stop": [f"stop-{CANARY}"]}})
            line.ask(prompt={"system": f"system-{CANARY}", "user": f"user-{CANARY}"}, config={"max_new_tokens": 5})
            line.until("done")
            line.send({"type": "ack"})
            line.until("ack_received")
            line.ask(prompt=QUESTION, request_id=f"id-{CANARY}")
            answer = text_of(line.until("done"))
            line.send(f'{{"type":"inference","prompt":"broken-{CANARY}"')
            line.until("error")
            line.ask(config={"max_new_tokens": 400, "ignore_eos": True})
            line.until("token")
        token = server.token
        server.kill()
        secrets = [CANARY, token, QUESTION, *re.findall(r"\w+ \w+ \w+ \w+", answer)]
        assert len(secrets) > 10
        for restart in (True, False):
            assert found(secrets, server) == []
            if restart:
                server.start()
                server.stop()
        assert found(secrets, server) == []
        assert "DEBUG:" in server.log()
    finally:
        server.close()


def found(secrets: list[str], server: RealServer) -> list[tuple[str, Path]]:
    """Which secret stands in which file; the owner's own token file is where the token belongs."""
    files = [path for path in server.folder.rglob("*") if path.is_file() and path.name != "admin.token"]
    assert any(path.name == "conversation.jsonl" for path in files)
    return [(each, path) for path in files for each in secrets if each.encode() in path.read_bytes()]


def test_everything_under_the_state_folder_is_private(server):
    loose = [path for path in server.state.rglob("*") if path.stat().st_mode & 0o077]
    assert loose == []


def test_health(server):
    for path, status in (("/healthz", 200), ("/readyz", 200), ("/nope", 404)):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT_S)
        with contextlib.closing(connection):
            connection.request("GET", path)
            assert connection.getresponse().status == status, path


def test_a_stopped_server_goes_on_after_the_next_start(tmp_path):
    """SIGTERM in the middle of an answer: exit 0, close 1012, and the rest comes from the next process."""
    (tmp_path / "config.json").write_text('{"server": {"drain_s": 0}}')
    server = RealServer(tmp_path, "--model", "llmws-guide")
    server.start()
    try:
        with Line(server) as line:
            line.ask(config={"max_new_tokens": 1500, "ignore_eos": True})
            events = line.until("token")
            assert server.stop() == 0
            events += line.rest()
            assert line.socket.close_code == 1012
        server.start()
        position = {"epoch": events[-1]["epoch"], "last_seq": events[-1]["seq"]}
        with Line(server, session_id=line.welcome["session_id"], resume=position) as again:
            rest = again.until("done")
        assert [event["seq"] for event in (*events, *rest) if "seq" in event] == list(range(1, rest[-1]["seq"] + 1))
        assert rest[-1]["total_tokens"] == 1500
    finally:
        server.close()


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llmws", *arguments, "--config", str(folder / "config.json")]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        cwd=ROOT,
        env={**os.environ, "HOME": str(folder)},
    )


@pytest.mark.parametrize(
    ("config", "arguments", "says"),
    [
        ('{"server": {"prot": 1}}', [], "server: object contains unknown field `prot`"),
        ('{"server": {"port": "x"}}', [], "server.port"),
        ('{"server": ', [], "not valid JSON"),
        ("{}", ["--model", "nope"], "model.name"),
        ("{}", ["--host", "0.0.0.0"], "--tls-cert"),
        ("{}", ["--behind-proxy", "--no-auth"], "--no-auth"),
        ("{}", ["--tls-cert", "cert.pem"], "server.tls_key"),
        ("{}", ["--tls-cert", "none.pem", "--tls-key", "none.pem"], "none.pem cannot be read"),
        ("{}", ["--host", "0.0.0.0", "--insecure-lan", "--no-auth"], "--no-auth"),
        ("{}", ["--port", "70000"], "server.port"),
        ('{"storage": {"key_file": "/nowhere/key"}}', [], "/nowhere/key"),
    ],
)
def test_a_configuration_fault_exits_78_and_names_its_place(tmp_path, config, arguments, says):
    (tmp_path / "config.json").write_text(config)
    done = run("serve", "--state-dir", str(tmp_path / "state"), "--port", "0", *arguments, folder=tmp_path)
    assert done.returncode == 78, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_session_that_was_said_to_be_gone_stays_gone_after_a_kill(tmp_path):
    server = RealServer(tmp_path, "--model", "llmws-guide")
    server.start()
    try:
        with Line(server) as line:
            line.ask(config={"max_new_tokens": 3})
            line.until("done")
            session_id = line.welcome["session_id"]
            line.send({"type": "end_session", "session_id": session_id})
            line.until("session_ended")
            server.kill()
        server.start()
        with Line(server, session_id=session_id) as again:
            assert again.welcome["reason"] == "session_unknown"
        assert not (server.state / "sessions" / session_id).exists()
    finally:
        server.close()


def test_a_server_that_is_stopped_while_it_loads_ends_at_once(tmp_path):
    server = RealServer(tmp_path, "--model", "llmws-guide")
    server.start()
    try:
        assert server.stop() == 0
    finally:
        server.close()


def test_a_second_server_on_the_same_state_or_port_exits_78(server, tmp_path):
    same_state = run("serve", "--port", "0", "--state-dir", str(server.state), folder=tmp_path)
    same_port = run("serve", "--port", str(server.port), "--state-dir", str(tmp_path / "state"), folder=tmp_path)
    assert (same_state.returncode, same_port.returncode) == (78, 78)
    assert "in use" in same_state.stderr
    assert "server.port" in same_port.stderr


def test_a_created_token_works_at_once_and_its_sessions_are_its_own(server, tmp_path):
    made = run("token", "create", "--name", "ann", "--role", "user", "--state-dir", str(server.state), folder=tmp_path)
    assert made.returncode == 0, made.stderr
    token = made.stdout.strip()
    with Line(server, auth=token) as ann:
        ann.ask(config={"max_new_tokens": 3})
        ann.until("done")
        ann.send({"type": "switch_model", "name": "llmws-guide"})
        assert ann.until("error")[-1]["code"] == "forbidden"
        with Line(server, session_id=ann.welcome["session_id"]) as stranger:
            assert stranger.welcome["reason"] == "session_unknown"
        with Line(server, auth=token, session_id=ann.welcome["session_id"]) as again:
            assert again.welcome["status"] == "resumed"
    listed = run("token", "list", "--state-dir", str(server.state), folder=tmp_path).stdout
    token_id = next(line.split("\t")[0] for line in listed.splitlines() if line.endswith("\tuser\tann\t"))
    assert token not in listed
    with Line(server, auth=token) as live:
        assert run("token", "revoke", token_id, "--state-dir", str(server.state), folder=tmp_path).returncode == 0
        live.rest()
        assert live.socket.close_code == 4401
    assert run("token", "revoke", token_id, "--state-dir", str(server.state), folder=tmp_path).returncode == 1
    with Line(server, auth=token) as revoked:
        assert revoked.welcome["code"] == "unauthorized"


@pytest.mark.parametrize("program", ["llmws", "llm_cli.main"])
@pytest.mark.parametrize("argument", ["--version", "--help"])
def test_version_and_help_import_nothing_heavy(program, argument):
    code = f"""
import runpy, sys
sys.argv = ["x", {argument!r}]
try:
    runpy.run_module({program!r}, run_name="__main__")
finally:
    print(*({{"torch", "transformers", "uvicorn", "prompt_toolkit"}} & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT_S, check=True, cwd=ROOT
    )
    assert done.stdout
    assert done.stderr.strip() == ""

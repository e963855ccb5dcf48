"""Where secrets must not come to lie: logs at their loudest, files, command lines, environments."""

from __future__ import annotations

import base64
import http.client
import json
import re
import resource
import signal
import sys
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.security.box import REPLY, Box

CANARY = "quartz-1789"
FORGED = "FORGED: all is well"
LINE = re.compile(r"[A-Z]+:[\w.]+:")
"""How `logging.basicConfig` begins a line."""


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Box:
    """A server through whose life every secret has gone: answers, refusals, faults, a kill, a restart, a stop."""
    box = Box(tmp_path_factory.mktemp("box"))
    (box.state / "models" / f"x\n{FORGED}\x1b[31m").mkdir(parents=True)
    box.start()
    converse(box)
    misbehave(box)
    box.end()
    box.start()
    converse(box)
    box.processes = [seen(each) for each in psutil.Process(box.process.pid).children(recursive=True)]
    box.processes.append(seen(psutil.Process(box.process.pid)))
    assert box.end(signal.SIGTERM) == 0
    return box


class Seen(NamedTuple):
    """A process of the server, as the machine shows it."""

    command: list[str]
    environ: dict[str, str]
    core_bytes: int


def seen(process: psutil.Process) -> Seen:
    limit = resource.prlimit(process.pid, resource.RLIMIT_CORE) if sys.platform == "linux" else (0, 0)
    return Seen(process.cmdline(), process.environ(), limit[0])


def converse(box: Box) -> None:
    with box.line(box.token("ann"), client={"name": f"name-{CANARY}", "version": "1"}) as line:
        line.ask({"type": "config", "data": {"stop": [f"stop-{CANARY}"]}})
        prompt = {"system": f"system-{CANARY}", "user": f"user-{CANARY}"}
        line.send({"type": "inference", "prompt": prompt})
        line.until("done")
        line.ask({"type": "update_session", "session_id": line.first["session_id"], "title": f"title-{CANARY}"})
        line.ask({"type": "ack"})
        line.send({"type": "inference", "prompt": f"user-{CANARY}", "config": {"ignore_eos": True}})
        line.until("token")
        line.ask(f'{{"type":"inference","prompt":"broken-{CANARY}"')
        line.send({"type": "inference", "prompt": f"long-{CANARY} " * 5000})
        line.send({"type": "inference", "prompt": "x", "model": f"model-{CANARY}\r\n{FORGED}"})
        line.send({"type": f"type-{CANARY}\r\n{FORGED}\x1b[2J"})
        line.send({"type": "delete_model", "model_name": f"name-{CANARY}\r\n{FORGED}"})
        line.ask({"type": "ping"})


def misbehave(box: Box) -> None:
    """Secrets where they do not belong, and where they do but are wrong."""
    with box.line(f"llmws_{CANARY}") as line:
        assert line.first["code"] == "unauthorized"
    headers = {
        "Authorization": f"Bearer header-{CANARY}",
        "Cookie": f"token=cookie-{CANARY}",
        "Referer": f"http://x/?token=referer-{CANARY}",
        "User-Agent": f"agent-{CANARY}\t{FORGED}",
    }
    with pytest.raises(InvalidStatus):
        connect(f"ws://127.0.0.1:{box.ready['port']}/{CANARY}?token={CANARY}", additional_headers=headers)
    for method, path in (
        ("GET", f"/{CANARY}?t={CANARY}"),
        ("POST", "/v1/auth/exchange"),
        ("GET", f"/%0d%0a{FORGED[:6]}"),
    ):
        with closing(http.client.HTTPConnection("127.0.0.1", box.ready["port"], timeout=10)) as connection:
            connection.request(method, path, body=json.dumps({"code": f"code-{CANARY}"}), headers=headers)
            assert connection.getresponse().status in (401, 404)


def secrets_of(box: Box) -> list[str]:
    """What nobody but its owner may find: said words, said answers, tokens, keys."""
    keys = re.findall(r"[A-Za-z0-9+/=]{40,}", (box.state / "keys" / "master.key").read_text())
    assert len(keys) == 1
    raw = base64.b64decode(keys[0])
    return [CANARY, REPLY[0].strip(), box.admin_token, box.admin_token.split("_", 2)[2], *keys, raw.hex(), str(raw)]


def test_no_log_holds_a_secret_at_any_level(box: Box) -> None:
    """Jupyter wrote tokens (CVE-2022-24758, CVE-2026-86049) to its log; model servers write prompts there."""
    log = box.log()
    assert "DEBUG:" in log
    assert [secret for secret in secrets_of(box) if secret in log] == []
    assert re.findall(r"llmws_[0-9a-f]{12}_[\w-]+", log) == []


def test_a_log_line_cannot_be_forged(box: Box) -> None:
    """Names with line ends write lines of their own, names with escapes command the terminal that shows them."""
    log = box.log()
    assert "x\\n" + FORGED in log, "the folder's name was to be told"
    assert [line for line in log.splitlines() if not LINE.match(line)] == []
    assert [letter for letter in log if not letter.isprintable() and letter != "\n"] == []


def test_no_file_holds_a_secret_in_the_clear(box: Box) -> None:
    """Chats of other self-hosted servers lie in a database that every backup and sync folder carries off."""
    belongs = {box.state / "admin.token", box.state / "keys" / "master.key"}
    files = [path for path in box.folder.rglob("*") if path.is_file() and path not in belongs]
    assert any(path.name == "conversation.jsonl" for path in files)
    found = [(path, each) for path in files for each in secrets_of(box) if each.encode() in path.read_bytes()]
    assert found == []


def test_every_file_of_the_state_is_its_owner_s_alone(box: Box) -> None:
    """Other accounts of a machine read what the umask of the day lets them: CWE-276."""
    ready = Path(box.environment["XDG_STATE_HOME"]) / "llmws"
    paths = [path for root in (box.state, ready) for path in (root, *root.rglob("*"))]
    loose = [path for path in paths if path.stat().st_mode & 0o077 and path.parent != box.state / "models"]
    assert [path for path in loose if path != box.state / "models"] == []


def test_no_command_line_and_no_environment_holds_a_secret(box: Box) -> None:
    """`ps` shows the one to every account, and a child process is given the other: CWE-214."""
    assert len(box.processes) > 1, "the prompt process is one of them"
    for process in box.processes:
        shown = " ".join([*process.command, *process.environ.values()])
        assert [secret for secret in secrets_of(box) if secret in shown] == []


def test_a_crash_leaves_no_memory_on_the_disk(box: Box) -> None:
    """A core dump holds every prompt, key and token there was, in the clear: CWE-528."""
    assert [process.core_bytes for process in box.processes] == [0] * len(box.processes)


def test_a_one_time_code_is_shown_on_a_terminal_only(box: Box) -> None:
    """A log that is no terminal is kept, collected and read by others."""
    assert "code=" not in box.log()

"""The servers of this account, from the files that they write."""

import json
import os

import pytest

from llmws.client.discovery import local_server, local_servers, state_dir


@pytest.fixture
def place(tmp_path):
    environ = {"XDG_STATE_HOME": str(tmp_path)}
    folder = state_dir(environ) / "servers"
    folder.mkdir(parents=True)

    def write(port: int, *, pid: int | None = None, mode: int = 0o600, age_s: int = 0, **changes) -> None:
        server = {"url": f"http://h:{port}", "ws_url": f"ws://h:{port}/v1/ws", "port": port, "pid": pid or os.getpid()}
        path = folder / f"{port}.json"
        path.write_text(json.dumps(server | changes))
        path.chmod(mode)
        os.utime(path, (1_000_000 - age_s, 1_000_000 - age_s))

    return environ, write


def test_the_newest_server_is_the_default(place):
    environ, write = place
    write(1, age_s=10)
    write(2)
    write(3, age_s=20)
    assert [server.port for server in local_servers(environ)] == [2, 1, 3]
    assert local_server(None, environ).port == 2
    assert local_server(3, environ).port == 3
    assert local_server(4, environ) is None


def test_a_server_that_is_gone_is_not_believed(place):
    environ, write = place
    write(1, pid=2**22 + 1)
    assert local_servers(environ) == []


@pytest.mark.parametrize("mode", [0o644, 0o620, 0o602])
def test_a_file_that_others_can_touch_is_not_believed(place, mode):
    environ, write = place
    write(1, mode=mode)
    assert local_servers(environ) == []


def test_a_damaged_file_is_passed_over(place, tmp_path):
    environ, write = place
    write(1, ws_url=7)
    (tmp_path / "llmws" / "servers" / "2.json").write_bytes(b"\xff")
    assert local_servers(environ) == []


def test_the_token_is_read_from_its_file(place, tmp_path):
    environ, write = place
    (tmp_path / "t").write_text("secret\n")
    write(1, token_file=str(tmp_path / "t"))
    assert local_server(1, environ).token() == "secret"
    write(1, token_file=str(tmp_path / "missing"))
    assert local_server(1, environ).token() is None


def test_a_relative_state_home_is_ignored():
    assert state_dir({"XDG_STATE_HOME": "x"}) == state_dir({})

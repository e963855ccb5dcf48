"""Whatever a client calls a model, no file is touched but the models' own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.security import naming_server
from tests.security.box import Line
from tests.security.poisoned.folders import tiny_llama
from tests.support.hostile_names import HOSTILE
from tests.support.paths import ROOT

TIMEOUT_S = 30

NAMES = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(max_size=40),
    st.lists(
        st.sampled_from(
            ["..", ".", "models", "var", "kept", "victim", "/", "\\", "\0", "~", "%2e", "$HOME", "\n", " "]
        ),
        max_size=8,
    ).map("".join),
    st.sampled_from(["../victim", "models/../victim", "kept/../../victim", "models/../../victim", "victim\0", "kept/"]),
)


class Watched:
    """The server, and a connection of its administrator."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        tiny_llama(folder / "models" / "kept")
        (folder / "victim").mkdir()
        (folder / "victim" / "config.json").write_text("{}")
        (folder / "somewhere").mkdir()
        (folder / "xdg").mkdir()
        settings = {"server": {"port": 0, "drain_s": 0}, "limits": {"requests_per_minute": 1_000_000}}
        (folder / "config.json").write_text(json.dumps(settings))
        environment = {**os.environ, "XDG_STATE_HOME": str(folder / "xdg"), "PYTHONPATH": str(ROOT)}
        with (folder / "somewhere" / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, naming_server.__file__, str(folder)],
                stdout=log,
                stderr=log,
                env=environment,
                cwd=folder / "somewhere",
            )
        ready = folder / "xdg" / "ready.json"
        ends_s = time.monotonic() + TIMEOUT_S
        while not ready.exists():
            assert self.process.poll() is None, (folder / "somewhere" / "log").read_text()
            assert time.monotonic() < ends_s
            time.sleep(0.01)
        where = json.loads(ready.read_bytes())
        token = Path(where["token_file"]).read_text().strip()
        self.line = Line(where["ws_url"], {"type": "hello", "auth": token})

    def refusal(self, message: dict[str, object]) -> str:
        """Sends a message that must be refused; returns the error's code."""
        self.line.send(message)
        return str(self.line.until("error")[-1]["code"])

    def touched(self) -> list[str]:
        return (self.folder / "touched").read_text().splitlines()

    def files(self) -> set[Path]:
        return {*(self.folder / "models").rglob("*"), *(self.folder / "victim").rglob("*")}


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    watched = Watched(tmp_path_factory.mktemp("watched"))
    with watched.line:
        yield watched
    watched.process.terminate()
    watched.process.wait(timeout=TIMEOUT_S)


def calls(name: str) -> list[dict[str, object]]:
    """Every message that takes a model's name, or a place for one."""
    return [
        {"type": "switch_model", "name": name},
        {"type": "switch_model", "model_path": name},
        {"type": "switch_model", "model_path": f"models/{name}"},
        {"type": "delete_model", "model_name": name},
        {"type": "download_model", "repo": name},
        {"type": "download_model", "repo": "a/b", "target_dir": name},
        {"type": "inference", "request_id": "r", "prompt": "hi", "model": name},
    ]


@given(NAMES.filter(lambda name: name.removeprefix("models/") != "kept"))
def test_no_name_touches_a_file_outside_the_models_folders(watched: Watched, name: str) -> None:
    before = watched.files()
    for call in calls(name):
        assert watched.refusal(call) not in {"internal", "rate_limited"}, call
    assert watched.files() == before
    assert watched.touched()[1:] == []


def test_the_listener_hears(watched: Watched) -> None:
    """The one thing that the server did on purpose."""
    assert watched.touched()[:1] == [f"open {str(watched.folder / 'victim')!r}"]


def test_a_listed_name_is_served(watched: Watched) -> None:
    watched.line.send({"type": "switch_model", "name": "kept"})
    said = watched.line.until("error", "model_switched")[-1]
    assert said["type"] == "model_switched", said

"""Does with every model of a folder what clients and the command line can make a server do; says what came of it.

Run as `python -m tests.security.poisoned.gauntlet MODELS STATE SECRET MARKS`, in a process of its own: it is watched
from inside by an audit hook, which cannot be taken off again. Writes one object of JSON. `good` is asked after each.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import pickle
import queue
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from llmws.catalog import Catalog
from llmws.cli import main as llmws
from llmws.config import LimitsSection, OptimizationSection
from llmws.engine.local import LocalEngine, import_transformers
from llmws.engine_api import (
    GenerationRequest,
    ModelLoaded,
    ModelRef,
    PromptEvent,
    PromptFailed,
    PromptJob,
    PromptReady,
    Turn,
)
from llmws.errors import printable
from llmws.prompt.limits import Limits
from llmws.prompt.renderer import ProcessRenderer
from llmws.protocol.messages import Sampling
from tests.support.listening import Listener

WAIT_S = 30.0
LIMITS = Limits(memory_bytes=384 * 2**20, base_s=1.0, per_mib_s=0.0)
CODE = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".h5", ".py", ".gguf", ".so")


class Result(msgspec.Struct, kw_only=True):
    """What came of one model.

    Attributes:
        name: of its folder.
        offered: None, or why it is not.
        listed: what `llmws models list` says of it.
        estimated: what `llmws models estimate` says, on both channels.
        loaded: None, or why the engine refuses it. All are asked for, offered or not.
        prompted: None, or why there is no prompt.
        answer: text of four tokens.
        good: text of the good model's answer afterwards.
        spied: what happened inside the process that should not.
    """

    name: str
    offered: str | None = None
    listed: str = ""
    estimated: str = ""
    loaded: str | None = None
    prompted: str | None = None
    answer: str = ""
    good: str = ""
    spied: list[str] = []


class Report(msgspec.Struct):
    """What came of all.

    Attributes:
        results: of each model, by name.
        marks: that were left by then.
        fired: the models whose payloads do what they are for once no wall is left.
        heard: what the spy said to each of the things that it listens for, done on purpose.
    """

    results: list[Result]
    marks: list[str]
    fired: list[str]
    heard: dict[str, list[str]]


class CodeSpy:
    """Hears what the interpreter is about to do."""

    def __init__(self, models: Path, secret: Path) -> None:
        self._models = str(models)
        self._secret = str(secret)
        self._heard: list[str] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        match event, arguments:
            case "open", (str() | bytes() as name, *_):
                path = name if isinstance(name, str) else name.decode(errors="replace")
                if path == self._secret or (path.startswith(self._models) and path.endswith(CODE)):
                    self._heard.append(f"open {path}")
            case "pickle.find_class" | "socket.getaddrinfo" | "os.system" | "os.exec" | "webbrowser.open", _:
                self._heard.append(f"{event} {arguments}")
            case "socket.connect", (_, address):
                self._heard.append(f"connect {address}")
            case "subprocess.Popen", (_, command, *_) if "llmws.prompt.worker" not in command:
                self._heard.append(f"start {command}")
            case "exec", (code,) if getattr(code, "co_filename", "").startswith(self._models):
                self._heard.append(f"run {code.co_filename}")

    def taken(self) -> list[str]:
        """What was heard since the last call."""
        heard, self._heard = self._heard, []
        return heard


class Gauntlet:
    """The parts of a server that touch a model."""

    def __init__(self, models: Path, state: Path, spy: CodeSpy) -> None:
        self._models = models
        self._state = state
        self._spy = spy
        self._catalog = Catalog(models, state / "own")
        self._engine = LocalEngine(OptimizationSection(device="cpu", threads=1), LimitsSection())
        self._ear = Listener(self._engine)
        self._prompts = ProcessRenderer(limits=LIMITS)
        self._rendered: queue.Queue[PromptEvent] = queue.Queue()
        self._prompts.start(self._rendered.put)
        self._requests = 0

    def results(self) -> list[Result]:
        """Of all models, by name."""
        offered = {model.name: model for model in self._catalog.scan()}
        problems = {problem.path: problem.reason for problem in self._catalog.problems()}
        listed = json.loads(self._command("list", "--json")[0])
        rows = {each["name"]: " ".join(map(str, each.values())) for each in listed["models"]}
        assert rows.keys() == offered.keys()
        good = offered["good"]
        results = []
        for folder in sorted(self._models.iterdir()):
            result = Result(name=folder.name, offered=problems.get(printable(f"models/{folder.name}")))
            assert (result.offered is None) == (folder.name in offered)
            result.listed = rows.get(folder.name, "")
            result.estimated = " ".join(self._command("estimate", str(folder)))
            if folder.name in offered:
                self._serve(offered[folder.name], result)
            else:
                result.loaded = self._load(
                    ModelRef(name=folder.name, path="", location=str(folder), size_bytes=0, source="")
                )
            result.spied = self._spy.taken()
            after = Result(name="")
            self._serve(good, after)
            result.good = after.answer
            results.append(result)
        return results

    def close(self) -> None:
        self._prompts.close()
        self._engine.close()

    def _command(self, *arguments: str) -> tuple[str, str]:
        out, err = io.StringIO(), io.StringIO()
        places = ["--config", str(self._state / "config.json"), "--state-dir", str(self._state / "state")]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            llmws(["models", *arguments, *places, "--models-dir", str(self._models)])
        return out.getvalue(), err.getvalue()

    def _serve(self, model: ModelRef, result: Result) -> None:
        """As a request does: the model, its prompt, its answer."""
        result.loaded = self._load(model)
        turns = (Turn(role="user", content="who are you?"),)
        self._prompts.render(PromptJob(key="p", model=model, turns=turns, max_context=128, reserve=8))
        prompt = self._rendered.get(timeout=WAIT_S)
        if isinstance(prompt, PromptFailed):
            result.prompted = prompt.message
        elif result.loaded is None:
            result.answer = self._answer(model, prompt)

    def _load(self, model: ModelRef) -> str | None:
        event = self._ear.load(model)
        return None if isinstance(event, ModelLoaded) else event.message

    def _answer(self, model: ModelRef, prompt: PromptReady) -> str:
        self._requests += 1
        key = str(self._requests)
        sampling = Sampling(do_sample=False, ignore_eos=True)
        self._engine.submit(
            GenerationRequest(key=key, model=model, prompt_ids=prompt.ids, sampling=sampling, max_new_tokens=4)
        )
        [chunk] = self._ear.answer(key)
        return chunk.text or chunk.error_message


def heard(spy: CodeSpy, models: Path, secret: Path) -> dict[str, list[str]]:
    """What the spy says to each thing that it listens for."""
    script = models / "scripts" / "setup.py"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        acts: dict[str, Callable[[], object]] = {
            "a secret": secret.read_bytes,
            "a pickle": lambda: pickle.loads(pickle.dumps(Path())),
            "a script": lambda: exec(compile("pass", script, "exec")),
            "a file of code": script.read_bytes,
            "a program": lambda: subprocess.run(["true"], check=True, timeout=WAIT_S),
            "an address": lambda: socket.getaddrinfo("127.0.0.1", 80),
            "a call": lambda: socket.create_connection(listener.getsockname(), timeout=WAIT_S).close(),
        }
        said = {}
        for name, act in acts.items():
            spy.taken()
            act()
            said[name] = spy.taken()
        return said


def main() -> None:
    """Runs it."""
    models, state, secret, marks = map(Path, sys.argv[1:])
    logging.basicConfig(level=logging.CRITICAL)
    (state / "config.json").write_text('{"optimization": {"device": "cpu", "threads": 1}}')
    import_transformers(OptimizationSection(device="cpu", threads=1))
    import llmws.engine.forecast
    import llmws.engine.loading  # noqa: F401 - what is imported now is not heard later

    spy = CodeSpy(models, secret)
    sys.addaudithook(spy)
    gauntlet = Gauntlet(models, state, spy)
    try:
        results = gauntlet.results()
    finally:
        gauntlet.close()
    left = sorted(path.name for path in marks.iterdir())
    from tests.security.poisoned.firing import fired

    report = Report(results, left, fired(models, marks), heard(spy, models, secret))
    sys.stdout.buffer.write(msgspec.json.encode(report))


if __name__ == "__main__":
    main()

"""A started renderer whose answers can be waited for, models that misbehave, and helper processes that do."""

from __future__ import annotations

import os
import queue
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import psutil

from llmws.engine_api import ModelRef, PromptEvent, PromptFailed, PromptJob, PromptReady, Turn
from llmws.prompt.limits import DEFAULT_LIMITS, Limits
from llmws.prompt.process import COMMAND
from llmws.prompt.renderer import ProcessRenderer
from tests.support import model_folders as folders

WAIT_S = 20.0
GOOD = "chat_template.jinja"

SCRIPTED = """
import os, socket, sys
from pathlib import Path
from llmws.engine_api import PromptFailed, PromptReady
from llmws.protocol import ErrorCode
from llmws.prompt.frames import Answer, Line, decode_job, encode

starts = Path({starts!r})
with starts.open("a") as file:
    file.write("x")
if starts.stat().st_size > {bad_starts}:
    os.execv(sys.executable, [*{command!r}, sys.argv[1]])
end = socket.socket(fileno=0)
line = Line(end)

def take():
    line.send(b"")
    job = decode_job(line.receive(2**26))
    line.send(b"")
    return job

"""


class Helper:
    """A command that starts processes which do as scripted for the first `bad_starts` starts, and then as they should.

    A script finds its end of the socket pair as `end`, a `Line` over it as `line`, and `take()` for the first job.
    """

    def __init__(self, folder: Path, script: str, *, bad_starts: int = 1) -> None:
        self._starts = folder / "starts"
        prelude = SCRIPTED.format(starts=str(self._starts), bad_starts=bad_starts, command=COMMAND)
        self.command = (sys.executable, "-c", prelude + script)

    @property
    def starts(self) -> int:
        return self._starts.stat().st_size if self._starts.exists() else 0


class Renderer:
    """A started renderer. Use it as a context manager."""

    def __init__(
        self,
        *,
        limits: Limits = DEFAULT_LIMITS,
        command: Sequence[str] = COMMAND,
        max_jobs: int = 1000,
        deliver: Callable[[PromptEvent], None] | None = None,
    ) -> None:
        self.inner = ProcessRenderer(limits=limits, command=command, max_jobs=max_jobs)
        self.events: queue.Queue[PromptEvent] = queue.Queue()
        self.inner.start(deliver or self.events.put)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.inner.close()

    def ask(self, model: ModelRef, key: str = "k", content: str = "hi", *, max_context: int = 100) -> None:
        turns = (Turn(role="user", content=content),)
        self.inner.render(PromptJob(key=key, model=model, turns=turns, max_context=max_context, reserve=1))

    def answer(self) -> PromptEvent:
        return self.events.get(timeout=WAIT_S)

    def ids(self, model: ModelRef, key: str = "k", content: str = "hi", *, max_context: int = 100) -> tuple[int, ...]:
        """Asks, and returns the ids of the answer."""
        self.ask(model, key, content, max_context=max_context)
        event = self.answer()
        assert isinstance(event, PromptReady), event
        assert event.key == key
        return event.ids

    def failure(self, key: str = "k") -> PromptFailed:
        """The next answer, which must be a failure."""
        event = self.answer()
        assert isinstance(event, PromptFailed), event
        assert event.key == key
        return event

    @property
    def process(self) -> psutil.Process:
        """The helper process; there must be just one."""
        [process] = helpers_of(psutil.Process())
        return process


def helpers_of(parent: psutil.Process) -> list[psutil.Process]:
    return [each for each in parent.children() if "llmws.prompt.worker" in each.cmdline()]


def good_model(folder: Path) -> ModelRef:
    return folders.write_model(folder, folders.byte_level("<|im_start|>"), files={GOOD: folders.CHATML})


def template_model(folder: Path, template: str) -> ModelRef:
    return folders.write_model(folder, folders.byte_level(), files={GOOD: template})


class StuckModel:
    """A model that holds up whoever reads it: its tokenizer is a pipe that nobody writes to."""

    def __init__(self, folder: Path) -> None:
        self.ref = folders.write_model(folder, folders.byte_level())
        self._pipe = folder / "tokenizer.json"
        self._pipe.unlink()
        os.mkfifo(self._pipe)

    def wait_until_read(self) -> int:
        """Returns when somebody reads: a handle that keeps the reader waiting until it is closed."""
        return os.open(self._pipe, os.O_WRONLY)

"""The helper process: takes jobs from its line, one at a time, and answers each.

Started as `python -m llmws.prompt.worker LIMITS` with its line as standard input. Knows nothing of the server.
Invariant: every job that it took is answered, also when reading the model's files or rendering fails in an unforeseen
way, unless the process itself ends.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
import traceback
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from llmws.engine_api import PromptFailed, PromptJob
from llmws.errors import LlmwsError
from llmws.prompt import model_text
from llmws.prompt.confinement import allow_cpu, confine, give_memory_back
from llmws.prompt.frames import SIGNAL, Answer, Line, decode_job, encode
from llmws.prompt.limits import MAX_JOB_BYTES, Limits
from llmws.prompt.model_text import Fingerprint, ModelText
from llmws.prompt.render import render
from llmws.protocol import ErrorCode

KEPT_MODELS: Final = 4

KEPT_BYTES: Final = 64 * 2**20
"""Of files; in memory they take up to twelve times as much."""


class Models:
    """The models used last, their tokenizers loaded."""

    def __init__(self, load: Callable[[Path], ModelText] = model_text.load, *, kept_bytes: int = KEPT_BYTES) -> None:
        self._load = load
        self._kept_bytes = kept_bytes
        self._models: OrderedDict[Path, tuple[Fingerprint, ModelText]] = OrderedDict()

    def get(self, folder: Path) -> ModelText:
        """A model's text side, read again when its files changed.

        Raises:
            LlmwsError: its files cannot be used.
        """
        seen = model_text.fingerprint(folder)
        known = self._models.get(folder)
        if known is None or known[0] != seen:
            self._models.pop(folder, None)
            self._make_room(_size_bytes(seen))
            known = (seen, self._load(folder))
            self._models[folder] = known
        self._models.move_to_end(folder)
        return known[1]

    def _make_room(self, wanted_bytes: int) -> None:
        while self._models and (
            len(self._models) >= KEPT_MODELS
            or sum(_size_bytes(seen) for seen, _ in self._models.values()) + wanted_bytes > self._kept_bytes
        ):
            self._models.popitem(last=False)


def _size_bytes(files: Fingerprint) -> int:
    return sum(size for _, _, size in files)


def answer(job: PromptJob, models: Models) -> Answer:
    """The token ids of a job, or why there are none."""
    try:
        return Answer(render(job, models.get(Path(job.model.location))))
    except LlmwsError as error:
        return Answer(PromptFailed(key=job.key, code=error.code, message=str(error)))
    except BaseException as error:  # noqa: BLE001 - a panic of the tokenizers library is not even an Exception
        # Neither message nor traceback: they may quote the prompt.
        place = traceback.extract_tb(error.__traceback__)[-1]
        what = "took too much memory" if isinstance(error, MemoryError) else "failed on this prompt"
        message = f"the model's tokenizer {what}"
        return Answer(
            PromptFailed(key=job.key, code=ErrorCode.MODEL_FAILED, message=message),
            fault=f"{type(error).__name__} in {place.name}, {place.filename}:{place.lineno}",
        )


def serve(line: Line, limits: Limits) -> None:
    """Answers jobs until the server is gone."""
    models = Models()
    gc.freeze()  # what was imported stays, so the collections after each job need not look at it
    line.send(SIGNAL)
    while True:
        body = line.receive(MAX_JOB_BYTES)
        # The server kills at the deadline; this is for when it cannot. Ticks are counted, so not to the point.
        allow_cpu(2 * limits.time_s(len(body)))
        job = decode_job(body)
        del body
        line.send(SIGNAL)
        line.send(encode(answer(job, models)))
        del job
        gc.collect()  # a template that fails leaves its variables in a cycle with the error
        give_memory_back()


def main() -> None:
    """Runs the process."""
    limits = msgspec.json.decode(sys.argv[1], type=Limits)
    confine(limits.memory_bytes)
    line = Line(socket.socket(fileno=sys.stdin.fileno()))
    # Until here a fault belongs in the server's log; from here on native code might print a prompt there.
    os.dup2(sys.stdout.fileno(), sys.stderr.fileno())
    try:
        serve(line, limits)
    except EOFError:
        return


if __name__ == "__main__":
    main()

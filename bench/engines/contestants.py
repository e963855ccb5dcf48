"""Who takes part, and who cannot on this machine.

Invariant: everyone is started before the first round and lives until the last has ended.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

from bench.engines import gguf_file, serving
from bench.engines.remote import Answer, Remote, remote
from bench.engines.workload import Workload

GENERATE, CONTINUOUS, SERVE = "generate()", "continuous batching", "transformers serve"
LLAMA, LLMWS, SERVER = "llama.cpp", "llmws", "llmws serve"

Generate = Callable[[list[list[int]], int], Answer]


class Contestant(NamedTuple):
    """Somebody who answers prompts of equal length with so many greedy ids each.

    Attributes:
        name: in the table.
        generate: asks him.
        remote: for what else he can tell.
        once: whether the first round is enough: he is slow, and nothing is to be reached against him.
    """

    name: str
    generate: Generate
    remote: Remote | None = None
    once: bool = False


class Setting(NamedTuple):
    """What contestants are started with.

    Attributes:
        workload: what they will be asked.
        model: the folder of it.
        scratch: for logs and state.
        llama_python: an interpreter that has `llama_cpp`.
    """

    workload: Workload
    model: Path
    scratch: Path
    llama_python: str | None

    @property
    def streams(self) -> int:
        """At once, at most."""
        return max(self.workload.streams)

    @property
    def stream_tokens(self) -> int:
        """Of each, at most, of those that everybody is asked for."""
        return self.workload.prompt_tokens + self.workload.new_tokens


def absent(name: str, setting: Setting) -> str | None:
    """Why somebody cannot take part; None if he can."""
    if name == SERVE and not (_installed("fastapi") and _installed("openai")):
        return "fastapi and openai are not installed (the group `bench`)"
    if name == LLAMA and setting.llama_python is None:
        return "no interpreter with llama-cpp-python was named (--llama-python)"
    if name == LLAMA and not _installed("gguf"):
        return "gguf is not installed (the group `bench`)"
    return None


def start(names: Sequence[str], setting: Setting, stack: ExitStack) -> list[Contestant]:
    """Starts them, in that order; they end with the stack."""
    return [_STARTS[name](setting, stack) for name in names]


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _remote(name: str, setting: Setting, stack: ExitStack, command: Sequence[str], *, python: str) -> Contestant:
    log = setting.scratch / f"{name}.log"
    started = stack.enter_context(remote(*command, interpreter=python, log=log))
    return Contestant(name, partial(started.call, "generate"), started)


def _start_generate(setting: Setting, stack: ExitStack) -> Contestant:
    command = ["bench.engines.by_transformers", "generate", str(setting.model)]
    return _remote(GENERATE, setting, stack, command, python=sys.executable)


def _start_continuous(setting: Setting, stack: ExitStack) -> Contestant:
    command = ["bench.engines.by_transformers", "continuous", str(setting.model)]
    command += [str(setting.streams), str(setting.stream_tokens)]
    return _remote(CONTINUOUS, setting, stack, command, python=sys.executable)


def _start_llama(setting: Setting, stack: ExitStack) -> Contestant:
    assert setting.llama_python is not None
    file = setting.scratch / "model.gguf"
    gguf_file.convert(setting.model, file)
    command = ["bench.engines.by_llama", str(file), str(setting.streams), str(setting.stream_tokens)]
    return _remote(LLAMA, setting, stack, command, python=setting.llama_python)


def _start_llmws(setting: Setting, stack: ExitStack) -> Contestant:
    return _remote(LLMWS, setting, stack, ["bench.engines.by_llmws", str(setting.model)], python=sys.executable)


def _start_server(setting: Setting, stack: ExitStack) -> Contestant:
    server = serving.llmws(_folder(setting, "llmws"), setting.model, streams=setting.streams)
    return Contestant(SERVER, stack.enter_context(server))


def _start_serve(setting: Setting, stack: ExitStack) -> Contestant:
    server = serving.transformers(
        _folder(setting, "transformers"), setting.model, streams=setting.streams, stream_tokens=setting.stream_tokens
    )
    return Contestant(SERVE, stack.enter_context(server), once=True)


def _folder(setting: Setting, name: str) -> Path:
    folder = setting.scratch / name
    folder.mkdir()
    return folder


_STARTS = {
    GENERATE: _start_generate,
    CONTINUOUS: _start_continuous,
    SERVE: _start_serve,
    LLAMA: _start_llama,
    LLMWS: _start_llmws,
    SERVER: _start_server,
}

"""Our engine, bare: no session, no log, no socket. A contestant's side; see `remote`."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from bench.engines.remote import TIMEOUT_S, serve
from bench.figures import Figure
from llmws.config import Config, LimitsSection, OptimizationSection
from llmws.engine.local import LocalEngine
from llmws.engine_api import Chunk, GenerationRequest, ModelFailed, ModelInfo, ModelLoaded, ModelRef

GREEDY = msgspec.structs.replace(
    Config().generation_defaults.to_sampling(), do_sample=False, seed=0, stop=[], ignore_eos=True
)


class _Stream:
    """What came of one request, and when.

    Attributes:
        wall_s: of each token.
        cpu_s: of the process, at each token.
    """

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.wall_s: list[float] = []
        self.cpu_s: list[float] = []
        self.cached_tokens = 0
        self.ended = False

    def add(self, chunk: Chunk) -> None:
        if chunk.error_code is not None:
            raise RuntimeError(f"{chunk.error_code}: {chunk.error_message}")
        self.ids += chunk.ids
        self.wall_s += [time.perf_counter()] * len(chunk.ids)
        self.cpu_s += [time.process_time()] * len(chunk.ids)
        self.cached_tokens = self.cached_tokens or chunk.cached_tokens
        self.ended = chunk.finish is not None


class Bare:
    """The engine as a server makes it, and one who takes what it gives."""

    def __init__(self, folder: str) -> None:
        self._engine = LocalEngine(OptimizationSection(device="cpu", threads=1), LimitsSection())
        self._news = threading.Event()
        self._streams: dict[str, _Stream] = {}
        self.info: ModelInfo
        self._engine.start(self._news.set)
        path = Path(folder)
        self._engine.load(
            ModelRef(name=path.name, path=f"models/{path.name}", location=folder, size_bytes=1, source="models")
        )
        self._until(lambda: hasattr(self, "info"))

    def describe(self) -> dict[str, object]:
        """What the engine made of the model."""
        return {
            name: getattr(self.info, name) for name in ("engine", "tier", "tier_reason", "attention", "max_running")
        }

    def generate(self, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        """Greedy ids of requests that come at once."""
        streams = self._submit(prompts, new_tokens)
        self._until_ended(*streams.values())
        return [stream.ids for stream in streams.values()]

    def interference(
        self, prompts: list[list[int]], long_prompt: list[int], steady_steps: int
    ) -> dict[str, tuple[list[float], list[float]]]:
        """Gaps between tokens of streams that decode, alone and while a long prompt is read; by unit, in seconds.

        As many streams as run at once, but for the long one, are taken of the prompts.
        """
        prompts = prompts[: self.info.max_running - 1]
        streams = self._submit(prompts, 4 * steady_steps + len(long_prompt) // 4)
        decoding = list(streams.values())
        self._until(lambda: all(len(stream.ids) > 1 for stream in decoding))
        begun = [len(stream.ids) for stream in decoding]
        enough = [first + steady_steps for first in begun]
        self._until(lambda: all(len(stream.ids) >= least for stream, least in zip(decoding, enough, strict=True)))
        arrived = [len(stream.ids) for stream in decoding]
        (late,) = self._submit([long_prompt], 1).values()
        self._until_ended(late)
        if any(stream.ended for stream in decoding):
            raise RuntimeError("a stream ended before the long prompt was read")
        for key in streams:
            self._engine.cancel(key)
        wall, cpu = [stream.wall_s for stream in decoding], [stream.cpu_s for stream in decoding]
        return {"wall clock": _gaps(wall, begun, arrived), "CPU": _gaps(cpu, begun, arrived)}

    def next_turn(self, first: list[int], answer_tokens: int, more: list[int]) -> dict[str, float]:
        """A session's second prompt, and the same prompt from somebody else, for whom nothing is cached."""
        (opening,) = self._submit([first], answer_tokens).values()
        self._until_ended(opening)
        second = first + opening.ids + more
        found: dict[str, float] = {"known_tokens": len(first) + len(opening.ids)}
        for whose, owner in (("own", "bench"), ("stranger", "stranger")):
            wall_s, cpu_s = time.perf_counter(), time.process_time()
            (stream,) = self._submit([second], 1, owner=owner).values()
            self._until_ended(stream)
            found[f"{whose}_cached_tokens"] = stream.cached_tokens
            found[f"{whose}_wall_s"] = stream.wall_s[0] - wall_s
            found[f"{whose}_cpu_s"] = stream.cpu_s[0] - cpu_s
        return found

    def _submit(self, prompts: Sequence[list[int]], new_tokens: int, *, owner: str = "bench") -> dict[str, _Stream]:
        streams = {}
        for number, prompt in enumerate(prompts, len(self._streams)):
            key = str(number)
            streams[key] = self._streams[key] = _Stream()
            self._engine.submit(
                GenerationRequest(
                    key=key, owner=owner, prompt_ids=tuple(prompt), sampling=GREEDY, max_new_tokens=new_tokens
                )
            )
        return streams

    def _until_ended(self, *streams: _Stream) -> None:
        self._until(lambda: all(stream.ended for stream in streams))

    def _until(self, is_so: Callable[[], bool]) -> None:
        """Takes what comes until something is so."""
        deadline_s = time.monotonic() + TIMEOUT_S
        while not is_so():
            if not self._news.wait(deadline_s - time.monotonic()):
                raise TimeoutError("the engine gave nothing")
            self._news.clear()
            for event in self._engine.take():
                if isinstance(event, Chunk):
                    self._streams[event.key].add(event)
                elif isinstance(event, ModelLoaded):
                    self.info = event.info
                elif isinstance(event, ModelFailed):
                    raise RuntimeError(event.message)


def _gaps(
    columns: Sequence[list[float]], begun: Sequence[int], arrived: Sequence[int]
) -> tuple[list[float], list[float]]:
    """Between the tokens of all streams: from the first of its own to an arrival, and from there on."""
    before: list[float] = []
    after: list[float] = []
    for times, first, middle in zip(columns, begun, arrived, strict=True):
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        # Gap i ends with token i + 1.
        before += gaps[first - 1 : middle - 1]
        after += gaps[middle - 1 :]
    return before, after


def _sampler_cost() -> list[Figure]:
    from bench import sampler_cost  # noqa: PLC0415 - imports torch, which the engine is to do in its own way

    return sampler_cost.measure()


def main() -> None:
    """`python -m bench.engines.by_llmws FD FOLDER`."""
    fd, folder = sys.argv[1:]
    bare = Bare(folder)
    serve(
        int(fd),
        {
            "describe": bare.describe,
            "generate": bare.generate,
            "interference": bare.interference,
            "next_turn": bare.next_turn,
            "sampler_cost": _sampler_cost,
        },
    )


if __name__ == "__main__":
    main()

"""The figures of one model: our engine alone, then transformers on the same folder."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Final

import msgspec
import torch

from bench.figures import Figure, figure
from bench.gpu.deadline import Deadline, say
from bench.gpu.others import Transformers
from bench.gpu.shapes import Shape, Written
from bench.gpu.streams import DRAWN, kernel_s, prompts, run
from llmws.config import LimitsSection, OptimizationSection
from llmws.engine.fast import FastRunner
from llmws.engine.graphs import Eager, recording_stream
from llmws.engine.local import transformers_loader

_READ_BYTES: Final = 2**24
_WARM_UP_TOKENS: Final = 3
_EAGER_S: Final = 40
_OTHERS_S: Final = 60


class Work(msgspec.Struct, frozen=True):
    """What is asked.

    Attributes:
        streams: at once, one run each.
        crowd: of these, the one at which others are compared.
        prompt_tokens: of each stream.
        new_tokens: of each stream.
        max_context: that the engine is to promise.
    """

    streams: tuple[int, ...]
    crowd: int
    prompt_tokens: int
    new_tokens: int
    max_context: int


REAL: Final = Work(streams=(1, 8, 32, 128), crowd=32, prompt_tokens=128, new_tokens=128, max_context=8_192)
TOY: Final = Work(streams=(1, 2), crowd=2, prompt_tokens=8, new_tokens=6, max_context=128)


class Setting(msgspec.Struct, frozen=True):
    """Where everything runs.

    Attributes:
        device: where.
        bytes_per_s: bandwidth of its memory.
        work: what is asked.
        deadline: of the whole run.
    """

    device: torch.device
    bytes_per_s: float
    work: Work
    deadline: Deadline

    @property
    def dtype(self) -> torch.dtype:
        """Of weights."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32


def ours(shape: Shape, written: Written, setting: Setting) -> Generator[Figure, None, dict[int, float]]:
    """Load, steps and memory of our engine.

    Returns:
        new tokens a second of whole runs, prompts included, by streams.
    """
    device, work = setting.device, setting.work
    _take_workspaces(device)
    before_bytes = _allocated_bytes(device)
    optimization = OptimizationSection(device=str(device))
    limits = LimitsSection(max_context=work.max_context, max_running=max(work.streams))
    loader = transformers_loader(optimization, limits)
    read_s = _read_s(Path(written.ref.location))
    began_s = time.perf_counter()
    claim = loader.claim(written.ref)
    runner = loader.load(written.ref, claim, progress=lambda _read, _total: None)
    load_s = time.perf_counter() - began_s
    if not isinstance(runner, FastRunner):
        say(f"{shape.name} is not served by the fast tier: {runner.info.tier_reason}")
        runner.close()
        return {}
    yield figure(f"{shape.name}: loading", "s", [load_s])
    yield figure("  less a second, over reading its files", "x", [max(0.0, load_s - 1) / read_s], at_most=1.2)
    budget_bytes = claim.budget_bytes - runner.held_bytes
    began_s = time.perf_counter()
    runner.open_pool(budget_bytes)
    yield figure("  opening its pool, with all recordings", "s", [time.perf_counter() - began_s])
    rates = yield from _rates(shape, written, setting, runner)
    if device.type == "cuda":
        peak_bytes = torch.cuda.max_memory_allocated(device) - before_bytes
        promised_bytes = runner.held_bytes + runner.pool_bytes
        yield figure("  memory at its peak, over the estimate", "x", [peak_bytes / promised_bytes], at_most=1.0)
    if device.type == "cuda" and setting.deadline.allows(f"{shape.name} without recordings", _EAGER_S):
        runner.close_pool()
        runner.recorder = Eager()
        runner.open_pool(budget_bytes)
        yield from _rates(shape, written, setting, runner, suffix=", without recordings")
    held_bytes = runner.held_bytes
    runner.close()
    if device.type == "cuda":
        left_bytes = _allocated_bytes(device) - before_bytes
        yield figure("  memory that is not back after unloading", "%", [100 * left_bytes / held_bytes], at_most=1.0)
    return rates


def beside(shape: Shape, written: Written, setting: Setting, rates: dict[int, float]) -> Iterator[Figure]:
    """Our engine over what transformers does, in whole runs."""
    if not rates or not setting.deadline.allows(f"transformers on {shape.name}", _OTHERS_S):
        return
    work, new_tokens = setting.work, setting.work.new_tokens
    others = Transformers(Path(written.ref.location), device=setting.device, dtype=setting.dtype)
    one, crowd = (_prompts(written, work, streams, "transformers") for streams in (1, work.crowd))
    others.generate_s(one, _WARM_UP_TOKENS)
    serial = new_tokens / others.generate_s(one, new_tokens)
    batch = work.crowd * new_tokens / others.generate_s(crowd, new_tokens)
    yield figure(f"{shape.name}: 1 stream, over generate()", "x", [rates[1] / serial])
    ours_rate = rates[work.crowd]
    name = f"{shape.name}: {work.crowd} streams, over generate()"
    yield figure(f"{name} one after another", "x", [ours_rate / serial], at_least=10.0)
    yield figure("  over generate() of one batch", "x", [ours_rate / batch])
    try:
        continuous = work.crowd * new_tokens / others.continuous_s(crowd, new_tokens)
    except Exception as error:  # noqa: BLE001 - what another program cannot do is not ours to explain
        say(f"LEFT OUT: continuous batching of transformers: {type(error).__name__}: {error}")
        return
    yield figure("  over continuous batching of transformers", "x", [ours_rate / continuous], at_least=3.0)


def _rates(
    shape: Shape, written: Written, setting: Setting, runner: FastRunner, *, suffix: str = ""
) -> Generator[Figure, None, dict[int, float]]:
    """Tokens a second while all streams decode, and of whole runs."""
    work = setting.work
    whole = {}
    for streams in work.streams:
        # What prompts take is compiled before it counts; what decodes take is since the pool was opened.
        run(runner, _prompts(written, work, streams, f"warm up{suffix}"), _WARM_UP_TOKENS)
        done = run(runner, _prompts(written, work, streams, f"measured{suffix}"), work.new_tokens)
        whole[streams] = streams * work.new_tokens / done.wall_s
        name = f"{shape.name}: {streams} stream{'s' * (streams > 1)}{suffix}"
        yield figure(name, "tokens/s", [streams / each for each in done.decode_s])
        step_s = statistics.median(done.decode_s)
        if streams == 1:
            ideal_s = written.token_bytes / setting.bytes_per_s
            yield figure("  share of the bandwidth's roofline", "", [ideal_s / step_s], at_least=shape.roofline)
        if streams == work.crowd and not suffix:
            done = run(runner, _prompts(written, work, streams, "drawn"), work.new_tokens, sampling=DRAWN)
            name = f"  the same, drawn at temperature {DRAWN.temperature:g} and top-p {DRAWN.top_p:g}"
            yield figure(name, "tokens/s", [streams / each for each in done.decode_s])
        if streams == work.crowd and setting.device.type == "cuda":
            busy_s = kernel_s(runner, _prompts(written, work, streams, f"profiled{suffix}"))
            # What the host does between two steps does not shrink with the model: a small one cannot reach this.
            yield figure("  GPU busy", "", [busy_s / step_s], at_least=None if suffix else 0.97)
    return whole


def _prompts(written: Written, work: Work, streams: int, seed: str) -> list[list[int]]:
    return prompts(seed=seed, streams=streams, tokens=work.prompt_tokens, vocabulary=written.vocabulary)


def _read_s(folder: Path) -> float:
    """Seconds that reading a folder's weights takes, for the second time, as they are loaded then."""
    for _ in range(2):
        began_s = time.perf_counter()
        for path in folder.glob("*.safetensors"):
            with path.open("rb", buffering=0) as file:
                while file.read(_READ_BYTES):
                    pass
    return time.perf_counter() - began_s


def _take_workspaces(device: torch.device) -> None:
    """Has cuBLAS take the memory that it keeps for each stream of the device, which no model gives back."""
    if device.type != "cuda":
        return
    matrix = torch.ones(16, 16, device=device)
    torch.mm(matrix, matrix)
    with torch.cuda.stream(recording_stream(device)):
        torch.mm(matrix, matrix)
    torch.cuda.synchronize(device)


def _allocated_bytes(device: torch.device) -> int:
    gc.collect()
    if device.type != "cuda":
        return 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)

"""The decode kernels: right on this GPU, and how close they come to the bandwidth of its memory."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Final

import torch
from msgspec.structs import replace

from bench.figures import Figure, figure
from bench.gpu.deadline import say
from tests.support.paged_cases import CASES, computed, expected, make

_TOLERANCE: Final = {"float32": 1e-4, "float16": 3e-3, "bfloat16": 3e-2}
_COPIED_BYTES: Final = 2**30
_RUNS: Final = 20
_PAUSE_CYCLES: Final = 20_000_000
"""Of the device's clock: about ten milliseconds."""
_STREAMS: Final = 32
_CONTEXT: Final = 4_096
_HEADS, _KV_HEADS, _DIM, _PAGE_TOKENS = 32, 8, 128, 16


def bandwidth(device: torch.device, copied_bytes: int = _COPIED_BYTES) -> float:
    """Bytes a second that a copy within the device's memory reads and writes."""
    source = torch.ones(copied_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * copied_bytes / statistics.median(timed_s(lambda: target.copy_(source), device))


def differing(device: torch.device) -> list[str]:
    """The cases in which the kernels do not give what the textbook gives, in all types of numbers."""
    found = []
    for case in CASES:
        for dtype, tolerance in _TOLERANCE.items():
            typed = replace(case, dtype=dtype)
            step = make(typed, str(device))
            difference = (computed(step, typed).double() - expected(step)).abs().max().item()
            if not difference <= tolerance:  # a NaN counts too
                say(f"DIFFERS by {difference:g}: {case.name}, {dtype}")
                found.append(f"{case.name}, {dtype}")
    return found


def figures(device: torch.device, bytes_per_s: float) -> list[Figure]:
    """Of the kernels. CUDA only."""
    planned = shares(device, bytes_per_s, None)
    name = f"paged decode at {_CONTEXT} tokens, {_STREAMS} streams: share of bandwidth"
    return [
        figure("cases in which the decode kernels differ from the textbook", "", [len(differing(device))], at_most=0),
        figure(name, "", planned, at_least=0.8),
    ]


def tuned(device: torch.device, bytes_per_s: float) -> list[Figure]:
    """The best of many launches, so that it shows what the planned one leaves. CUDA only."""
    reached: dict[str, float] = {}
    for tile_tokens, warps, stages, splits in itertools.product((32, 64, 128), (4, 8), (3, 5, 7), (4, 8)):
        launch = {"tile_tokens": tile_tokens, "warps": warps, "stages": stages, "splits": splits}
        try:
            reached[str(launch)] = statistics.median(shares(device, bytes_per_s, launch))
        except Exception as error:  # noqa: BLE001 - Triton has a type of its own for what is too large for a device
            say(f"  {launch}: {type(error).__name__}")
    for name, share in sorted(reached.items(), key=lambda item: -item[1])[:5]:
        say(f"  {share:.3f} of the bandwidth with {name}")
    return [figure("  with the best launch of those tried", "", [max(reached.values())])]


def shares(device: torch.device, bytes_per_s: float, launch: dict[str, int] | None) -> list[float]:
    """Bytes of keys and values a second over the bandwidth, of some runs; `launch` None is the planned one."""
    from llmws.engine.triton_decode import Launch, paged_decode  # noqa: PLC0415 - not everywhere is Triton

    pages = _STREAMS * _CONTEXT // _PAGE_TOKENS
    shape = (pages + 1, _PAGE_TOKENS, _KV_HEADS, _DIM)
    keys, values = (torch.randn(shape, device=device, dtype=torch.bfloat16) for _ in range(2))
    queries = torch.randn(_STREAMS, _HEADS, _DIM, device=device, dtype=torch.bfloat16)
    tables = (torch.randperm(pages, device=device) + 1).view(_STREAMS, -1).int()
    lengths = torch.full((_STREAMS,), _CONTEXT, dtype=torch.int32, device=device)
    chosen = None if launch is None else Launch(**launch)

    def attend() -> torch.Tensor:
        return paged_decode(queries, keys, values, tables, lengths, scaling=_DIM**-0.5, launch=chosen)

    return [2 * keys[1:].nbytes / each / bytes_per_s for each in timed_s(attend, device)]


def timed_s(run: Callable[[], object], device: torch.device) -> list[float]:
    """Seconds of each of some runs on the device, the first ones not counted.

    On CUDA they are put behind a pause, so that the time Python takes to launch them is not part of it.
    """
    for _ in range(3):
        run()
    if device.type != "cuda":
        return [_wall_s(run) for _ in range(_RUNS)]
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(_RUNS)]
    torch.cuda.synchronize(device)
    torch.cuda._sleep(_PAUSE_CYCLES)  # type: ignore[no-untyped-call]
    for begin, end in events:
        begin.record()
        run()
        end.record()
    torch.cuda.synchronize(device)
    return [begin.elapsed_time(end) / 1e3 for begin, end in events]


def _wall_s(run: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    run()
    return time.perf_counter() - began_s

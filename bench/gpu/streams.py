"""Our engine as the worker drives it: loader, runner, steps."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import torch

from llmws.engine.fast import FastRunner
from llmws.engine.runner import Token
from llmws.engine_api import GenerationRequest
from llmws.protocol.messages import Sampling

GREEDY: Final = Sampling(do_sample=False, seed=0)
DRAWN: Final = Sampling(do_sample=True, temperature=0.7, top_p=0.9, seed=0)
"""Takes the whole vocabulary in order, for each stream."""

_PROFILED_STEPS: Final = 8


class Run(msgspec.Struct, frozen=True):
    """What a batch of equal requests took.

    Attributes:
        wall_s: from the first `start` to the last token.
        decode_s: of each step that gave every stream a token.
    """

    wall_s: float
    decode_s: list[float]


def prompts(*, seed: str, streams: int, tokens: int, vocabulary: int) -> list[list[int]]:
    """Random ids; another seed gives others, so that no prefix cache answers."""
    chance = random.Random(f"{seed}/{streams}")
    return [[chance.randrange(vocabulary) for _ in range(tokens)] for _ in range(streams)]


def run(runner: FastRunner, asked: Sequence[Sequence[int]], new_tokens: int, *, sampling: Sampling = GREEDY) -> Run:
    """Starts all at once, and takes them to their end. Every step waits for the device, as its tokens are read."""
    began_s = time.perf_counter()
    left = _started(runner, asked, new_tokens, sampling)
    decode_s = []
    while left:
        step_s = time.perf_counter()
        outcomes = _stepped(runner, list(left))
        if len(outcomes) == len(asked):
            decode_s.append(time.perf_counter() - step_s)
        for key in outcomes:
            left[key] -= 1
            if not left[key]:
                del left[key]
                runner.free(key)
    return Run(time.perf_counter() - began_s, decode_s)


def kernel_s(runner: FastRunner, asked: Sequence[Sequence[int]]) -> float:
    """Seconds a step in which the GPU runs kernels, while all of these streams decode. CUDA only."""
    left = _started(runner, asked, 4 * _PROFILED_STEPS, GREEDY)
    while len(_stepped(runner, list(left))) < len(left):
        pass
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(_PROFILED_STEPS):
            _stepped(runner, list(left))
        torch.cuda.synchronize()
    for key in left:
        runner.free(key)
    events: Any = profile.key_averages()
    return float(sum(event.self_device_time_total for event in events)) / 1e6 / _PROFILED_STEPS


def _started(runner: FastRunner, asked: Sequence[Sequence[int]], new_tokens: int, sampling: Sampling) -> dict[str, int]:
    left = {}
    for number, ids in enumerate(asked):
        runner.start(
            GenerationRequest(key=str(number), prompt_ids=tuple(ids), sampling=sampling, max_new_tokens=new_tokens)
        )
        left[str(number)] = new_tokens
    return left


def _stepped(runner: FastRunner, keys: Sequence[str]) -> list[str]:
    """Who got a token."""
    outcomes = runner.step(keys)
    if failed := [outcome for outcome in outcomes.values() if not isinstance(outcome, Token)]:
        raise failed[0]
    return list(outcomes)

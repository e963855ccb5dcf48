"""What is measured of our engine by itself: a long prompt among others, a session's next turn, sampler and estimate."""

from __future__ import annotations

from typing import Final

from bench.engines.contestants import Contestant
from bench.engines.workload import Workload, prompts
from bench.figures import Figure, figure, percentile
from llmws.engine.layout import PAGE_TOKENS

ANSWER_TOKENS: Final = 32
MORE_TOKENS: Final = 32
P99_WHILE_A_LONG_PROMPT_ARRIVES: Final = 2.0
ESTIMATE_AT_MOST: Final = 1.03


def interference(llmws: Contestant, workload: Workload, rounds: int) -> list[Figure]:
    """How much longer the others wait for a token while a long prompt is read."""
    assert llmws.remote is not None
    times: dict[str, list[tuple[float, float]]] = {}
    for number in range(rounds):
        name = f"interference {number}"
        others = prompts(workload, name=name, streams=max(workload.streams), tokens=workload.prompt_tokens // 4)
        (late,) = prompts(workload, name=name, streams=1, tokens=workload.long_prompt_tokens)
        gaps = llmws.remote.call("interference", others, late, workload.steady_steps).value
        for unit, (alone_s, beside_s) in gaps.items():
            times.setdefault(unit, []).append((percentile(alone_s, 99) * 1e3, percentile(beside_s, 99) * 1e3))
    title = f"p99 between tokens while a prompt of {workload.long_prompt_tokens:,} is read, over p99 without"
    found = []
    for unit, pairs in times.items():
        growth = [beside / alone for alone, beside in pairs]
        found += [
            figure(f"{title}, {unit}", "x", growth, at_most=P99_WHILE_A_LONG_PROMPT_ARRIVES),
            figure("  p99 without", "ms", [alone for alone, _ in pairs]),
            figure("  p99 while", "ms", [beside for _, beside in pairs]),
        ]
    return found


def next_turn(llmws: Contestant, workload: Workload, rounds: int) -> list[Figure]:
    """What a session's second prompt finds of the first turn, and what that saves."""
    assert llmws.remote is not None
    turns = []
    for number in range(rounds):
        name = f"turn {number}"
        (first,) = prompts(workload, name=name, streams=1, tokens=workload.turn_tokens)
        (more,) = prompts(workload, name=name, streams=1, tokens=MORE_TOKENS)
        turns.append(llmws.remote.call("next_turn", first, ANSWER_TOKENS, more).value)
    lacking = [turn["known_tokens"] - turn["own_cached_tokens"] for turn in turns]
    return [
        figure("next turn: tokens of the one before that are read again", "tokens", lacking, at_most=PAGE_TOKENS),
        figure("  of", "tokens", [turn["known_tokens"] for turn in turns]),
        figure(
            "  cached of it for somebody else", "tokens", [turn["stranger_cached_tokens"] for turn in turns], at_most=0
        ),
        figure("  CPU to first token", "ms", [turn["own_cpu_s"] * 1e3 for turn in turns]),
        figure("  CPU to first token, nothing cached", "ms", [turn["stranger_cpu_s"] * 1e3 for turn in turns]),
        figure("  time to first token", "ms", [turn["own_wall_s"] * 1e3 for turn in turns]),
        figure("  time to first token, nothing cached", "ms", [turn["stranger_wall_s"] * 1e3 for turn in turns]),
    ]


def sampler(llmws: Contestant) -> list[Figure]:
    """See `bench.sampler_cost`, which imports torch and so runs where the engine does."""
    assert llmws.remote is not None
    figures: list[Figure] = llmws.remote.call("sampler_cost").value
    return figures


def estimate(generate: Contestant, workload: Workload) -> list[Figure]:
    """Our estimate of a context's memory over what the cache of transformers takes."""
    assert generate.remote is not None
    (prompt,) = prompts(workload, name="estimate", streams=1, tokens=workload.turn_tokens)
    ratio = generate.remote.call("estimate_ratio", prompt).value
    return [
        figure("estimate of a context's memory, over the real cache", "x", [ratio], at_most=ESTIMATE_AT_MOST),
        figure("  never under", "x", [ratio], at_least=1.0),
    ]

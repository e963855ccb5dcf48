"""What every contestant is asked.

Knows no contestant. Invariant: a prompt comes once in a run, so nobody's prefix cache can answer for him.
"""

from __future__ import annotations

import random

import msgspec


class Shape(msgspec.Struct, frozen=True):
    """A Llama; its embedding is its output layer too."""

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    positions: int


class Workload(msgspec.Struct, frozen=True):
    """What is asked.

    Attributes:
        shape: of the model.
        streams: at once, one run each.
        prompt_tokens: of each stream.
        new_tokens: of each stream.
        long_prompt_tokens: of the prompt that arrives while others decode.
        turn_tokens: of a session's first prompt.
        steady_steps: tokens that every stream gets before the long prompt arrives.
        toy: whether only the script is tried out.
    """

    shape: Shape
    streams: tuple[int, ...]
    prompt_tokens: int
    new_tokens: int
    long_prompt_tokens: int
    turn_tokens: int
    steady_steps: int
    toy: bool = False


FULL = Workload(
    shape=Shape(vocabulary=32_000, hidden=768, layers=12, heads=12, kv_heads=4, intermediate=2_304, positions=4_096),
    streams=(1, 8, 32),
    prompt_tokens=128,
    new_tokens=128,
    long_prompt_tokens=2_000,
    turn_tokens=512,
    steady_steps=32,
)
"""107.1 million parameters."""

TINY = Workload(
    shape=Shape(vocabulary=512, hidden=64, layers=2, heads=4, kv_heads=2, intermediate=128, positions=512),
    streams=(1, 4),
    prompt_tokens=8,
    new_tokens=8,
    long_prompt_tokens=200,
    turn_tokens=48,
    steady_steps=8,
    toy=True,
)
"""Whether the script works at all; its figures say nothing."""


def prompts(workload: Workload, *, name: str, streams: int, tokens: int) -> list[list[int]]:
    """Random prompts, the same for every one who asks by the same name."""
    # Random by purpose, not by chance. The name is hashed in full, unlike by hash().
    chance = random.Random(f"{name}/{streams}/{tokens}")
    return [[chance.randrange(workload.shape.vocabulary) for _ in range(tokens)] for _ in range(streams)]

"""What choosing tokens costs at a vocabulary of 152k, against torch.multinomial on the same rows.

Random logits: the cost does not depend on a model. Invariant: sampler and torch.multinomial take turns, and only the
CPU of this process counts, in one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

import torch

from bench.figures import Figure, figure, ratios
from llmws.engine.sampler import BatchSampler
from llmws.protocol.messages import Sampling

VOCABULARY: Final = 151_936
ROWS: Final = (1, 8, 32)
ROUNDS: Final = 7
CALLS: Final = 24
"""Rows in one round, at least: a clock of 10 ms must not matter."""
PROMPT: Final = range(0, 3_000, 3)
COMPLETION: Final = range(200)

SAMPLED: Final = {"do_sample": True, "temperature": 0.8, "seed": 1}
KINDS: Final = {
    "greedy": Sampling(do_sample=False),
    "temperature": Sampling(**SAMPLED),
    "top-p and top-k": Sampling(**SAMPLED, top_p=0.95, top_k=50),
    "penalties": Sampling(**SAMPLED, top_p=0.95, repetition_penalty=1.1, frequency_penalty=0.2, presence_penalty=0.1),
}


def measure() -> list[Figure]:
    """How many times cheaper each kind of choice is than a draw without any filter, and what it takes a row."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [each for rows in ROWS for kind, sampling in KINDS.items() for each in _figures(kind, sampling, rows)]
    finally:
        torch.set_num_threads(threads)


def _figures(kind: str, sampling: Sampling, rows: int) -> list[Figure]:
    logits = torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(rows)) * 3
    keys = [str(row) for row in range(rows)]
    ours, theirs = [], []
    for _ in range(ROUNDS):
        # Anew in every round: penalties cost more the longer an answer is.
        sampler = _sampler(sampling, keys)
        calls = max(1, CALLS // rows)
        ours.append(_cpu_s(calls, lambda sampler=sampler: sampler.choose(keys, logits)) / calls)
        theirs.append(_cpu_s(calls, lambda: torch.multinomial(torch.softmax(logits, dim=1), 1)) / calls)
    name = f"sampler, {rows} rows of 152k, {kind}" if rows > 1 else f"sampler, 1 row of 152k, {kind}"
    return [
        figure(f"{name}: cheaper than torch.multinomial", "x", ratios(theirs, ours), at_least=5.0),
        figure("  a row", "us", [each / rows * 1e6 for each in ours]),
    ]


def _sampler(sampling: Sampling, keys: Sequence[str]) -> BatchSampler:
    sampler = BatchSampler(VOCABULARY, torch.device("cpu"))
    for key in keys:
        sampler.add(key, sampling, prompt_ids=PROMPT, emitted_ids=COMPLETION)
    return sampler


def _cpu_s(calls: int, call: Callable[[], object]) -> float:
    """Of this thread, once the call is warm."""
    call()
    began_s = time.thread_time()
    for _ in range(calls):
        call()
    return time.thread_time() - began_s

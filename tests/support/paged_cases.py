"""Decode steps over a paged pool: inputs, what attention must give, and what the Triton kernels give.

Knows no pytest: the tests run the kernels in Triton's interpreter, the GPU benchmark on the device.
"""

from __future__ import annotations

import os
from typing import Any

import msgspec
import torch


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One decode step. `lengths` has an entry a stream; 0 is padding."""

    name: str
    lengths: tuple[int, ...]
    kv_heads: int = 2
    group: int = 1
    key_dim: int = 16
    value_dim: int = 16
    page_tokens: int = 16
    splits: int = 3
    tile_tokens: int = 16
    stages: int = 2
    window: int | None = None
    softcap: float | None = None
    sinks: float | None = None
    """The size of the sinks' logits."""
    dtype: str = "float32"


class Step(msgspec.Struct, frozen=True):
    """The tensors of a case; see `paged_decode`."""

    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    tables: torch.Tensor
    lengths: torch.Tensor
    options: dict[str, Any]


def make(case: Case, device: str = "cpu") -> Step:
    """A step whose pages are shuffled, and whose pool is NaN wherever nothing must be read."""
    torch.manual_seed(11)
    dtype = getattr(torch, case.dtype)
    pages = [-(-length // case.page_tokens) for length in case.lengths]
    pool = torch.full((1 + sum(pages), case.page_tokens, case.kv_heads, case.key_dim + case.value_dim), torch.nan)
    tables = torch.zeros(len(pages), max(pages) + 2, dtype=torch.int32)
    free = (torch.randperm(sum(pages)) + 1).tolist()
    for stream, length in enumerate(case.lengths):
        seen = range(max(0, length - (case.window or length)), length)
        for page in range(pages[stream]):
            tables[stream, page] = free.pop()
            for offset in range(case.page_tokens):
                if page * case.page_tokens + offset in seen:
                    pool[tables[stream, page], offset] = torch.randn(pool.shape[2:])
    heads = case.kv_heads * case.group
    sinks = None if case.sinks is None else torch.randn(heads).mul(case.sinks).to(device, dtype)
    pool = pool.to(device, dtype)
    return Step(
        torch.randn(len(pages), heads, case.key_dim).to(device, dtype),
        # The parts of one tensor: strides are not those of a dense pool.
        pool[..., : case.key_dim],
        pool[..., case.key_dim :],
        tables.to(device),
        torch.tensor(case.lengths, dtype=torch.int32, device=device),
        {"scaling": case.key_dim**-0.5, "window": case.window, "softcap": case.softcap, "sinks": sinks},
    )


def expected(step: Step) -> torch.Tensor:
    """Softmax attention as in the textbook, in float64, one stream after the other."""
    streams, heads, _ = step.queries.shape
    kv_heads, value_dim = step.values.shape[2:]
    output = step.queries.new_zeros((streams, heads, value_dim), dtype=torch.float64)
    window, softcap, sinks = (step.options[name] for name in ("window", "softcap", "sinks"))
    for stream, length in enumerate(step.lengths.tolist()):
        if not length:
            continue
        seen = slice(max(0, length - (window or length)), length)
        keys, values = (
            pool[step.tables[stream].long()].flatten(0, 1)[seen].double().repeat_interleave(heads // kv_heads, dim=1)
            for pool in (step.keys, step.values)
        )
        scores = torch.einsum("hd,thd->ht", step.queries[stream].double(), keys) * step.options["scaling"]
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        if sinks is not None:
            scores = torch.cat([scores, sinks.double()[:, None]], dim=1)
        weights = scores.softmax(dim=1)[:, : keys.shape[0]]
        output[stream] = torch.einsum("ht,thd->hd", weights, values)
    return output


def computed(step: Step, case: Case) -> torch.Tensor:
    """What the kernels give, cut up as the case says. Imports Triton, which the process of the tests must not."""
    from llmws.engine.triton_decode import Launch, paged_decode

    launch = Launch(splits=case.splits, tile_tokens=case.tile_tokens, stages=case.stages, warps=4)
    return paged_decode(step.queries, step.keys, step.values, step.tables, step.lengths, launch=launch, **step.options)


# --- the interpreter -------------------------------------------------------------------------------------------------


def begin_interpreter() -> None:
    """Makes this process interpret kernels. It counts only before Triton is imported, so it is a process of its own."""
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)


def interpret(case: Case) -> list[Any]:
    """The output as nested lists: what goes between processes."""
    output: list[Any] = computed(make(case), case).double().tolist()
    return output

"""Decode steps over a paged pool: inputs, what attention must give, and what the Triton kernels give.

Knows no pytest: the tests run the kernels in Triton's interpreter, the GPU benchmark on the device.
"""

from __future__ import annotations

import os
from typing import Any

import msgspec
import torch

_GAP = 64
"""Numbers between keys and values: as many as a head of 65 to 128 is padded with at most."""


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


EDGES = Case(name="at the edges of pages and tiles", lengths=(1, 15, 16, 17, 33))
LONG = Case(name="long beside short", lengths=(150, 3), group=4)
CASES = [
    EDGES,
    LONG,
    Case(name="padding", lengths=(0, 20, 0)),
    Case(name="no stream at all", lengths=(0, 0)),
    Case(name="GQA of 7", lengths=(40,), group=7),
    Case(name="GQA of 8", lengths=(40,), group=8),
    Case(name="more query heads than a block has rows", lengths=(40,), group=17, kv_heads=1),
    Case(name="heads of 64", lengths=(40,), key_dim=64, value_dim=64, group=4),
    Case(name="heads of 80", lengths=(40,), key_dim=80, value_dim=80),
    Case(name="heads of 128", lengths=(40,), key_dim=128, value_dim=128),
    Case(name="values narrower than keys", lengths=(40,), key_dim=24, value_dim=8),
    Case(name="values wider than keys", lengths=(40,), key_dim=16, value_dim=40),
    Case(name="more splits than tiles", lengths=(70, 5), splits=16),
    Case(name="one split", lengths=(70,), splits=1),
    Case(name="a number of splits that is no power of two, all used", lengths=(330,), splits=5),
    Case(name="tiles of several pages", lengths=(70, 33), tile_tokens=32),
    Case(name="tiles of a part of a page", lengths=(70, 33), page_tokens=32),
    Case(name="window", lengths=(150, 20, 21, 3), window=20, splits=2),
    Case(name="window of one", lengths=(33, 32, 1), window=1),
    Case(name="a window that takes many splits", lengths=(330,), window=200, splits=3),
    Case(name="softcap", lengths=(60,), softcap=1.5),
    Case(name="sinks", lengths=(60, 1, 0), sinks=1.0, group=4),
    Case(name="sinks far above all scores", lengths=(60,), sinks=200.0, group=4),
    Case(name="everything at once", lengths=(100, 0, 31), group=4, window=40, softcap=2.0, sinks=1.0, tile_tokens=32),
    Case(name="half precision", lengths=(100, 17), group=4, sinks=1.0, dtype="float16"),
]


class Step(msgspec.Struct, frozen=True):
    """The tensors of a case; see `paged_decode`."""

    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    tables: torch.Tensor
    lengths: torch.Tensor
    options: dict[str, Any]


def make(case: Case, device: str = "cpu") -> Step:
    """A step whose pages are shuffled, and whose pool is NaN wherever nothing must be read, also beside a head."""
    torch.manual_seed(11)
    dtype = getattr(torch, case.dtype)
    pages = [-(-length // case.page_tokens) for length in case.lengths]
    width = case.key_dim + _GAP + case.value_dim
    pool = torch.full((1 + sum(pages), case.page_tokens, case.kv_heads, width + _GAP), torch.nan)
    tables = torch.zeros(len(pages), max(pages) + 2, dtype=torch.int32)
    free = (torch.randperm(sum(pages)) + 1).tolist()
    for stream, length in enumerate(case.lengths):
        seen = range(max(0, length - (case.window or length)), length)
        for page in range(pages[stream]):
            tables[stream, page] = free.pop()
            for offset in range(case.page_tokens):
                if page * case.page_tokens + offset in seen:
                    row = pool[tables[stream, page], offset]
                    row[:, : case.key_dim] = torch.randn(case.kv_heads, case.key_dim)
                    row[:, case.key_dim + _GAP : width] = torch.randn(case.kv_heads, case.value_dim)
    heads = case.kv_heads * case.group
    sinks = None if case.sinks is None else torch.randn(heads).mul(case.sinks).to(device, dtype)
    pool = pool.to(device, dtype)
    return Step(
        torch.randn(len(pages), heads, case.key_dim).to(device, dtype),
        # The parts of one tensor: strides are not those of a dense pool.
        pool[..., : case.key_dim],
        pool[..., case.key_dim + _GAP : width],
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


# --- the compiler ----------------------------------------------------------------------------------------------------


def compiled_shared_bytes(*, dtype: str, group: int, dim: int, softcap: float | None, capability: int) -> int:
    """Compiles both kernels for a GPU that need not be there; the bytes that a program of the first one shares.

    Only in a process that does not interpret kernels.

    Args:
        dtype: as Triton names it.
        group: query heads of a KV head.
        dim: of keys and values.
        softcap: see `paged_decode`.
        capability: of the GPU, 90 for 9.0.
    """
    import triton
    from triton.backends.compiler import GPUTarget

    from llmws.engine import triton_decode

    def compiled(kernel: Any, tensors: dict[str, str], constants: dict[str, Any], **options: int) -> Any:
        types = {name: tensors.get(name, "i32") for name in kernel.arg_names} | dict.fromkeys(constants, "constexpr")
        places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
        source = triton.compiler.ASTSource(fn=kernel, signature=types, constexprs=places)
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)

    launch = triton_decode.plan_launch(
        streams=4, kv_heads=8, key_dim=dim, value_dim=dim, dtype_bytes=2, multiprocessors=108, shared_bytes=99 * 2**10
    )
    pool = dict.fromkeys(("queries", "keys", "values"), f"*{dtype}")
    parts = dict.fromkeys(("peaks", "sums", "parts"), "*fp32")
    block = triton.next_power_of_2(dim)
    shape = {"GROUP": group, "KEY_DIM": dim, "VALUE_DIM": dim, "SOFTCAP": softcap, "PAGE_TOKENS": 16, "MIN_TILES": 4}
    blocks = {"TILE_TOKENS": launch.tile_tokens, "BLOCK_GROUP": 16, "BLOCK_KEY": block, "BLOCK_VALUE": block}
    numbers = {"tables": "*i32", "lengths": "*i32", "scaling": "fp32"}
    split = compiled(
        triton_decode._split, pool | parts | numbers, shape | blocks, num_warps=launch.warps, num_stages=launch.stages
    )
    compiled(
        triton_decode._merge,
        parts | {"output": f"*{dtype}", "sinks": f"*{dtype}"},
        {"SPLITS": 6, "VALUE_DIM": dim, "BLOCK_SPLITS": 8, "BLOCK_VALUE": 32},
    )
    return int(split.metadata.shared)

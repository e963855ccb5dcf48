"""One decode step's attention over a paged KV pool, as two Triton kernels.

Owns how a long context is split over a GPU's multiprocessors. Knows neither models nor who owns a page. Invariant: what
is read is bounded by `lengths` alone, so a launch that was recorded in a CUDA graph serves any lengths, and a stream of
length 0 reads nothing and gets zeros.

The first kernel runs once for each KV head, stream and split: it takes all query heads of its KV head together, so that
every key and value is read once, and leaves an online softmax of its part of the context. The second merges the parts.
Source: PagedAttention (arXiv:2309.06180) for the pages, Flash-Decoding (Dao et al. 2023,
pytorch.org/blog/flash-decoding) for the splits, Milakov and Gimelshein 2018 (arXiv:1805.02867) for the softmax.
"""

from __future__ import annotations

import functools

import msgspec
import torch
import triton
import triton.language as tl

_MIN_BLOCK = 16
"""Rows and columns that the matrix units take at least. Source: the documentation of `tl.dot`."""

_TILE_BYTES = 32 * 2**10
"""Keys and values of one tile: some of these in flight for each multiprocessor hide the latency of memory."""

_SCRATCH_BYTES = 8 * 2**10
"""That queries, weights and the compiler take of the shared memory beside the tiles."""

_BLOCKS_PER_MULTIPROCESSOR = 4
"""Of the first kernel, in all: a few waves, so that the last one is not mostly idle."""

_MIN_SPLITS = 4
"""Also where there are streams enough: one long context among short ones must not be left to one multiprocessor."""

_MAX_SPLITS = 128
_MIN_TILES = 4
"""A split with fewer would cost more in merging than it gains."""

_REDUCED_DIMS = 32
"""Dimensions of a value that one program of the second kernel merges: few enough to hold all splits in registers."""

_EVERYTHING = 2**31 - 1
"""As a window: wider than any context."""


class Launch(msgspec.Struct, frozen=True):
    """How the first kernel is cut up; fixed for a batch size, whatever the lengths.

    Attributes:
        splits: programs that share a context; those that a short one leaves nothing to are idle. A power of two,
            because the second kernel is compiled for each.
        tile_tokens: tokens that a program works on at a time.
        stages: of the pipeline that fetches tiles.
        warps: of a program.
    """

    splits: int
    tile_tokens: int
    stages: int
    warps: int


def plan_launch(
    *,
    streams: int,
    kv_heads: int,
    key_dim: int,
    value_dim: int,
    dtype_bytes: int,
    multiprocessors: int,
    shared_bytes: int,
) -> Launch:
    """How to cut up a step.

    Args:
        streams: of the batch, padding included.
        kv_heads: of the model.
        key_dim: numbers of a head's key.
        value_dim: numbers of a head's value.
        dtype_bytes: size of a number in the pool.
        multiprocessors: of the device.
        shared_bytes: memory that a program may share among its threads.
    """
    token_bytes = (_block(key_dim) + _block(value_dim)) * dtype_bytes
    tile_tokens = max(_MIN_BLOCK, triton.next_power_of_2(_TILE_BYTES // token_bytes + 1) // 2)
    tile_bytes = tile_tokens * token_bytes
    # Two programs beside one another, each with two tiles in flight, if there is memory for it. Looking up the pages
    # takes stages of its own: of five, two hold tiles; of three, one.
    stages = 5 if 2 * (2 * tile_bytes + _SCRATCH_BYTES) <= shared_bytes else 3
    wanted = -(-_BLOCKS_PER_MULTIPROCESSOR * multiprocessors // (streams * kv_heads))
    splits = min(max(triton.next_power_of_2(wanted), _MIN_SPLITS), _MAX_SPLITS)
    return Launch(splits=splits, tile_tokens=tile_tokens, stages=stages, warps=4)


def paged_decode(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tables: torch.Tensor,
    lengths: torch.Tensor,
    *,
    scaling: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
    launch: Launch | None = None,
) -> torch.Tensor:
    """Attention of one new token of each stream to its whole context.

    Safe to record in a CUDA graph after one call outside of it, which compiles the kernels.

    Args:
        queries: [streams, heads, key_dim]; the last dimension is dense.
        keys: [pages, page_tokens, kv_heads, key_dim], the same dtype; the last dimension is dense.
        values: [pages, page_tokens, kv_heads, value_dim], likewise.
        tables: int32 [streams, max_pages]: the page of position p is `tables[i, p // page_tokens]`. What lies outside
            of length or window is not read.
        lengths: int32 [streams], the new token included; 0 for a stream that is only padding.
        scaling: of the scores.
        window: tokens that the query sees, its own included; None for all.
        softcap: scores become `softcap * tanh(score / softcap)`. Source: Gemma 2 (arXiv:2408.00118), 2.
        sinks: [heads], a logit for each head that takes its share of the softmax and has no value.
            Source: gpt-oss; StreamingLLM (arXiv:2309.17453), 3.
        launch: by default what `plan_launch` says for this device.

    Returns:
        [streams, heads, value_dim], the dtype of `queries`.

    Raises:
        ValueError: a last dimension is not dense.
    """
    streams, heads, key_dim = queries.shape
    _, page_tokens, kv_heads, value_dim = values.shape
    if any(tensor.stride(-1) != 1 for tensor in (queries, keys, values, tables)):
        raise ValueError("a last dimension is not dense")
    if launch is None:
        multiprocessors, shared_bytes = _device(queries.device)
        launch = plan_launch(
            streams=streams,
            kv_heads=kv_heads,
            key_dim=key_dim,
            value_dim=value_dim,
            dtype_bytes=keys.element_size(),
            multiprocessors=multiprocessors,
            shared_bytes=shared_bytes,
        )
    group = heads // kv_heads
    peaks = queries.new_empty((streams, heads, launch.splits), dtype=torch.float32)
    sums = torch.empty_like(peaks)
    parts = queries.new_empty((streams, heads, launch.splits, value_dim), dtype=torch.float32)
    output = queries.new_empty((streams, heads, value_dim))
    # Triton launches on the current device.
    with torch.cuda.device_of(queries):  # type: ignore[no-untyped-call]
        # Heads of one page lie side by side: programs that run at the same time read neighbouring memory.
        _split[(kv_heads, streams, launch.splits)](
            queries,
            keys,
            values,
            tables,
            lengths,
            peaks,
            sums,
            parts,
            scaling,
            _EVERYTHING if window is None else window,
            queries.stride(0),
            queries.stride(1),
            keys.stride(0),
            keys.stride(1),
            keys.stride(2),
            values.stride(0),
            values.stride(1),
            values.stride(2),
            tables.stride(0),
            SOFTCAP=softcap,
            GROUP=group,
            KEY_DIM=key_dim,
            VALUE_DIM=value_dim,
            PAGE_TOKENS=page_tokens,
            TILE_TOKENS=launch.tile_tokens,
            MIN_TILES=_MIN_TILES,
            BLOCK_GROUP=_block(group),
            BLOCK_KEY=_block(key_dim),
            BLOCK_VALUE=_block(value_dim),
            num_warps=launch.warps,
            num_stages=launch.stages,
        )
        _merge[(heads, streams, triton.cdiv(value_dim, _REDUCED_DIMS))](
            peaks,
            sums,
            parts,
            sinks,
            output,
            SPLITS=launch.splits,
            VALUE_DIM=value_dim,
            BLOCK_SPLITS=triton.next_power_of_2(launch.splits),
            BLOCK_VALUE=_REDUCED_DIMS,
        )
    return output


def try_out(device: torch.device) -> None:
    """Runs the kernels on one token; raises whatever keeps them from being compiled or launched."""
    pool = torch.zeros(1, _MIN_BLOCK, 1, _MIN_BLOCK, device=device)
    table = torch.zeros(1, 1, dtype=torch.int32, device=device)
    paged_decode(pool[0, :1], pool, pool, table, table[0] + 1, scaling=1.0)


@triton.jit  # type: ignore[untyped-decorator]
def _split(
    queries: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    tables: tl.tensor,
    lengths: tl.tensor,
    peaks: tl.tensor,
    sums: tl.tensor,
    parts: tl.tensor,
    scaling: tl.tensor,
    window: tl.tensor,
    query_stream_stride: tl.tensor,
    query_head_stride: tl.tensor,
    key_page_stride: tl.tensor,
    key_token_stride: tl.tensor,
    key_head_stride: tl.tensor,
    value_page_stride: tl.tensor,
    value_token_stride: tl.tensor,
    value_head_stride: tl.tensor,
    table_stride: tl.tensor,
    SOFTCAP: tl.constexpr,
    GROUP: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
    MIN_TILES: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    BLOCK_KEY: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
) -> None:
    """The query heads of one KV head against one part of one stream's context."""
    kv_head, stream, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    kv_heads, splits = tl.num_programs(0), tl.num_programs(2)

    length = tl.load(lengths + stream)
    start = tl.maximum(length - window, 0)
    first = start // TILE_TOKENS
    last = tl.cdiv(length, TILE_TOKENS)
    tiles = tl.maximum(tl.cdiv(last - first, splits), MIN_TILES)
    begin = first + split * tiles
    end = tl.minimum(begin + tiles, last)

    in_group = tl.arange(0, BLOCK_GROUP)
    head = kv_head * GROUP + in_group
    part = (stream * kv_heads * GROUP + head) * splits + split
    if begin >= end:
        tl.store(peaks + part, float("-inf"), mask=in_group < GROUP)
        tl.store(sums + part, 0.0, mask=in_group < GROUP)
        return

    in_tile = tl.arange(0, TILE_TOKENS)
    in_key = tl.arange(0, BLOCK_KEY)
    in_value = tl.arange(0, BLOCK_VALUE)
    query = tl.load(
        queries + stream * query_stream_stride + head[:, None] * query_head_stride + in_key[None, :],
        mask=(in_group[:, None] < GROUP) & (in_key[None, :] < KEY_DIM),
        other=0.0,
    )
    peak = tl.full([BLOCK_GROUP], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_GROUP], tl.float32)
    mixed = tl.zeros([BLOCK_GROUP, BLOCK_VALUE], tl.float32)
    for tile in range(begin, end):
        position = tile * TILE_TOKENS + in_tile
        seen = (position >= start) & (position < length)
        # 64 bits: a pool has more numbers than 32 can count.
        page = tl.load(tables + stream * table_stride + position // PAGE_TOKENS, mask=seen, other=0).to(tl.int64)
        token = position % PAGE_TOKENS
        key_row = page * key_page_stride + token * key_token_stride + kv_head * key_head_stride
        value_row = page * value_page_stride + token * value_token_stride + kv_head * value_head_stride
        key = tl.load(
            keys + key_row[:, None] + in_key[None, :],
            mask=seen[:, None] & (in_key[None, :] < KEY_DIM),
            other=0.0,
        )
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scaling
        if SOFTCAP is not None:
            # tanh(x) = 2 sigmoid(2 x) - 1
            scores = SOFTCAP * (2.0 * tl.sigmoid(2.0 * scores / SOFTCAP) - 1.0)
        scores = tl.where(seen[None, :], scores, float("-inf"))
        # Every tile has a token that is seen, so this is finite from the first one on.
        higher = tl.maximum(peak, tl.max(scores, axis=1))
        weights = tl.exp(scores - higher[:, None])
        shrunk = tl.exp(peak - higher)
        total = total * shrunk + tl.sum(weights, axis=1)
        value = tl.load(
            values + value_row[:, None] + in_value[None, :],
            mask=seen[:, None] & (in_value[None, :] < VALUE_DIM),
            other=0.0,
        )
        mixed = mixed * shrunk[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="ieee")
        peak = higher

    tl.store(peaks + part, peak, mask=in_group < GROUP)
    tl.store(sums + part, total, mask=in_group < GROUP)
    tl.store(
        parts + part[:, None].to(tl.int64) * VALUE_DIM + in_value[None, :],
        mixed,
        mask=(in_group[:, None] < GROUP) & (in_value[None, :] < VALUE_DIM),
    )


@triton.jit  # type: ignore[untyped-decorator]
def _merge(
    peaks: tl.tensor,
    sums: tl.tensor,
    parts: tl.tensor,
    sinks: tl.tensor,
    output: tl.tensor,
    SPLITS: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
) -> None:
    """Some dimensions of one head's output: its parts, weighted, and the sink."""
    head, stream = tl.program_id(0), tl.program_id(1)
    row = stream * tl.num_programs(0) + head
    split = tl.arange(0, BLOCK_SPLITS)
    dim = tl.program_id(2) * BLOCK_VALUE + tl.arange(0, BLOCK_VALUE)

    peak = tl.load(peaks + row * SPLITS + split, mask=split < SPLITS, other=float("-inf"))
    total = tl.load(sums + row * SPLITS + split, mask=split < SPLITS, other=0.0)
    highest = tl.max(peak, axis=0)
    # A stream that is only padding has no peak at all.
    highest = tl.where(highest == float("-inf"), 0.0, highest)
    weights = tl.exp(peak - highest)
    whole = tl.sum(total * weights, axis=0)
    if sinks is not None:
        # Far above all scores it becomes infinite, and takes everything.
        whole += tl.exp(tl.load(sinks + head).to(tl.float32) - highest)
    # Parts without a peak were never written.
    part = tl.load(
        parts + (row * SPLITS + split)[:, None].to(tl.int64) * VALUE_DIM + dim[None, :],
        mask=(peak[:, None] > float("-inf")) & (dim[None, :] < VALUE_DIM),
        other=0.0,
    )
    mixed = tl.sum(part * weights[:, None], axis=0) / tl.where(whole > 0.0, whole, 1.0)
    tl.store(output + row * VALUE_DIM + dim, mixed.to(output.dtype.element_ty), mask=dim < VALUE_DIM)


@functools.cache
def _device(device: torch.device) -> tuple[int, int]:
    """Multiprocessors of a CUDA device, and the bytes that a program may share among its threads."""
    if device.type != "cuda":  # Triton's interpreter
        return 1, 64 * 2**10
    properties = triton.runtime.driver.active.utils.get_device_properties(device.index)
    return properties["multiprocessor_count"], properties["max_shared_mem"]


def _block(size: int) -> int:
    """The power of two that holds so many rows or columns."""
    block: int = triton.next_power_of_2(max(size, _MIN_BLOCK))
    return block

"""What a model would take of a device, for a person who has not loaded it, and may not even have the device.

Owns the figures that `llmws models` shows. Reads no weights. Invariant: the figures are those that a load goes by.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch

from llmws.config import LimitsSection, OptimizationSection
from llmws.engine import memory
from llmws.engine.devices import anonymous_bytes, memory_for_models, target
from llmws.engine.estimate import FALLBACK_RUNNING, Estimate, estimate, growth
from llmws.engine.layout import PagedFootprint
from llmws.engine.reading import blamed_on_files, check_type
from llmws.errors import ModelInvalidError, ModelOutOfMemoryError

_CONTEXTS = (4096, 8192, 32768)


class Sort(msgspec.Struct, frozen=True):
    """What one sort of layers keeps of a stream.

    Attributes:
        layers: how many there are.
        token_bytes: of each token, all these layers together.
        window: tokens that are kept at most; None for all.
        state_bytes: whatever the length.
    """

    layers: int
    token_bytes: int
    window: int | None
    state_bytes: int


class Streams(msgspec.Struct, frozen=True):
    """Streams of one length.

    Attributes:
        context: tokens.
        cache_bytes: of one of them.
        side_by_side: so many fit, and run.
    """

    context: int
    cache_bytes: int
    side_by_side: int


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """The figures.

    Attributes:
        type: `model_type` of the configuration.
        tier: that the model would get.
        tier_reason: why it is not the other one.
        device: where.
        dtype: that it would be loaded in.
        weights_bytes: in memory.
        budget_bytes: for weights and streams.
        sorts: of layers.
        max_context: that would be promised; 0 where it does not fit.
        problem: why it does not fit.
        positions: that the model knows; None for any number.
        streams: of several lengths.
    """

    type: str
    tier: str
    tier_reason: str
    device: str
    dtype: str
    weights_bytes: int
    budget_bytes: int
    sorts: tuple[Sort, ...] = ()
    max_context: int = 0
    problem: str = ""
    positions: int | None = None
    streams: tuple[Streams, ...] = ()


def suitability(folder: Path, optimization: OptimizationSection) -> Estimate:
    """What a model is, and the tier that it would get, without a look at the memory.

    Raises:
        ModelInvalidError: it cannot be served.
    """
    check_type(folder)
    devices, dtype = target(optimization)
    return estimate(folder, dtype=dtype, device=devices[0], tier=optimization.tier)


def forecast(
    folder: Path,
    optimization: OptimizationSection,
    limits: LimitsSection,
    *,
    vram_bytes: int | None = None,
    context: int | None = None,
) -> Forecast:
    """The figures of one model.

    Args:
        folder: with `config.json`, and weights or none.
        optimization: as for a load.
        limits: likewise.
        vram_bytes: of a GPU that need not be there; None for this machine as it is.
        context: tokens to tell about; None for a table.

    Raises:
        ModelInvalidError: it cannot be served, or its files do not say.
    """
    check_type(folder)
    if vram_bytes is None:
        devices, dtype = target(optimization)
        readings = [memory_for_models(device, process_bytes=anonymous_bytes()) for device in devices]
    else:
        devices, readings = [torch.device("cuda")], [(vram_bytes, vram_bytes)]
        dtype = torch.bfloat16 if optimization.dtype == "auto" else getattr(torch, optimization.dtype)
    budgets = [
        memory.budget(total_bytes=total, free_bytes=free, utilization=optimization.memory_utilization)
        for total, free in readings
    ]
    found = estimate(folder, dtype=dtype, device=devices[0], tier=optimization.tier)
    # As a load places it: on one device if that holds it, else on all.
    budget_bytes = next((amount for amount in budgets if found.weights_bytes <= amount), sum(budgets))
    with blamed_on_files(folder):
        sorts = _sorts(found.config, dtype.itemsize)
    plain = Forecast(
        type=found.model_type,
        tier=found.tier,
        tier_reason=found.tier_reason,
        device=devices[0].type,
        dtype=str(dtype).removeprefix("torch."),
        weights_bytes=found.weights_bytes,
        budget_bytes=budget_bytes,
        sorts=sorts,
        positions=found.positions,
    )
    left_bytes = budget_bytes - found.weights_bytes
    if left_bytes <= 0:
        return msgspec.structs.replace(plain, problem="the weights alone do not fit")
    with blamed_on_files(folder):
        grows = growth(found, dtype=dtype, device=devices[0], budget_bytes=left_bytes, max_running=limits.max_running)
    running = limits.max_running or FALLBACK_RUNNING
    if isinstance(grows, PagedFootprint):
        running = grows.rows
    try:
        longest = memory.longest_context(
            grows, budget_bytes=left_bytes, positions=found.positions, limit=limits.max_context
        )
    except ModelOutOfMemoryError as error:
        return msgspec.structs.replace(plain, problem=str(error))
    pool_bytes = left_bytes - grows.workspace_bytes(longest)
    contexts = _contexts(longest) if context is None else [context]
    streams = tuple(
        Streams(each, grows.stream_bytes(each), _side_by_side(grows, each, pool_bytes, running, longest))
        for each in contexts
    )
    return msgspec.structs.replace(plain, max_context=longest, streams=streams)


def _contexts(longest: int) -> Sequence[int]:
    return [*(each for each in _CONTEXTS if each < longest), longest]


def _side_by_side(
    grows: memory.Footprint | PagedFootprint, context: int, pool_bytes: int, running: int, longest: int
) -> int:
    if context > longest:
        return 0
    each = grows.stream_bytes(context)
    shared = grows.cache_bytes(context) - each
    return min(running, (pool_bytes - shared) // each) if each else running


def _sorts(config: memory.Config, dtype_bytes: int) -> tuple[Sort, ...]:
    """The layers, alike ones together, in the order of their first."""
    try:
        layers = memory.cache_layers(config)
    except ModelInvalidError:
        return ()
    counts: dict[memory.Layer, int] = {}
    for layer in layers:
        counts[layer] = counts.get(layer, 0) + 1
    return tuple(
        Sort(
            layers=count,
            token_bytes=count * layer.token_values * dtype_bytes,
            window=layer.window,
            state_bytes=count * (layer.state_values * dtype_bytes + 4 * layer.state_values_fp32),
        )
        for layer, count in counts.items()
    )

"""Whether a model can be served by the fast tier: decided by what it can do, never by its name.

Owns the check that every model passes when it is loaded: packed and paged against alone. Invariant: a model that is
refused is left as it came.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import torch

from llmws.engine import attention, linears, memory
from llmws.engine.fallback import Context, alike
from llmws.engine.fast import forward
from llmws.engine.layout import Layout, layout
from llmws.engine.network import Network, device_errors, vocabulary
from llmws.engine.paged import Batch, Pool
from llmws.engine.runner import DeviceLostError
from llmws.engine.scheduler import Budget, Scheduler, Slice
from llmws.errors import LlmwsError

log = logging.getLogger(__name__)

_LENGTHS: Final = (37, 21, 2)
"""Tokens of the streams that are tried side by side: over page boundaries, in several chunks, and hardly any."""

_FAR: Final = len(_LENGTHS)
"""The number of one more, whose answers do not count: it stands at the last positions that the model knows. Some code
takes what it does to all streams from the longest."""

_BUDGET: Final = Budget(alone=32, beside=8)

_NEIGHBOURLY_ROPE: Final = {"dynamic", "longrope"}
"""Rotary tables that are known to depend on the longest stream of a forward, so that nothing need be loaded to tell.
The check would find them too. Source: `transformers.modeling_rope_utils`."""


def unsuited(model_class: type, config: memory.Config) -> str | None:
    """Why no model of this class and configuration can be served by the fast tier; None if some may."""
    if not getattr(model_class, "_supports_attention_backend", False):
        return "its code in transformers takes no other attention"
    if found := _rope_types(memory.text_config(config)) & _NEIGHBOURLY_ROPE:
        return f"its rotary embedding ({', '.join(sorted(found))}) depends on the longest stream beside"
    try:
        layout(config)
    except LlmwsError as error:
        return str(error)
    return None


def adopt(network: Network, config: memory.Config) -> str | None:
    """Prepares a model for the fast tier, and checks it.

    Args:
        network: as it was loaded.
        config: its text part's.

    Returns:
        why it must be served otherwise; then it is as it was.

    Raises:
        DeviceLostError: the device can do nothing more.
        ModelOutOfMemoryError: not even a few tokens fit.
    """
    if reason := unsuited(type(network), config):
        return reason
    if len({parameter.device for parameter in network.parameters()}) > 1:
        return "it is spread over several devices"
    positions = memory.positions(config) or _LENGTHS[0]
    lengths = [min(length, positions) for length in (*_LENGTHS, _LENGTHS[0])]
    streams = [
        [(7919 * i + 13 * n + 1) % vocabulary(network) for i in range(length)] for n, length in enumerate(lengths)
    ]
    expected = [Context(network, ids, use_cache=False).forward(len(ids)) for ids in streams[:_FAR]]
    before = network.config._attn_implementation
    network.set_attn_implementation(attention.IMPLEMENTATION)
    if is_packed := linears.can_pack(network):
        linears.pack(network)
    reason = _check(network, layout(config), streams, expected, shift=positions - lengths[_FAR])
    if reason is not None:
        network.set_attn_implementation(before)
        if is_packed:
            linears.unpack(network)
            network.tie_weights()
    return reason


def _check(
    network: Network,
    pages: Layout,
    streams: Sequence[Sequence[int]],
    expected: Sequence[torch.Tensor],
    *,
    shift: int,
) -> str | None:
    """What differs when these streams are computed packed, in chunks, and to the last id by decoding."""
    try:
        with device_errors("trying the model out"):
            found = _together(network, pages, streams, shift=shift)
    except (LlmwsError, DeviceLostError):
        raise
    except Exception as error:
        # A model may refuse in any way; then it cannot do it.
        log.info("the fast tier cannot run this model", exc_info=True)
        why = error if isinstance(error, NotImplementedError) else type(error).__name__
        return f"it cannot be run in packed batches ({why})"
    tolerance = 0.01 if network.dtype == torch.float32 else 0.1
    for ids, logits, wanted in zip(streams, found, expected, strict=False):
        if not alike(logits, wanted, tolerance=tolerance):
            return f"its answers differ in packed batches (self-check at {len(ids)} tokens)"
    return None


@torch.inference_mode()
def _together(
    network: Network, pages: Layout, streams: Sequence[Sequence[int]], *, shift: int
) -> Sequence[torch.Tensor]:
    """The logits after each stream's last id: all but that one as a prompt, among one another."""
    count = sum(pages.pages(len(ids) + 1, step_tokens=_BUDGET.alone) for ids in streams)
    pool = Pool(pages, pages=count, dtype=network.dtype, device=network.device)
    scheduler = Scheduler(pages, pages=count, budget=_BUDGET, max_running=len(streams), share_prefixes=False)
    for n, ids in enumerate(streams):
        scheduler.add(str(n), ids[:-1], owner="", max_tokens=len(ids) + 1)
    last: dict[str, torch.Tensor] = {}
    while len(last) < len(streams):
        slices = scheduler.plan()
        keys = [each.key for each in slices if each.samples]
        decoded = {each.key for each in slices if each.start == len(streams[int(each.key)]) - 1}
        batch = _shifted(pool.pack(slices), slices, shift)
        for key, logits in zip(keys, forward(network, batch), strict=True):
            if key in decoded:
                last[key] = logits.float()
        scheduler.commit({key: streams[int(key)][-1] for key in keys})
        for key in decoded:
            scheduler.free(key)
    return [last[str(n)] for n in range(len(streams))]


def _shifted(batch: Batch, slices: Sequence[Slice], shift: int) -> Batch:
    """The batch, with the far stream at its positions."""
    moved = [shift if each.key == str(_FAR) else 0 for each in slices for _ in each.ids]
    return replace(batch, positions=batch.positions + batch.positions.new_tensor(moved))


def _rope_types(config: Any) -> set[str]:  # noqa: ANN401 - any part of a configuration
    """The kinds of rotary embedding that a configuration names, for all layers or by kind of layer."""
    found: set[str] = set()
    for name in ("rope_parameters", "rope_scaling"):
        if isinstance(part := config.get(name), Mapping):
            for each in (part, *(value for value in part.values() if isinstance(value, Mapping))):
                found |= {str(each[key]) for key in ("rope_type", "type") if key in each}
    return found

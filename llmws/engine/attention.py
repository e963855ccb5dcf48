"""Attention over the pages of a pool, in place of a transformers model's own.

Owns the function that is registered with transformers. Knows neither streams nor schedules: everything comes in with a
`Batch`, which the model hands on as a keyword argument. Invariant: what it computes for a query does not depend on the
other streams of the batch.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import transformers
from torch.nn.attention.bias import CausalBias, causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from llmws.engine.paged import Batch, Decodes, Span

IMPLEMENTATION: Final = "llmws_paged"
"""The name under which transformers knows it."""

WRITTEN_SCORES: Final = {"cpu": 2**24, "cuda": 2**28}
"""Scores of all heads that are written out at a time, at most, where no fused kernel knows what a layer wants."""

_UNSAID: Final = object()


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    paged: Batch,
    scaling: float | None = None,
    sliding_window: object = _UNSAID,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **_other: Any,  # noqa: ANN401 - dropout and flags that mean nothing here
) -> tuple[torch.Tensor, None]:
    """Stores the keys and values of a step's tokens, and attends to those that each may see.

    Source: `transformers.AttentionInterface`.

    Args:
        module: the attention layer; `layer_idx` says which.
        query: [1, heads, tokens, key_dim].
        key: [1, kv_heads, tokens, key_dim].
        value: [1, kv_heads, tokens, value_dim].
        attention_mask: none is made for an implementation that has registered no way to make one.
        paged: the step.
        scaling: of the scores; by default 1 / sqrt(key_dim).
        sliding_window: what the model's code makes of the configuration; it must be what the layout made of it.
        softcap: scores become softcap * tanh(score / softcap).
        s_aux: [heads]: a logit a head that takes part in the softmax and has no value (attention sinks).
        position_bias: is not supported.

    Returns:
        [1, tokens, heads, value_dim], and no weights.

    Raises:
        NotImplementedError: the layer wants what is not supported.
    """
    if attention_mask is not None or position_bias is not None:
        raise NotImplementedError("the model adds a mask or a bias of its own to the scores")
    pool = paged.pool
    layer: Any = module.layer_idx
    group, slot = pool.layout.places[layer]
    batch = paged.groups[group]
    # Code that knows no windows says nothing, and ignores one in its configuration.
    window = None if sliding_window is _UNSAID else sliding_window
    if window != batch.window:
        raise NotImplementedError(f"layer {layer} has window {window}, its configuration says {batch.window}")
    keys, values = pool.keys[slot], pool.values[slot]
    _store(keys, batch.slots, key)
    _store(values, batch.slots, value)
    rows = query[0].transpose(0, 1)  # [tokens, heads, key_dim]
    scores = Scores(scaling, batch.window, softcap, s_aux, avoids_masks=query.device.type == "cuda")
    parts = [scores.attend(rows[span.start : span.end], *_visible(keys, values, span)) for span in batch.spans]
    if batch.decodes is not None:
        parts.insert(0, scores.decode(rows[: len(batch.decodes.lengths)], keys, values, batch.decodes))
    return torch.cat(parts)[None], None


def _store(pages: torch.Tensor, slots: torch.Tensor, new: torch.Tensor) -> None:
    pages.view(-1, *pages.shape[2:]).index_copy_(0, slots, new[0].transpose(0, 1))


def _visible(keys: torch.Tensor, values: torch.Tensor, span: Span) -> tuple[torch.Tensor, torch.Tensor]:
    """The keys and values that a stream's queries see: [keys, kv_heads, dim] each."""
    gathered_keys = keys.index_select(0, span.pages).flatten(0, 1)
    gathered_values = values.index_select(0, span.pages).flatten(0, 1)
    end = span.offset + span.keys
    return gathered_keys[span.offset : end], gathered_values[span.offset : end]


class Scores:
    """How a layer compares queries with keys.

    Args:
        scaling: see `paged_attention`.
        window: see there.
        softcap: see there.
        sinks: see there.
        avoids_masks: whether kernels are slower with a mask: flash attention on CUDA takes none.
    """

    def __init__(
        self,
        scaling: float | None,
        window: int | None,
        softcap: float | None,
        sinks: torch.Tensor | None,
        *,
        avoids_masks: bool = False,
    ) -> None:
        self._scaling = scaling
        self._window = window
        self._softcap = softcap
        self._sinks = sinks
        self._avoids_masks = avoids_masks

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Attention of one stream's queries, the last of which is at the last key's position.

        Stream by stream, its keys and values stay in the processor's cache between being gathered and being used; in
        one call for all streams they would be written to memory and read again, at five times the cost.

        Args:
            query: [queries, heads, key_dim].
            key: [keys, kv_heads, key_dim].
            value: [keys, kv_heads, value_dim].

        Returns:
            [queries, heads, value_dim].
        """
        if self._softcap is not None or self._sinks is not None:
            return self._attend_openly(query, key, value)
        queries, heads, _ = query.shape
        key, value = key.transpose(0, 1)[None], value.transpose(0, 1)[None]
        if queries == 1:
            # It sees every key. The query heads that share a key head are its rows.
            grouped = query.view(1, key.shape[1], -1, query.shape[2])
            out = scaled_dot_product_attention(grouped, key, value, scale=self._scaling)
            return out.view(1, heads, -1)
        query = query.transpose(0, 1)[None]
        keys = key.shape[2]
        mask: torch.Tensor | None
        if self._avoids_masks and queries < keys and (self._window is None or keys <= self._window):
            mask = causal_lower_right(queries, keys)
        else:
            mask = self._mask(queries, keys, query.device)
        if self._avoids_masks and heads != key.shape[1] and not _takes_groups(query, key, value, mask):
            key, value = (each.repeat_interleave(heads // each.shape[1], dim=1) for each in (key, value))
        out = scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None,
            scale=self._scaling,
            enable_gqa=heads != key.shape[1],
        )
        return out[0].transpose(0, 1)

    def decode(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, decodes: Decodes) -> torch.Tensor:
        """Attention of one query a stream, from the pages where they lie.

        Args:
            query: [streams, heads, key_dim].
            keys: [pages, page_tokens, kv_heads, key_dim].
            values: [pages, page_tokens, kv_heads, value_dim].
            decodes: the streams.

        Returns:
            [streams, heads, value_dim].
        """
        from llmws.engine.triton_decode import paged_decode  # noqa: PLC0415 - Triton comes with CUDA builds of torch

        return paged_decode(
            query,
            keys,
            values,
            decodes.tables,
            decodes.lengths,
            scaling=query.shape[2] ** -0.5 if self._scaling is None else self._scaling,
            window=self._window,
            softcap=self._softcap,
            sinks=self._sinks,
        )

    def _attend_openly(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """The same with scores written out, of some queries at a time: fused kernels know neither caps nor sinks."""
        queries, heads, _ = query.shape
        keys = key.shape[0]
        size = max(1, WRITTEN_SCORES[query.device.type] // (heads * keys))
        if queries <= size:
            return self._written_out(query, key, value)
        parts = []
        for start in range(0, queries, size):
            end = min(start + size, queries)
            seen = keys - queries + end
            parts.append(self._written_out(query[start:end], key[:seen], value[:seen]))
        return torch.cat(parts)

    def _written_out(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        queries, heads, dim = query.shape
        kv_heads = key.shape[1]
        grouped = query.view(queries, kv_heads, heads // kv_heads, dim).permute(1, 2, 0, 3)
        scaling = dim**-0.5 if self._scaling is None else self._scaling
        scores = grouped @ key.permute(1, 2, 0)[:, None] * scaling  # [kv_heads, group, queries, keys]
        if self._softcap is not None:
            scores = torch.tanh(scores / self._softcap) * self._softcap
        if (mask := self._mask(queries, key.shape[0], query.device, causal=True)) is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        if self._sinks is not None:
            sinks = self._sinks.view(kv_heads, -1, 1, 1).to(scores.dtype).expand(-1, -1, queries, 1)
            scores = torch.cat([scores, sinks], dim=-1)
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)[..., : key.shape[0]]
        out = weights @ value.transpose(0, 1)[:, None]
        return out.permute(2, 0, 1, 3).reshape(queries, heads, -1)

    def _mask(self, queries: int, keys: int, device: torch.device, *, causal: bool = False) -> torch.Tensor | None:
        """Which keys each query sees, bool [queries, keys]; None for all up to its own, unless that is `causal`."""
        if not causal and queries == keys and (self._window is None or keys <= self._window):
            return None
        at = torch.arange(keys - queries, keys, device=device)[:, None]
        others = torch.arange(keys, device=device)
        mask = others <= at
        return mask if self._window is None else mask & (others > at - self._window)


def _takes_groups(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> bool:
    """Whether a fused kernel of CUDA takes fewer heads of keys than of queries.

    Flash does, and it alone in every torch that this runs on. Where no fused kernel takes them, torch writes out every
    score in float32.
    """
    if mask is not None and not isinstance(mask, CausalBias):
        return False
    parameters = torch.backends.cuda.SDPAParams(query, key, value, None, 0.0, False, True)  # noqa: FBT003
    return torch.backends.cuda.can_use_flash_attention(parameters)


transformers.AttentionInterface.register(IMPLEMENTATION, paged_attention)

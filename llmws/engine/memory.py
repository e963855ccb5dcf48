"""What a context costs in memory, and how long a context may be: integers from a model's configuration.

Knows neither torch nor devices. Invariant: no estimate is below what the caches of transformers hold (the tests measure
both), so a context that was promised on its strength can be kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec

from llmws.errors import ModelInvalidError, ModelOutOfMemoryError

Config = Mapping[str, Any]
"""A `config.json`, or `PretrainedConfig.to_dict()` with `layer_types` where the class computes them."""

MIN_CONTEXT = 256
"""Tokens below which a model is not worth loading, unless it knows fewer positions."""

UNBOUNDED_CONTEXT = 2**20
"""Tokens promised at most where neither the model nor memory sets a bound (state space models)."""

_SPARE_BYTES = 64 * 2**20
_SPARE_SHARE = 50
"""One part in so many of the device, with the bytes above, stays free: allocators round up and fragment."""

_SLIDING_PATTERNS = {"cohere2": 4, "gemma2": 2, "gemma3_text": 6}
"""One full layer in so many, in families whose older `config.json` leaves it to the code."""


class Layer(msgspec.Struct, frozen=True):
    """What one layer keeps of one stream.

    Attributes:
        token_values: numbers a token, in the model's dtype.
        window: tokens that are kept at most, None for all.
        state_values: constant numbers in the model's dtype (convolution states).
        state_values_fp32: constant numbers in float32 (recurrent states).
    """

    token_values: int = 0
    window: int | None = None
    state_values: int = 0
    state_values_fp32: int = 0

    def cache_bytes(self, *, dtype_bytes: int, context: int, chunk: int) -> int:
        """See the function of that name."""
        tokens, window_bytes = context, 0
        if self.window is not None:
            # It keeps window - 1 tokens as a view on what the last forward saw: those and its own. And an int64.
            tokens, window_bytes = min(context, self.window - 1 + chunk), 8
        return (
            (self.token_values * tokens + self.state_values) * dtype_bytes + self.state_values_fp32 * 4 + window_bytes
        )


class Footprint(msgspec.Struct, frozen=True):
    """How the memory of one model's streams grows.

    Attributes:
        layers: of the cache.
        dtype_bytes: size of a number of the model's dtype.
        chunk: tokens that one forward takes at most.
        repeated_values: numbers a token of the context that one layer works with beside its cache.
        pair_bytes: for every token that a forward takes against every token of the context: the mask and, where
            attention is not fused, the scores.
        token_values: numbers a token that a forward takes.
        logits_bytes: for the logits of one token, sorted.
    """

    layers: tuple[Layer, ...]
    dtype_bytes: int
    chunk: int
    repeated_values: int
    pair_bytes: int
    token_values: int
    logits_bytes: int

    def cache_bytes(self, context: int) -> int:
        """Bytes that a stream of that many tokens holds between two steps."""
        return sum(self._layer_bytes(layer, context) for layer in self.layers)

    def stream_bytes(self, context: int) -> int:
        """Bytes that each stream of that many tokens takes of what all share."""
        return self.cache_bytes(context)

    def workspace_bytes(self, context: int) -> int:
        """Bytes that one forward needs beside weights and caches, whatever else is on.

        For the largest layer its old cache while the new one is written, and keys and values repeated for every query
        head; mask and scores; the activations of the tokens that are taken.
        """
        taken = min(self.chunk, context)
        largest = max((self._layer_bytes(layer, context) for layer in self.layers), default=0)
        values = context * self.repeated_values + taken * self.token_values
        return largest + taken * context * self.pair_bytes + values * self.dtype_bytes + self.logits_bytes

    def need_bytes(self, context: int) -> int:
        """Bytes that one stream of that many tokens needs, alone."""
        return self.cache_bytes(context) + self.workspace_bytes(context)

    def _layer_bytes(self, layer: Layer, context: int) -> int:
        return layer.cache_bytes(dtype_bytes=self.dtype_bytes, context=context, chunk=min(self.chunk, context))


class Growth(Protocol):
    """How memory grows with the context; `Footprint` and `layout.PagedFootprint`."""

    def need_bytes(self, context: int) -> int:
        """Bytes that one stream of that many tokens needs, alone."""


def longest_context(growth: Growth, *, budget_bytes: int, positions: int | None, limit: int = 0) -> int:
    """The longest context that fits.

    Context comes before concurrency: a request is admitted when the memory for its own whole context is free, so short
    requests run side by side and a long one waits, but every one that this allows runs in the end.

    Args:
        growth: of the model's streams.
        budget_bytes: beside the weights.
        positions: that the model knows, None for any number.
        limit: the operator's, 0 for none.

    Raises:
        ModelOutOfMemoryError: not even a small context fits.
    """
    cap = min(positions or UNBOUNDED_CONTEXT, limit or UNBOUNDED_CONTEXT)
    context = _largest(cap, lambda tokens: growth.need_bytes(tokens) <= budget_bytes)
    if context < min(cap, MIN_CONTEXT):
        needed = growth.need_bytes(min(cap, MIN_CONTEXT))
        raise ModelOutOfMemoryError(
            f"beside the weights there are {max(budget_bytes, 0) / 1e9:.2f} GB;"
            f" a context of {min(cap, MIN_CONTEXT)} tokens needs {needed / 1e9:.2f} GB"
        )
    return context


def budget(*, total_bytes: int, free_bytes: int, utilization: float) -> int:
    """Bytes for models, their weights and their streams: what may be used of the device, less a spare.

    Args:
        total_bytes: of the device.
        free_bytes: if no model were there.
        utilization: the share of the device that may be used.
    """
    return min(int(total_bytes * utilization), free_bytes - spare(total_bytes))


def spare(total_bytes: int) -> int:
    """Bytes of a device of that size that no promise is made of."""
    return _SPARE_BYTES + total_bytes // _SPARE_SHARE


def cache_bytes(config: Config, *, dtype_bytes: int, context: int, chunk: int = 1) -> int:
    """Bytes of a transformers cache that holds one stream of `context` tokens, the last forward having taken `chunk`.

    Source: `transformers.cache_utils`: full layers keep every token, sliding ones the window, MLA the latent and the
    rotary key, shared ones nothing, linear ones constant state.

    Raises:
        ModelInvalidError: the configuration does not say.
    """
    return sum(
        layer.cache_bytes(dtype_bytes=dtype_bytes, context=context, chunk=min(chunk, context))
        for layer in cache_layers(config)
    )


def footprint(
    config: Config, *, dtype_bytes: int, chunk: int, eager: bool = False, layers: tuple[Layer, ...] | None = None
) -> Footprint:
    """The footprint of a model.

    Args:
        config: of the model.
        dtype_bytes: size of a number.
        chunk: tokens that one forward takes at most.
        eager: whether attention scores are written out (attention without a fused kernel).
        layers: in place of those that the configuration tells.

    Raises:
        ModelInvalidError: the configuration does not say.
    """
    config = text_config(config)
    attends = _attends(config)
    layers = cache_layers(config) if layers is None else layers
    hidden = _number(config, *_HIDDEN)
    heads = _number(config, *_HEADS, default=0)
    head_dim = _number(config, "head_dim", default=hidden // heads if heads else 0)
    inner = _number(config, "intermediate_size", "n_inner", "ffn_dim", "d_ff", default=4 * hidden)
    experts = _number(config, "num_experts_per_tok", default=0)
    experts_inner = experts * _number(config, "moe_intermediate_size", default=inner)
    # Scans without a fused kernel write out the state of every token, a few times over.
    scan = 4 * max((layer.state_values_fp32 for layer in layers), default=0) * 4 // dtype_bytes
    return Footprint(
        layers=layers,
        dtype_bytes=dtype_bytes,
        chunk=chunk,
        repeated_values=2 * heads * head_dim,
        # The mask, as numbers, and these padded for the kernel. The scores, the same in float32, and their softmax.
        pair_bytes=1 + 2 * dtype_bytes + (heads * (dtype_bytes + 8) if eager else 0) if attends else 0,
        # Residual, norms, queries, keys, values and the gated feed-forward, generously.
        token_values=6 * hidden + 4 * heads * head_dim + 4 * max(inner, experts_inner) + scan,
        logits_bytes=24 * _number(config, "vocab_size"),
    )


def positions(config: Config) -> int | None:
    """Positions that the model knows, None for any number."""
    return _number(text_config(config), *_POSITIONS, default=0) or None


def hidden_size(config: Config) -> int:
    """Numbers of a token between two layers."""
    return _number(text_config(config), *_HIDDEN)


def attention_heads(config: Config) -> int:
    """Heads of queries."""
    return _number(text_config(config), *_HEADS)


def vocabulary_size(config: Config) -> int:
    """Tokens that the model has."""
    return _number(text_config(config), "vocab_size")


def text_config(config: Config) -> Config:
    """The part about text of a multimodal configuration, else the whole."""
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else config


# --- layers --------------------------------------------------------------------------------------------------------

_HIDDEN = ("hidden_size", "n_embd", "d_model", "dim", "emb_dim")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
_STATE = ("state_size", "mamba_d_state", "ssm_state_size")
_KERNEL = ("conv_kernel", "mamba_d_conv")
_STATE_HEADS = ("mamba_n_heads", "mamba_num_heads", "n_mamba_heads", "num_heads")
_STATE_GROUPS = ("mamba_n_groups", "n_groups", "mamba_ngroups")

_FULL = ("full_attention", "attention")
_SLIDING = ("sliding_attention", "chunked_attention")
_LINEAR = ("linear_attention", "mamba", "conv")
_NOTHING = ("moe", "mlp", "dummy")


def cache_layers(config: Config) -> tuple[Layer, ...]:
    """What each layer of the model keeps.

    Raises:
        ModelInvalidError: the configuration does not say.
    """
    config = text_config(config)
    return tuple(_layer(config, kind) for kind in _kinds(config))


def attention_windows(config: Config) -> tuple[int | None, ...]:
    """Of each layer, how many tokens a query sees, its own included; None for all before it.

    Raises:
        ModelInvalidError: a layer is of another kind than full or sliding attention.
    """
    windows: list[int | None] = []
    for kind in _kinds(config):
        if kind not in (*_FULL, "sliding_attention"):
            raise ModelInvalidError(f"it has layers of type {kind!r}")
        windows.append(_number(config, "sliding_window") if kind == "sliding_attention" else None)
    return tuple(windows)


def kv_shape(config: Config) -> tuple[int, int, int]:
    """Heads of keys and values, numbers of a key, and of a value.

    Raises:
        ModelInvalidError: the configuration does not say, or keys and values are compressed.
    """
    if config.get("kv_lora_rank"):
        raise ModelInvalidError("it compresses keys and values (multi-head latent attention)")
    heads = _number(config, *_HEADS)
    head_dim = _number(config, "head_dim", default=_number(config, *_HIDDEN) // heads)
    if config.get("multi_query") and not config.get("new_decoder_architecture"):
        return 1, head_dim, head_dim
    kv_heads = _number(config, "num_key_value_heads", "num_kv_heads", default=heads)
    return kv_heads, head_dim, _number(config, "v_head_dim", default=head_dim)


def _attends(config: Config) -> bool:
    """Whether any layer compares tokens with one another, cached or not."""
    try:
        return any(layer.token_values for layer in cache_layers(config))
    except ModelInvalidError:
        return _number(config, *_HEADS, default=0) > 0


def _layer(config: Config, kind: str) -> Layer:
    if kind in _NOTHING:
        return Layer()
    if kind in _LINEAR:
        return _state(config, kind)
    if kind in _FULL:
        return Layer(token_values=_token_values(config))
    if kind in _SLIDING:
        window = _number(config, "sliding_window" if kind == "sliding_attention" else "attention_chunk_size")
        return Layer(token_values=_token_values(config), window=window)
    if kind == "indexed_attention":
        return Layer(token_values=_token_values(config) + _number(config, "index_head_dim"))
    if kind == "hybrid":
        return msgspec.structs.replace(_state(config, kind), token_values=_token_values(config))
    raise ModelInvalidError(f"layers of type {kind!r} are not known")


def _kinds(config: Config) -> list[str]:
    """The kind of each layer: as the configuration lists them, else as transformers derives them."""
    listed = config.get("layer_types") or config.get("layers_block_type")
    kinds = list(listed) if listed else [_derived_kind(config, i) for i in range(_number(config, *_LAYERS))]
    shared = min(_number(config, "num_kv_shared_layers", default=0), len(kinds))
    return kinds[: len(kinds) - shared] + ["dummy"] * shared


def _derived_kind(config: Config, index: int) -> str:
    model_type = config.get("model_type")
    if model_type in {"mamba", "mamba2", "falcon_mamba"}:
        return "linear_attention"
    if period := config.get("attn_layer_period"):
        return "full_attention" if index % period == config.get("attn_layer_offset", 0) else "linear_attention"
    if interval := config.get("full_attention_interval"):
        return "linear_attention" if (index + 1) % interval else "full_attention"
    if config.get("sliding_window") and config.get("use_sliding_window", True):
        pattern = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern")
        pattern = pattern or _SLIDING_PATTERNS.get(str(model_type), 0)
        full = (index + 1) % pattern == 0 if pattern else index < _number(config, "max_window_layers", default=0)
        return "full_attention" if full else "sliding_attention"
    return "full_attention"


def _token_values(config: Config) -> int:
    """Numbers that an attention layer keeps of a token."""
    if config.get("kv_lora_rank"):
        # Source: DeepSeek-V2 (arXiv:2405.04434), 2.1: the latent and one rotary key for all heads.
        return _number(config, "kv_lora_rank") + _number(config, "qk_rope_head_dim")
    kv_heads, key_dim, value_dim = kv_shape(config)
    return kv_heads * (key_dim + value_dim)


def _state(config: Config, kind: str) -> Layer:
    """The constant state of a linear layer."""
    if "linear_num_value_heads" in config:
        # Source: Gated DeltaNet (arXiv:2412.06464): one key by value matrix a value head.
        keys = _number(config, "linear_num_key_heads") * _number(config, "linear_key_head_dim")
        values = _number(config, "linear_num_value_heads") * _number(config, "linear_value_head_dim")
        kernel = _number(config, "linear_conv_kernel_dim")
        return Layer(
            state_values=(2 * keys + values) * kernel,
            state_values_fp32=values * _number(config, "linear_key_head_dim"),
        )
    if kind == "conv" or "conv_L_cache" in config:
        return Layer(state_values=_number(config, *_HIDDEN) * _number(config, "conv_L_cache"))
    state, kernel = _number(config, *_STATE), _number(config, *_KERNEL)
    expanded = _number(config, "mamba_expand", "expand", default=2) * _number(config, *_HIDDEN)
    if any(name in config for name in _STATE_HEADS):
        # Source: Mamba-2 (arXiv:2405.21060): the convolution runs over inputs, B and C of every group.
        head_dim = config.get("mamba_d_head", config.get("mamba_head_dim", config.get("mamba_headdim")))
        head_dim = config.get("head_dim") if head_dim is None and "num_heads" in config else head_dim
        inner = _number(config, *_STATE_HEADS) * head_dim if isinstance(head_dim, int) else expanded
        channels = inner + 2 * _number(config, *_STATE_GROUPS, default=1) * state
        return Layer(state_values=channels * kernel, state_values_fp32=inner * state)
    # Source: Mamba (arXiv:2312.00752), 3.4.
    inner = expanded if "mamba_d_state" in config else _number(config, "intermediate_size", default=expanded)
    return Layer(state_values=inner * kernel, state_values_fp32=inner * state)


def _number(config: Config, *names: str, default: int | None = None) -> int:
    """The first of these fields that is set; some configurations write 0 or -1 for "not set"."""
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    if default is None:
        raise ModelInvalidError(f"config.json does not say {' or '.join(names)}")
    return default


def _largest(cap: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to `cap` that fits, 0 if none does; what is below a number that fits, fits."""
    low, high = 0, cap
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low

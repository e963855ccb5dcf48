"""What real forwards of a loaded model hold, against what its configuration promises.

Knows no requests. Invariant: where the two differ, the larger one counts.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
import torch

from llmws.engine import memory
from llmws.engine.fallback import PREFILL_TOKENS, Context, Increments
from llmws.engine.network import Network, vocabulary
from llmws.errors import ModelInvalidError

_SAMPLE_TOKENS = 32


def whole_config(config: Any) -> memory.Config:  # noqa: ANN401 - transformers' configurations, each its own class
    """The text part of a model's configuration, with what its class computes."""
    config = config.get_text_config()
    layer_types = getattr(config, "layer_types", None)
    return {**config.to_dict(), **({"layer_types": list(layer_types)} if layer_types else {})}


def measured_footprint(network: Network, increments: Increments, *, sees: bool = False) -> memory.Footprint:
    """The footprint of a model, checked on two short forwards, and on CUDA on a whole chunk.

    Args:
        network: the model.
        increments: how it goes on from its cache.
        sees: whether it takes images: a prompt with some is one forward.

    Raises:
        ModelInvalidError: the configuration does not even say how large the model is.
    """
    config = whole_config(network.config)
    in_chunks = increments is Increments.CHUNKS and not sees
    chunk = PREFILL_TOKENS[network.device.type] if in_chunks else memory.UNBOUNDED_CONTEXT
    layers = () if increments is Increments.NONE else _layers(network, config)
    estimate = memory.footprint(
        config,
        layers=layers,
        dtype_bytes=network.dtype.itemsize,
        chunk=chunk,
        eager=network.config._attn_implementation == "eager",
    )
    return msgspec.structs.replace(estimate, token_values=max(estimate.token_values, peak_values(network)))


def peak_values(network: Network) -> int:
    """Numbers a token that a forward of a whole chunk takes at its peak; 0 where nothing counts them, on CPU."""
    if network.device.type != "cuda":
        return 0
    tokens = PREFILL_TOKENS["cuda"]
    tokens = min(tokens, memory.positions(whole_config(network.config)) or tokens)
    return math.ceil(_peak_bytes(network, tokens) / tokens / network.dtype.itemsize)


def _layers(network: Network, config: memory.Config) -> tuple[memory.Layer, ...]:
    """The layers that the configuration tells, unless real caches are larger: then one that grows as they do."""
    dtype_bytes = network.dtype.itemsize
    long = min(_SAMPLE_TOKENS, memory.positions(config) or _SAMPLE_TOKENS)
    short = max(1, long // 2)
    held = {tokens: _forward(network, tokens).cache_bytes() for tokens in (short, long)}
    try:
        layers = memory.cache_layers(config)
    except ModelInvalidError:
        layers = ()
    told = {
        tokens: sum(layer.cache_bytes(dtype_bytes=dtype_bytes, context=tokens, chunk=tokens) for layer in layers)
        for tokens in held
    }
    growth = held[long] - held[short]
    if layers and told[short] >= held[short] and told[long] - told[short] >= growth:
        return layers
    a_token = math.ceil(growth / max(1, long - short) / dtype_bytes)
    constant = max(0, held[short] - a_token * short * dtype_bytes)
    return (memory.Layer(token_values=a_token, state_values=math.ceil(constant / dtype_bytes)),)


def _peak_bytes(network: Network, tokens: int) -> int:
    """Memory of a forward beside the weights and the cache that it leaves. CUDA only."""
    torch.cuda.reset_peak_memory_stats(network.device)
    before = torch.cuda.memory_allocated(network.device)
    held = _forward(network, tokens).cache_bytes()
    return torch.cuda.max_memory_allocated(network.device) - before - held


def _forward(network: Network, tokens: int) -> Context:
    context = Context(network, [i % vocabulary(network) for i in range(tokens)])
    context.forward(tokens)
    return context

"""What a model would take and be served by, told from its files alone: no weight is read.

Owns the guess that a load makes good or corrects. Knows no devices. Invariant: of a model whose layers it knows, a load
takes no more, but for a few buffers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import torch

from llmws.engine import draw, fast, memory
from llmws.engine.attention import WRITTEN_SCORES
from llmws.engine.building import bounded_building
from llmws.engine.fallback import PREFILL_TOKENS
from llmws.engine.graphs import buckets
from llmws.engine.layout import PagedFootprint, layout
from llmws.engine.linears import SMALLEST_PACKED_BYTES
from llmws.engine.measure import whole_config
from llmws.engine.reading import auto_class, blamed_on_files, read_config
from llmws.engine.selfcheck import unsuited
from llmws.engine.vision import has_processor
from llmws.errors import ModelInvalidError
from llmws.weight_files import files_of, weights_bytes

MAX_RUNNING = {"cpu": 32, "cuda": 256}
"""Streams of the fast tier at once, at most, unless the operator sets a number."""

FALLBACK_RUNNING = 4
"""Streams of the fallback tier at once unless the operator sets a number: they are stepped one after another, so each
one more slows all."""

_MIN_RUNNING = 4
_LOGITS_SHARE = 20
"""The logits of all streams take one part of the memory for streams in so many at most."""

FORCED = "optimization.tier says so"
IMAGES = "it takes images"


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """What the files tell.

    Attributes:
        model_type: as in `config.json`.
        tier: `fast` or `fallback`; whether it can be `fast` indeed, only the self-check of a load tells.
        tier_reason: for a person, why it is not the other one.
        weights_bytes: in memory.
        config: of the text part.
        positions: that the model knows, None for any number.
        writes_scores: whether its attention writes out every score.
    """

    model_type: str
    tier: str
    tier_reason: str
    weights_bytes: int
    config: memory.Config
    positions: int | None
    writes_scores: bool


def estimate(folder: Path, *, dtype: torch.dtype, device: torch.device, tier: str = "auto") -> Estimate:
    """Reads a folder that `reading.check_type` passed. Without weights in it, they are counted by the model's class.

    Args:
        folder: with at least `config.json`.
        dtype: that the model would be loaded in.
        device: where to.
        tier: `auto`, or `fallback` for nothing else.

    Raises:
        ModelInvalidError: the files contradict themselves, or do not say how large the model is.
    """
    with blamed_on_files(folder):
        config = read_config(folder)
        auto = auto_class(folder, config)
        model_class: Any = auto._model_mapping[type(config)]
        text = whole_config(config)
        refusal = FORCED if tier == "fallback" else _refusal(folder, model_class, text)
        saved = weights_bytes(folder, dtype_bytes=dtype.itemsize) if _has_weights(folder) else None
        held = _counted(auto, config, dtype, saved_bytes=saved)
        if refusal is None and device.type == "cpu" and dtype == torch.float32 and text.get("tie_word_embeddings"):
            # Packed for the processor, the output layer is no longer the embedding.
            output = int(text["vocab_size"]) * memory.hidden_size(text) * dtype.itemsize
            held += output if output >= SMALLEST_PACKED_BYTES else 0
        return Estimate(
            model_type=str(config.model_type),
            tier="fast" if refusal is None else "fallback",
            tier_reason=refusal or "",
            weights_bytes=held,
            config=text,
            positions=memory.positions(text),
            writes_scores=writes_scores(model_class) or _is_capped(text),
        )


def growth(
    found: Estimate, *, dtype: torch.dtype, device: torch.device, budget_bytes: int, max_running: int = 0
) -> memory.Footprint | PagedFootprint:
    """How the memory of the model's streams grows.

    Args:
        found: the model.
        dtype: of the model.
        device: where it is.
        budget_bytes: beside its weights.
        max_running: the operator's, 0 for none.

    Raises:
        ModelInvalidError: the configuration does not say.
    """
    if found.tier == "fast":
        running = max_running or most_running(found.config, device=device, budget_bytes=budget_bytes)
        return paged_footprint(
            found.config, dtype=dtype, device=device, max_running=running, writes_scores=found.writes_scores
        )
    chunk = memory.UNBOUNDED_CONTEXT if found.tier_reason == IMAGES else PREFILL_TOKENS[device.type]
    return memory.footprint(found.config, dtype_bytes=dtype.itemsize, chunk=chunk, eager=found.writes_scores)


def writes_scores(model_class: type) -> bool:
    """Whether a model's attention is one that no fused kernel knows, such as one with sinks."""
    return not getattr(model_class, "_supports_sdpa", False)


def most_running(config: memory.Config, *, device: torch.device, budget_bytes: int) -> int:
    """Streams of the fast tier at once: as many as the device can use, fewer where their logits would crowd it."""
    row_bytes = memory.footprint(config, dtype_bytes=1, chunk=1).logits_bytes
    return max(_MIN_RUNNING, min(MAX_RUNNING[device.type], budget_bytes // _LOGITS_SHARE // row_bytes))


def paged_footprint(
    config: memory.Config,
    *,
    dtype: torch.dtype,
    device: torch.device,
    max_running: int,
    writes_scores: bool,
    token_values: int = 0,
) -> PagedFootprint:
    """The footprint of a model on the fast tier.

    Args:
        config: of its text part.
        dtype: of the model.
        device: where it is.
        max_running: streams at once.
        writes_scores: see the function of that name; caps on scores are known from the configuration.
        token_values: numbers a token that a forward was seen to take.

    Raises:
        ModelInvalidError: the configuration does not say, or its layers have no pages.
    """
    is_open = writes_scores or _is_capped(config)
    chunk = fast.step_tokens(fast.step_budget(device, max_running))
    pages = layout(config)
    forward = memory.footprint(config, dtype_bytes=dtype.itemsize, chunk=chunk, eager=is_open, layers=())
    forward = msgspec.structs.replace(forward, token_values=max(forward.token_values, token_values))
    recorded = drawn_bytes = 0
    if device.type == "cuda":
        # Recorded steps, all on one stream, share the memory of the largest one, but for the logits of each.
        sizes = buckets(max_running)
        vocabulary = memory.vocabulary_size(config)
        recorded = sizes[-1] * forward.token_values + sum(sizes) * vocabulary
        drawn_bytes = min(max_running, draw.ROWS[device.type]) * vocabulary * draw.DRAWN_BYTES
    most_pairs = None
    if is_open:
        # A query alone may have more: no more than the keys that are repeated for its heads, which count anyway.
        most_pairs = WRITTEN_SCORES[device.type] // memory.attention_heads(config)
    elif device.type == "cuda":
        # Only windows need masks there.
        most_pairs = max((chunk * (window - 1 + chunk) for window in pages.windows if window is not None), default=0)
    return PagedFootprint(pages, forward, max_running, most_pairs, recorded, drawn_bytes)


def _refusal(folder: Path, model_class: type, config: memory.Config) -> str | None:
    if has_processor(folder):
        return IMAGES
    return unsuited(model_class, config)


def _is_capped(config: memory.Config) -> bool:
    return bool(config.get("attn_logit_softcapping"))


def _has_weights(folder: Path) -> bool:
    try:
        return bool(files_of(folder))
    except ModelInvalidError:
        if any(folder.glob("*.safetensors*")):
            raise
        return False


def _counted(
    auto: Any,  # noqa: ANN401 - see `auto_class`
    config: Any,  # noqa: ANN401 - transformers' configurations, each its own class
    dtype: torch.dtype,
    *,
    saved_bytes: int | None,
) -> int:
    """Bytes of a model: of what is saved, which are told where there are files, and of what its class makes beside it.

    That may be most of it: some classes keep a mask of all their positions squared. A load builds it once more, and no
    larger.
    """
    with bounded_building(), torch.device("meta"):
        network = auto.from_config(config, dtype=dtype)
    if saved_bytes is None:
        whole_bytes: int = sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
        return whole_bytes
    saved = network.state_dict()
    made_bytes: int = sum(tensor.nbytes for name, tensor in network.named_buffers() if name not in saved)
    return saved_bytes + made_bytes

"""Models of real shapes with random weights, as folders that transformers and llmws read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import torch
import transformers
from tokenizers import Tokenizer, models
from transformers import PretrainedConfig

from llmws.engine_api import ModelRef

_NO_SPECIAL: Final = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
"""No answer ends before its time."""


class Shape(msgspec.Struct, frozen=True):
    """A model.

    Attributes:
        name: in the table.
        config: makes its configuration.
        roofline: share of the memory's bandwidth that a single stream is to reach; None for none.
        needed_s: that its figures take at most.
    """

    name: str
    config: Callable[[], PretrainedConfig]
    roofline: float | None
    needed_s: float


class Written(msgspec.Struct, frozen=True):
    """A model in a folder.

    Attributes:
        ref: where.
        vocabulary: ids are below.
        token_bytes: of the weights that one token of one stream goes through.
    """

    ref: ModelRef
    vocabulary: int
    token_bytes: int


def _qwen_0_6b() -> PretrainedConfig:
    return transformers.Qwen3Config(
        vocab_size=151_936,
        hidden_size=1_024,
        intermediate_size=3_072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40_960,
        tie_word_embeddings=True,
        **_NO_SPECIAL,
    )


def _llama_8b() -> PretrainedConfig:
    return transformers.LlamaConfig(
        vocab_size=128_256,
        hidden_size=4_096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131_072,
        tie_word_embeddings=False,
        **_NO_SPECIAL,
    )


def _qwen_moe() -> PretrainedConfig:
    """Qwen3-30B-A3B with 8 of its 48 layers, so that it is written in seconds."""
    return transformers.Qwen3MoeConfig(
        vocab_size=151_936,
        hidden_size=2_048,
        intermediate_size=6_144,
        moe_intermediate_size=768,
        num_experts=128,
        num_experts_per_tok=8,
        norm_topk_prob=True,
        num_hidden_layers=8,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        max_position_embeddings=40_960,
        tie_word_embeddings=False,
        **_NO_SPECIAL,
    )


def _toy() -> PretrainedConfig:
    return transformers.LlamaConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        **_NO_SPECIAL,
    )


REAL: Final = (
    Shape("0.6B", _qwen_0_6b, 0.6, 90),
    Shape("8B", _llama_8b, 0.8, 200),
    Shape("MoE", _qwen_moe, None, 150),
)
TOY: Final = (Shape("toy", _toy, None, 0),)
"""Whether the program works at all; its figures say nothing."""


def write(shape: Shape, folder: Path, *, device: torch.device, dtype: torch.dtype) -> Written:
    """Makes the weights on the device, which takes a moment there, and writes them."""
    torch.manual_seed(0)
    transformers.logging.disable_progress_bar()
    with device:
        network: Any = transformers.AutoModelForCausalLM.from_config(shape.config(), dtype=dtype)
    network.save_pretrained(folder)
    Tokenizer(models.WordLevel({"w0": 0}, unk_token="w0")).save(str(folder / "tokenizer.json"))
    size_bytes = sum(path.stat().st_size for path in folder.iterdir())
    ref = ModelRef(
        name=shape.name, path=f"models/{shape.name}", location=str(folder), size_bytes=size_bytes, source="models"
    )
    return Written(ref, network.config.vocab_size, _token_bytes(network))


def _token_bytes(network: Any) -> int:  # noqa: ANN401 - a model of transformers
    config = network.config
    share = getattr(config, "num_experts_per_tok", 1) / getattr(config, "num_experts", 1)
    total = 0.0
    for name, parameter in network.named_parameters():
        # Of an embedding that is not the output layer too, a token reads one row.
        if "embed_tokens" in name and not config.tie_word_embeddings:
            continue
        total += parameter.nbytes * (share if ".experts." in name else 1)
    return int(total)

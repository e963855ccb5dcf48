"""Writes the model: random weights, and a tokenizer in which token 17 is the word `w17`.

Imports neither torch nor transformers, whose start takes longer than this. Invariant: the same shape gives the same
bytes.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from bench.engines.workload import Shape

SEED: Final = 0
EMBEDDING_STD: Final = 0.02


def write(folder: Path, shape: Shape) -> None:
    """Writes a folder that transformers, llmws and the converter for llama.cpp read."""
    folder.mkdir(parents=True)
    save_file(_weights(shape), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(_config(shape)))
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(shape.vocabulary)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.save(str(folder / "tokenizer.json"))


def parameters(shape: Shape) -> int:
    """How many numbers the model has."""
    norms = (2 * shape.layers + 1) * shape.hidden
    linears = sum(rows * columns for rows, columns in _linears(shape).values())
    return shape.vocabulary * shape.hidden + shape.layers * linears + norms


def _config(shape: Shape) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.hidden // shape.heads,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": shape.positions,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "tie_word_embeddings": True,
        # No answer ends before its time.
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }


def _linears(shape: Shape) -> dict[str, tuple[int, int]]:
    """(rows, columns) of a layer's matrices."""
    hidden, inner, kv = shape.hidden, shape.intermediate, shape.hidden // shape.heads * shape.kv_heads
    return {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }


def _weights(shape: Shape) -> dict[str, np.ndarray[Any, Any]]:
    chance = np.random.default_rng(SEED)

    def normal(rows: int, columns: int, std: float) -> np.ndarray[Any, Any]:
        return chance.standard_normal((rows, columns), np.float32) * np.float32(std)

    ones = np.ones(shape.hidden, np.float32)
    weights = {
        "model.embed_tokens.weight": normal(shape.vocabulary, shape.hidden, EMBEDDING_STD),
        "model.norm.weight": ones,
    }
    for layer in range(shape.layers):
        for name, (rows, columns) in _linears(shape).items():
            # Layers must outweigh the embedding, or the likeliest token is always the one just read.
            weights[f"model.layers.{layer}.{name}.weight"] = normal(rows, columns, 1 / math.sqrt(columns))
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{layer}.{name}.weight"] = ones
    return weights

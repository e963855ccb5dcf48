"""A tiny model that is served as any other, and the ways in which a repository is made of it that is none."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.model_folders import CHATML, byte_level, write_model
from tests.support.safetensors_file import safetensors_bytes

HIDDEN = 16
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 400,
    "hidden_size": HIDDEN,
    "intermediate_size": 2 * HIDDEN,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": 0,
}
_HEAD = HIDDEN // 2
_LAYER = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (_HEAD, HIDDEN),
    "self_attn.v_proj": (_HEAD, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (2 * HIDDEN, HIDDEN),
    "mlp.up_proj": (2 * HIDDEN, HIDDEN),
    "mlp.down_proj": (HIDDEN, 2 * HIDDEN),
    "input_layernorm": (HIDDEN,),
    "post_attention_layernorm": (HIDDEN,),
}
SHAPES = {
    "model.embed_tokens.weight": (CONFIG["vocab_size"], HIDDEN),
    "model.norm.weight": (HIDDEN,),
    **{f"model.layers.0.{name}.weight": shape for name, shape in _LAYER.items()},
}


def tiny_llama(folder: Path) -> Path:
    """A model of some ten thousand random weights."""
    write_model(folder, byte_level("<|im_end|>", "<|im_start|>"), files={"chat_template.jinja": CHATML}, config=CONFIG)
    weights(folder / "model.safetensors", seed=7)
    return folder


def weights(path: Path, *, seed: int, value: float | None = None, header: Mapping[str, Any] | bytes = {}) -> None:
    """Writes all tensors, random or all of one value; `header` changes entries of the header, or is all of it."""
    dice = random.Random(seed)
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = bytearray()
    for name, shape in SHAPES.items():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        start = len(data)
        data += struct.pack(f"<{count}f", *(dice.gauss(0, 0.3) if value is None else value for _ in range(count)))
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, len(data)]}
    path.write_bytes(safetensors_bytes(header if isinstance(header, bytes) else {**entries, **header}, bytes(data)))


def edit(path: Path, changes: Mapping[str, Any]) -> None:
    """Changes keys of a file that is a JSON object, or makes one."""
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(before | dict(changes)))


def unlink_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()

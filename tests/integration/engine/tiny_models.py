"""Whole models of a few thousand random weights, one of each kind of memory, made in milliseconds."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PretrainedConfig

from llmws.engine_api import ModelRef

EOS = 0
VOCABULARY = 320
POSITIONS = 256

_SHAPE = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": POSITIONS}
_SPECIAL = {"bos_token_id": 1, "eos_token_id": EOS, "pad_token_id": 2}
_WILD = {"initializer_range": 0.4}
"""Larger weights than usual: the logits differ enough for greedy answers that do not repeat one token."""

_COMMON = _SHAPE | _HEADS | _SPECIAL | _WILD


def _configs() -> dict[str, PretrainedConfig]:
    t = transformers
    recurrent = _SHAPE | _SPECIAL | _WILD
    sliding = {"head_dim": 8, "sliding_window": 12, "query_pre_attn_scalar": 8, "tie_word_embeddings": False}
    sparse = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}
    return {
        "llama": t.LlamaConfig(**_COMMON),
        "qwen3": t.Qwen3Config(**_COMMON, head_dim=16),
        "gemma2": t.Gemma2Config(**_COMMON, **sliding),
        "gemma3": t.Gemma3TextConfig(**_COMMON, **sliding),
        "gpt2": t.GPT2Config(
            vocab_size=VOCABULARY, n_positions=POSITIONS, n_embd=32, n_layer=2, n_head=4, **_SPECIAL, **_WILD
        ),
        "mamba": t.MambaConfig(**recurrent, state_size=8),
        "mamba2": t.Mamba2Config(**recurrent, state_size=8, num_heads=8, head_dim=8, n_groups=2),
        "deepseek": t.DeepseekV3Config(
            **(_COMMON | {"num_key_value_heads": 4}),
            **sparse,
            kv_lora_rank=16,
            q_lora_rank=16,
            qk_rope_head_dim=4,
            qk_nope_head_dim=8,
            v_head_dim=8,
            n_routed_experts=4,
            n_group=1,
            topk_group=1,
            first_k_dense_replace=1,
        ),
        "qwen3-next": t.Qwen3NextConfig(
            **(_COMMON | {"num_hidden_layers": 4}),
            **sparse,
            head_dim=8,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            num_experts=4,
            shared_expert_intermediate_size=16,
        ),
        "bamba": t.BambaConfig(
            **(_COMMON | {"num_hidden_layers": 3}),
            attn_layer_indices=[1],
            mamba_n_heads=8,
            mamba_d_head=8,
            mamba_n_groups=1,
            mamba_d_state=8,
        ),
        "phi3": t.Phi3Config(
            **_COMMON,
            # Another rotary table from position 16 on, for which the model begins anew.
            original_max_position_embeddings=16,
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0] * 4,
                "long_factor": [3.0] * 4,
                "original_max_position_embeddings": 16,
                "factor": 16.0,
            },
        ),
        "qwen2": t.Qwen2Config(**_COMMON),
        "mistral": t.MistralConfig(**_COMMON, sliding_window=12),
        "mixtral": t.MixtralConfig(**_COMMON, num_local_experts=4, num_experts_per_tok=2),
        "qwen3-moe": t.Qwen3MoeConfig(**_COMMON, **sparse, head_dim=8, num_experts=4),
        "gpt-oss": t.GptOssConfig(**_COMMON, head_dim=8, sliding_window=12, num_local_experts=4, num_experts_per_tok=2),
        "gpt-neox": t.GPTNeoXConfig(**{k: v for k, v in _COMMON.items() if k != "num_key_value_heads"}, rotary_pct=0.5),
        "phi": t.PhiConfig(**_COMMON, partial_rotary_factor=0.5),
        "opt": t.OPTConfig(
            **(_SPECIAL | {"bos_token_id": 1, "init_std": 0.4}),
            vocab_size=VOCABULARY,
            hidden_size=32,
            word_embed_proj_dim=32,
            ffn_dim=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=POSITIONS,
        ),
        "bloom": t.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, **_SPECIAL, **_WILD),
        "falcon": t.FalconConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            alibi=True,
            **_SPECIAL,
            **_WILD,
        ),
        "cohere2": t.Cohere2Config(**(_COMMON | {"num_hidden_layers": 5}), sliding_window=12),
        "starcoder2": t.Starcoder2Config(**_COMMON),
        "smollm3": t.SmolLM3Config(**_COMMON, no_rope_layers=[1, 0]),
        "olmo2": t.Olmo2Config(**_COMMON),
        "granite": t.GraniteConfig(**_COMMON, residual_multiplier=0.5, attention_multiplier=0.3, logits_scaling=2.0),
        "stablelm": t.StableLmConfig(**_COMMON),
        "lfm2": t.Lfm2Config(**(_COMMON | {"num_hidden_layers": 3}), full_attn_idxs=[1]),
    }


CONFIGS = _configs()
BRIEF = ("llama", "qwen3", "gemma3", "gpt2", "mamba", "phi3")
"""The kinds that slower tests run on."""


def network(name: str, *, dtype: torch.dtype = torch.float32) -> transformers.PreTrainedModel:
    """The model of that name, always with the same weights."""
    torch.manual_seed(7)
    # A model keeps its configuration, and changes it.
    config = copy.deepcopy(CONFIGS[name])
    # Not every version of transformers knows that its fused attention leaves caps on scores out.
    attention = "eager" if getattr(config, "attn_logit_softcapping", None) else None
    made: transformers.PreTrainedModel = transformers.AutoModelForCausalLM.from_config(
        config, dtype=dtype, attn_implementation=attention
    )
    return made.eval()


def tokenizer() -> Tokenizer:
    """Byte-level BPE: every byte, so that random answers are full of characters cut in half, and some words."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True) for token in ("<eos>", "<bos>", "<pad>")]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(["the quick brown fox jumps over the lazy dog; das Füchschen 日本語 👍"] * 3, trainer)
    return made


def save(name: str, folder: Path) -> ModelRef:
    """Writes the model to a folder as any other model lies there."""
    network(name).save_pretrained(folder)
    tokenizer().save(str(folder / "tokenizer.json"))
    size = sum(path.stat().st_size for path in folder.iterdir())
    return ModelRef(name=name, path=f"models/{name}", location=str(folder), size_bytes=size, source="models")

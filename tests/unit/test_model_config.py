"""What a configuration may say, whoever reads it."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from llmws.errors import ModelInvalidError
from llmws.model_config import CLASS_KEYS, check_config

LLAMA: dict[str, Any] = {"model_type": "llama", "num_hidden_layers": 2}


def written(folder: Path, content: str) -> Path:
    (folder / "config.json").write_text(content)
    return folder


def refusal(folder: Path, **changes: object) -> str:
    with pytest.raises(ModelInvalidError) as caught:
        check_config(written(folder, json.dumps(LLAMA | changes)))
    return str(caught.value)


def test_the_model_type_is_told(tmp_path: Path) -> None:
    assert check_config(written(tmp_path, json.dumps(LLAMA))) == "llama"


@pytest.mark.parametrize("number", ["Infinity", "-Infinity", "NaN", '{"__float__": "Infinity"}'])
def test_numbers_that_json_has_not_are_read_as_transformers_writes_them(number: str, tmp_path: Path) -> None:
    """The step limits of a Mamba 2 are written so, by old versions and by new ones."""
    content = f'{{"model_type": "mamba2", "time_step_limit": [0.0, {number}]}}'
    assert check_config(written(tmp_path, content)) == "mamba2"


@pytest.mark.parametrize("value", ["inf", 1, {"a": 1}, ["Infinity"], None])
def test_nothing_else_is_taken_for_such_a_number(value: object, tmp_path: Path) -> None:
    assert refusal(tmp_path, x={"__float__": value}) == "config.json has the private key '__float__'"


def test_such_a_number_hides_no_other_key(tmp_path: Path) -> None:
    hidden = {"__float__": "NaN", "auto_map": {}}
    assert refusal(tmp_path, x=hidden) == "config.json has the private key '__float__'"


@pytest.mark.parametrize(
    "content", ['{"model_type": "llama", "model_type": "evil"}', '{"model_type": "a", "x": [{"y": 1, "y": 1}]}']
)
def test_two_readers_can_not_be_told_two_things(content: str, tmp_path: Path) -> None:
    with pytest.raises(ModelInvalidError, match=r"config\.json says something twice"):
        check_config(written(tmp_path, content))


@pytest.mark.parametrize(
    "key", ["num_hidden_layers", "n_layer", "num_labels", "_num_labels", "depth", "encoder_layers", "n_blocks"]
)
def test_what_configurations_list_piece_by_piece_has_an_end(key: str, tmp_path: Path) -> None:
    assert check_config(written(tmp_path, json.dumps(LLAMA | {key: 4096}))) == "llama"
    assert refusal(tmp_path, text_config={key: 4097}) == f"config.json asks for more than 4096 parts ({key})"
    assert refusal(tmp_path, **{key: 1e30}) == f"config.json asks for more than 4096 parts ({key})"


@pytest.mark.parametrize("key", ["fusion_config", "distributed_config"])
def test_how_other_models_are_built_is_not_the_folder_s_business(key: str, tmp_path: Path) -> None:
    assert refusal(tmp_path, **{key: {"x": True}}) == f"config.json changes how models are built ({key})"


def test_other_repositories_are_not_named(tmp_path: Path) -> None:
    message = "config.json names another repository (backbone)"
    assert refusal(tmp_path, vision_config={"model_type": "dpt", "backbone": "evil/repo"}) == message


def test_a_number_longer_than_python_reads_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(ModelInvalidError, match=r"config\.json is not valid JSON"):
        check_config(written(tmp_path, '{"model_type": "llama", "x": ' + "9" * 5000 + "}"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"head_dim": 2**24 + 1}, "config.json has a number beyond 16777216 (head_dim)"),
        ({"text_config": {"sizes": [[1, 10**9]]}}, "config.json has a number beyond 16777216 (sizes)"),
        ({"vision_config": {"depths": [1, 10**6]}}, "config.json asks for more than 4096 parts (depths)"),
        ({"H_cycles": 65}, "config.json asks for more than 64 passes (H_cycles)"),
        ({"x": -(10**30)}, "config.json has a number beyond 16777216 (x)"),
        ({"pattern": "M" * 4097}, "config.json has a list or a text of more than 4096 (pattern)"),
        ({"x": [["full_attention"] * 4097]}, "config.json has a list or a text of more than 4096 (x)"),
    ],
)
def test_what_networks_are_made_of_is_bounded_whatever_its_name(
    changes: dict[str, object], reason: str, tmp_path: Path
) -> None:
    assert refusal(tmp_path, **changes) == reason


@pytest.mark.parametrize("key", sorted(CLASS_KEYS))
def test_what_belongs_to_the_classes_is_not_in_the_file(key: str, tmp_path: Path) -> None:
    """By `attribute_map` every key that is not allowed had another name."""
    assert refusal(tmp_path, text_config={key: {"x": "y"}}) == f"config.json changes what its keys mean ({key})"


def test_the_list_of_what_belongs_to_the_classes_is_whole() -> None:
    """Of what transformers' class of configurations has, the file may set its fields and what has a setter."""
    base = importlib.import_module("transformers").PreTrainedConfig
    fields = {field.name for field in dataclasses.fields(base)}
    own = set()
    for name in set(dir(base)) - fields:
        member = inspect.getattr_static(base, name)
        is_called = callable(member) or isinstance(member, classmethod | staticmethod)
        is_settable = isinstance(member, property) and member.fset is not None
        if not (name.startswith("_") or is_called or is_settable):
            own.add(name)
    assert own - CLASS_KEYS == {"model_type"}


HONEST: dict[str, dict[str, Any]] = {
    "llama 3.1": {"eos_token_id": [128001, 128008], "rope_scaling": {"factor": 8.0, "rope_type": "llama3"}},
    "long rope as a whole number": {"rope_theta": 3_580_165_449, "rotary_emb_base": 10**8},
    "llama 4": {"text_config": {"max_position_embeddings": 10_485_760, "for_llm_compressor": False}},
    "qwen 2 vl": {
        "vision_config": {"depth": 32, "max_pixels": 12_845_056},
        "rope_scaling": {"mrope_section": [16, 24]},
    },
    "gemma 3": {"_sliding_window_pattern": 6, "sliding_window_pattern": 6, "layer_types": ["sliding_attention"] * 26},
    "paligemma": {"_vocab_size": 257_216, "text_config": {"num_image_tokens": 256}},
    "recurrent gemma": {"_block_types": ["recurrent", "recurrent", "attention"]},
    "aya vision": {"_attn_implementation": "sdpa", "text_config": {"model_type": "cohere2"}},
    "smolvlm": {"_flash_attn_2_enabled": True, "vision_config": {"max_image_size": {"longest_edge": 364}}},
    "idefics 3": {"text_config": {"perceiver_config": {"_name_or_path": "", "_attn_implementation_autoset": False}}},
    "opt": {"_name_or_path": "x/opt", "_remove_final_layer_norm": False, "prefix": "</s>"},
    "blip 2": {"_commit_hash": None, "qformer_config": {"model_type": "blip_2_qformer"}},
    "phi 3 long": {"rope_scaling": {"long_factor": [1] * 48, "short_factor": [1.0] * 48, "type": "longrope"}},
    "nemotron h": {"hybrid_override_pattern": "M-M-M*-" * 16},
    "smollm 2": {"transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}}, "is_llama_config": True},
    "mamba": {"time_step_limit": {"__float__": "Infinity"}, "n_layer": 24},
    "lfm 2": {"block_ff_dim": 12_288, "full_attn_idxs": [2, 5], "block_auto_adjust_ff_dim": True},
    "llava": {"ignore_index": -100, "tokenizer_model_max_length": 10**30, "vision_feature_layer": -2},
    "a classifier": {"id2label": {str(number): f"LABEL_{number}" for number in range(5000)}},
    "tuned": {"unsloth_fixed": True, "task_specific_params": {"text-generation": {"max_length": 50}}},
}


@pytest.mark.parametrize("name", HONEST)
def test_what_real_models_say_is_not_refused(name: str, tmp_path: Path) -> None:
    assert check_config(written(tmp_path, json.dumps(LLAMA | HONEST[name]))) == "llama"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ({"_load_in_4bit": True, "quant_method": "bitsandbytes"}, "bitsandbytes"),
        ({"producer": {"name": "modelopt"}, "quant_algo": "NVFP4"}, "NVFP4"),
        ({}, "by an unnamed method"),
    ],
)
def test_quantised_weights_are_called_so(said: dict[str, object], shown: str, tmp_path: Path) -> None:
    """Whatever private keys their configuration has."""
    reason = f"its weights are quantised ({shown}), which this version does not read"
    assert refusal(tmp_path, quantization_config=said) == reason

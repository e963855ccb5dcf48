"""What a model's `config.json` may say: the one rule that scans, estimates and loads go by.

Knows neither transformers nor torch. Invariant: a configuration that passes names no code, no file and no repository to
transformers, takes the place of nothing in its classes, and holds no list, text or number beyond a bound.

The keys of configurations are an open set: every family has its own, and new ones come each month. So the rule is not
over all keys, but over those that transformers acts on whatever the family is:

- keys that begin with `_`, the inside of its objects: only those of a list, with plain values;
- keys of its classes, of which one gives other keys new names: none;
- keys that name code, files or repositories: none, but for the names of attention that comes with it;
- counts that configurations make lists of: up to a bound;
- the values: JSON as Python reads it, every key once, each of a bounded size. A value is never called, so that is data.

What a network of these numbers is built of is bounded where it is built: see `llmws.engine.building`. Whether
transformers knows the model type is left to the engine too, which has it loaded anyway: the list of types cannot be
imported without torch, which is four seconds for somebody who only wants a list of folders.

Source: the keys by which a configuration ran code in spite of `trust_remote_code=False` (transformers CVE-2026-4372 and
CVE-2026-5241, vLLM CVE-2026-22807), and what transformers 5 reads of a configuration outside of its families' code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from llmws.errors import ModelInvalidError, printable
from llmws.tokenizer_files import MAX_CONFIG_BYTES

CONFIG: Final = "config.json"
_ADAPTER: Final = "adapter_config.json"

MAX_PARTS: Final = 4096
"""Layers or labels, of each of which configurations make a text; entries of a list; characters of a text."""

MAX_CYCLES: Final = 64
MAX_NUMBER: Final = 2**24
"""Of a whole number. Some classes make tensors of that many numbers even where weights are only counted. The largest in
use are pixels and positions, at or below this."""

_MODEL_TYPE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_BUILT_IN_IMPLEMENTATION: Final = re.compile(r"[a-z0-9_]{1,64}")
_COUNT: Final = re.compile(r"_?num_(.*_)?labels|(.*_)?(layers?|blocks?|depths?)")
_CYCLES: Final = re.compile(r"(.*_)?cycles")
"""Passes of one token over the same layers."""

_UNBOUNDED: Final = re.compile(r".*(theta|base).*|tokenizer_.*")
"""Numbers that nothing is made of: bases of rotations, and what a tokenizer said of itself."""

_CODE: Final = frozenset({"auto_map", "custom_generate", "custom_pipelines", "trust_remote_code"})
_WITHOUT_MAP: Final = (
    "; if transformers knows the model type itself, remove the key auto_map from config.json: its files are then read "
    "as any other's"
)
CLASS_KEYS: Final = frozenset(
    {
        "attribute_map",
        "base_config_key",
        "base_model_ep_plan",
        "base_model_fsdp_plan",
        "base_model_pp_plan",
        "base_model_tp_plan",
        "default_rope_type",
        "default_theta",
        "extra_config_files",
        "extra_files",
        "ignore_keys_at_rope_validation",
        "is_heterogeneous",
        "keys_to_ignore_at_inference",
        "nested_rope_parameter_keys",
        "per_layer_attributes",
        "sub_configs",
        "sub_configs_defaults",
        "use_return_dict",
    }
)
"""Belong to the classes of configurations. A file that sets them changes what its other keys mean: by `attribute_map`
any key stands for any other."""

_FILES: Final = frozenset({"configuration_files", "transformers_weights"})
_MACHINERY: Final = frozenset({"distributed_config", "fusion_config"})
"""Change how transformers builds any model, in this process and for all others too."""

_IMPLEMENTATIONS: Final = frozenset({"_attn_implementation", "attn_implementation", "experts_implementation"})
_NUMBER: Final = "__float__"
"""How transformers writes a number that JSON has not."""

_NUMBERS: Final = ("Infinity", "-Infinity", "NaN")
# Written by transformers itself into ordinary configurations, and read by nothing that loads code.
_HARMLESS: Final = frozenset(
    {
        "_attn_implementation_autoset",
        "_block_types",
        "_commit_hash",
        "_flash_attn_2_enabled",
        "_from_model_config",
        "_name_or_path",
        "_num_labels",
        "_pad_token_id",
        "_remove_final_layer_norm",
        "_sliding_window_pattern",
        "_vocab_size",
    }
)


def check_config(folder: Path) -> str:
    """Checks the `config.json` of a folder.

    Returns:
        The model type that it names.

    Raises:
        ModelInvalidError: it is none, it breaks the rule, or it is not of a whole model in full precision. The reason
            is fit for a log line.
        OSError: it cannot be read.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise ModelInvalidError(f"it has no {CONFIG}")
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ModelInvalidError(f"{CONFIG} is larger than {MAX_CONFIG_BYTES} bytes")
    try:
        # Not msgspec: this has to read what transformers will read, and old configurations say Infinity.
        config = json.loads(path.read_bytes().decode(), object_pairs_hook=_said_once)
        _check("", config)
    except (ValueError, RecursionError):
        raise ModelInvalidError(f"{CONFIG} is not valid JSON") from None
    if not isinstance(config, dict):
        raise ModelInvalidError(f"{CONFIG} is not an object")
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not _MODEL_TYPE.fullmatch(model_type):
        raise ModelInvalidError(f"{CONFIG} names no model_type")
    if (folder / _ADAPTER).exists():
        raise ModelInvalidError(f"it is an adapter for another model ({_ADAPTER}); merge the two first")
    return model_type


def _said_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    part = dict(pairs)
    if len(part) < len(pairs):
        raise ModelInvalidError(f"{CONFIG} says something twice")
    return part


def _check(key: str, value: object) -> None:
    """Checks what stands at a key, and then what is in it: nested parts become configurations themselves."""
    shown = printable(key[:64])
    if isinstance(value, dict):
        if list(value) == [_NUMBER] and value[_NUMBER] in _NUMBERS:
            return
        for name, each in value.items():
            _check_name(name, each)
        for name, each in value.items():
            _check(name, each)
    elif isinstance(value, list | str) and len(value) > MAX_PARTS:
        raise ModelInvalidError(f"{CONFIG} has a list or a text of more than {MAX_PARTS} ({shown})")
    elif isinstance(value, list):
        for each in value:
            _check(key, each)
    elif isinstance(value, int | float) and value > MAX_PARTS and _COUNT.fullmatch(key):
        raise ModelInvalidError(f"{CONFIG} asks for more than {MAX_PARTS} parts ({shown})")
    elif isinstance(value, int | float) and value > MAX_CYCLES and _CYCLES.fullmatch(key):
        raise ModelInvalidError(f"{CONFIG} asks for more than {MAX_CYCLES} passes ({shown})")
    elif isinstance(value, int) and abs(value) > MAX_NUMBER and not _UNBOUNDED.fullmatch(key):
        raise ModelInvalidError(f"{CONFIG} has a number beyond {MAX_NUMBER} ({shown})")


def _check_name(key: str, value: object) -> None:
    if key == "quantization_config" and value is not None:
        said = value if isinstance(value, dict) else {}
        method = said.get("quant_method") or said.get("quant_algo")
        shown = printable(method[:64]) if isinstance(method, str) else "by an unnamed method"
        raise ModelInvalidError(f"its weights are quantised ({shown}), which this version does not read")
    if key in _CODE:
        raise ModelInvalidError(f"{CONFIG} asks for custom code ({key}){_WITHOUT_MAP if key == 'auto_map' else ''}")
    if key in CLASS_KEYS:
        raise ModelInvalidError(f"{CONFIG} changes what its keys mean ({key})")
    if key in _FILES:
        raise ModelInvalidError(f"{CONFIG} names other files to read ({key})")
    if key in _MACHINERY and value:
        raise ModelInvalidError(f"{CONFIG} changes how models are built ({key})")
    if key == "backbone" and value is not None:
        raise ModelInvalidError(f"{CONFIG} names another repository ({key})")
    if key in _IMPLEMENTATIONS:
        if value is not None and not (isinstance(value, str) and _BUILT_IN_IMPLEMENTATION.fullmatch(value)):
            raise ModelInvalidError(f"{CONFIG} asks for custom code ({key})")
    elif key.startswith("_") and not (key in _HARMLESS and _is_plain(value)):
        raise ModelInvalidError(f"{CONFIG} has the private key '{printable(key[:64])}'")


def _is_plain(value: object) -> bool:
    if isinstance(value, list):
        return all(isinstance(each, str) for each in value)
    return not isinstance(value, dict)

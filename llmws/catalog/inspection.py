"""Whether a folder holds a model that can be served without running anybody's code.

Reads files and decides; changes nothing. Invariant: of a folder that passes, only JSON and safetensors files that
really lie inside it need to be opened.

Whether transformers knows the model type is left to the engine, which has transformers loaded anyway: the list of types
cannot be imported without torch, which is four seconds for somebody who only wants a list of folders.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from llmws.catalog.names import printable
from llmws.errors import ModelInvalidError

MAX_CONFIG_BYTES: Final = 4 * 2**20
MAX_INDEX_BYTES: Final = 64 * 2**20
MAX_HEADER_BYTES: Final = 100 * 10**6
"""Largest header of a safetensors file. Source: MAX_HEADER_SIZE of the safetensors library."""

_MODEL_TYPE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHARD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}\.safetensors")
_BUILT_IN_IMPLEMENTATION: Final = re.compile(r"[a-z0-9_]{1,64}")
_PICKLES: Final = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".h5")
_CUSTOM_CODE: Final = frozenset({"auto_map", "custom_pipelines", "custom_generate", "trust_remote_code"})
_OTHER_FILES: Final = frozenset({"configuration_files", "transformers_weights"})
"""Keys that make transformers read other files than those that are checked here."""

GGUF: Final = ".gguf"
GGUF_REASON: Final = "GGUF is not read; put the safetensors folder there"

_IMPLEMENTATIONS: Final = frozenset({"attn_implementation", "experts_implementation"})
# Written by transformers itself into ordinary configurations, and read by nothing that loads code.
_HARMLESS: Final = frozenset(
    {
        "_attn_implementation_autoset",
        "_commit_hash",
        "_flash_attn_2_enabled",
        "_from_model_config",
        "_name_or_path",
        "_num_labels",
        "_pad_token_id",
        "_remove_final_layer_norm",
        "_sliding_window_pattern",
    }
)


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def examine(folder: Path) -> int:
    """Checks a model's folder.

    Args:
        folder: an existing folder that is not a link itself.

    Returns:
        The size of all its files in bytes.

    Raises:
        ModelInvalidError: the first reason why the model is not offered, fit for a log line.
        OSError: something in it cannot be read.
    """
    size_bytes = sum(_sizes(folder))
    suffixes = {path.suffix.lower() for path in folder.iterdir()}
    if GGUF in suffixes and ".safetensors" not in suffixes:
        raise ModelInvalidError(GGUF_REASON)
    check_config(folder / "config.json")
    if (folder / "adapter_config.json").exists():
        raise ModelInvalidError("it is an adapter for another model (adapter_config.json); merge the two first")
    shards = [path for path in sorted(folder.iterdir()) if path.suffix == ".safetensors" and path.is_file()]
    if not shards:
        pickles = any(path.suffix in _PICKLES for path in folder.iterdir())
        raise ModelInvalidError(
            "its weights are pickles, which can run code; convert them to safetensors"
            if pickles
            else "it has no *.safetensors file"
        )
    if not any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        raise ModelInvalidError("it has neither model.safetensors nor model.safetensors.index.json")
    for shard in shards:
        _check_header(shard)
    for index in sorted(folder.rglob("*.safetensors.index.json")):
        _check_index(index)
    return size_bytes


def _sizes(folder: Path) -> Iterator[int]:
    """Sizes of the regular files; refuses links that lead out of the folder."""
    root = os.path.realpath(folder)
    for parent, folders, files in os.walk(folder):  # does not follow links
        for name in (*folders, *files):
            path = Path(parent, name)
            status = path.lstat()
            if stat.S_ISLNK(status.st_mode):
                target = os.path.realpath(path)
                if not target.startswith(root + os.sep):
                    raise ModelInvalidError(f"{printable(name)} is a link out of the folder")
            elif stat.S_ISREG(status.st_mode):
                yield status.st_size
            elif not stat.S_ISDIR(status.st_mode):
                raise ModelInvalidError(f"{printable(name)} is neither a file nor a folder")


def _read(path: Path, limit_bytes: int) -> bytes:
    if not path.is_file():
        raise ModelInvalidError(f"it has no {path.name}")
    if path.stat().st_size > limit_bytes:
        raise ModelInvalidError(f"{path.name} is larger than {limit_bytes} bytes")
    return path.read_bytes()


def check_config(path: Path) -> None:
    """Checks a `config.json`.

    Raises:
        ModelInvalidError: it is none, it makes transformers fetch or run something, or its weights are quantised.
        OSError: it cannot be read.
    """
    content = _read(path, MAX_CONFIG_BYTES)
    try:
        config = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ModelInvalidError("config.json is not valid JSON") from None
    if not isinstance(config, dict):
        raise ModelInvalidError("config.json is not an object")
    _check_keys(config)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not _MODEL_TYPE.fullmatch(model_type):
        raise ModelInvalidError("config.json names no model_type")


def _check_keys(config: object) -> None:
    """Refuses what makes transformers fetch or run code, and quantised weights, which take packages of their own.

    At any depth: nested parts become configurations themselves.

    Source: the keys by which a configuration ran code in spite of `trust_remote_code=False` (CVE-2026-4372 and -5241).
    """
    stack = [config]
    while stack:
        value = stack.pop()
        if isinstance(value, list):
            stack.extend(value)
        elif isinstance(value, dict):
            for key, item in value.items():
                _check_key(key, item)
            stack.extend(value.values())


def _check_key(key: str, value: object) -> None:
    if key in _CUSTOM_CODE:
        raise ModelInvalidError(f"config.json asks for custom code ({key})")
    if key in _OTHER_FILES:
        raise ModelInvalidError(f"config.json names other files to read ({key})")
    if key == "quantization_config" and value is not None:
        method = value.get("quant_method") if isinstance(value, dict) else None
        shown = printable(method[:64]) if isinstance(method, str) else "by an unnamed method"
        raise ModelInvalidError(f"its weights are quantised ({shown}), which this version does not read")
    if key in _IMPLEMENTATIONS:
        if value is not None and not (isinstance(value, str) and _BUILT_IN_IMPLEMENTATION.fullmatch(value)):
            raise ModelInvalidError(f"config.json asks for custom code ({key})")
    elif key.startswith("_") and (key not in _HARMLESS or isinstance(value, (dict, list))):
        raise ModelInvalidError(f"config.json has the private key '{printable(key[:64])}'")


def _check_header(path: Path) -> None:
    """A safetensors file begins with its header's length, 8 bytes little-endian; a git-lfs pointer does not."""
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(MAX_HEADER_BYTES, size_bytes - 8):
        raise ModelInvalidError(f"{printable(path.name)} is not a safetensors file (cut short, or a git-lfs pointer)")


def _check_index(path: Path) -> None:
    try:
        index = msgspec.json.decode(_read(path, MAX_INDEX_BYTES), type=_Index)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ModelInvalidError(f"{printable(path.name)} is not an index") from None
    for name in sorted(set(index.weight_map.values())):
        if not _SHARD.fullmatch(name):
            raise ModelInvalidError(f"{printable(path.name)} names '{printable(name[:64])}', not a plain file name")
        if not (path.parent / name).is_file():
            raise ModelInvalidError(f"{name} is missing")

"""Whether a folder holds a model that can be served without running anybody's code.

Reads files and decides; changes nothing. Invariant: of a folder that passes, only JSON, templates, vocabularies and
safetensors files that really lie inside it need to be opened, each no larger than what may be in memory.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from llmws.errors import ModelInvalidError, printable
from llmws.model_config import CONFIG, check_config
from llmws.tokenizer_files import (
    MAX_CONFIG_BYTES,
    MAX_TOKENIZER_BYTES,
    PROCESSORS,
    SPECIAL_TOKENS,
    TOKENIZER,
    TOKENIZER_CONFIG,
)
from llmws.weight_files import file_tensors, index_files, weight_files

GGUF: Final = ".gguf"
GGUF_REASON: Final = "GGUF is not read; put the safetensors folder there"

_MAX_VOCABULARY_BYTES: Final = 64 * 2**20
_LIMITS_BYTES: Final = {
    TOKENIZER: MAX_TOKENIZER_BYTES,
    **dict.fromkeys(("vocab.json", "vocab.txt", "merges.txt", "tokenizer.model"), _MAX_VOCABULARY_BYTES),
    **dict.fromkeys((CONFIG, "generation_config.json", *PROCESSORS, "added_tokens.json"), MAX_CONFIG_BYTES),
    **dict.fromkeys(
        (TOKENIZER_CONFIG, SPECIAL_TOKENS, "chat_template.json", "video_preprocessor_config.json"), MAX_CONFIG_BYTES
    ),
}
"""Files that are read whole, by us for digests and by transformers, in the server's own process."""

_TEMPLATE: Final = ".jinja"


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
    check_config(folder)
    weight_files(folder)
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors" and path.is_file():
            file_tensors(path)
    for index in sorted(folder.rglob("*.safetensors.index.json")):
        index_files(index)
    return size_bytes


def _sizes(folder: Path) -> Iterator[int]:
    """Sizes of the regular files; refuses links that lead out of the folder, and more than memory could take."""
    root = os.path.realpath(folder)
    for parent, folders, files in os.walk(folder):  # does not follow links
        for name in (*folders, *files):
            path = Path(parent, name)
            status = path.lstat()
            if stat.S_ISLNK(status.st_mode):
                target = os.path.realpath(path)
                if not target.startswith(root + os.sep):
                    raise ModelInvalidError(f"{printable(name)} is a link out of the folder")
            elif not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
                raise ModelInvalidError(f"{printable(name)} is neither a file nor a folder")
            elif stat.S_ISREG(status.st_mode):
                yield status.st_size
            limit_bytes = MAX_CONFIG_BYTES if path.suffix == _TEMPLATE else _LIMITS_BYTES.get(name)
            if limit_bytes is not None and path.is_file() and path.stat().st_size > limit_bytes:
                raise ModelInvalidError(f"{printable(name)} is larger than {limit_bytes} bytes")

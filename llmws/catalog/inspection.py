"""Whether a folder holds a model that can be served without running anybody's code.

Reads files and decides; changes nothing. Invariant: of a folder that passes, only JSON, templates, vocabularies and
safetensors files that really lie inside it need to be opened, each no larger than what may be in memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from llmws.errors import ModelInvalidError
from llmws.model_config import check_config
from llmws.model_files import check_files, size_bytes
from llmws.weight_files import INDEX, WEIGHTS, file_tensors, files_of, index_files

GGUF: Final = ".gguf"
GGUF_REASON: Final = "GGUF is not read; put the safetensors folder there"


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
    check_files(folder)
    suffixes = {path.suffix.lower() for path in folder.iterdir()}
    if GGUF in suffixes and ".safetensors" not in suffixes:
        raise ModelInvalidError(GGUF_REASON)
    check_config(folder)
    files_of(folder)
    is_index_read = not (folder / WEIGHTS).is_file()
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors" and path.is_file():
            file_tensors(path)
    for index in sorted(folder.rglob("*.safetensors.index.json")):
        if not (is_index_read and index == folder / INDEX):
            index_files(index)
    return size_bytes(folder)

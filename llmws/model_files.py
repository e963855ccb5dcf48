"""Which files a model's folder holds: all of them inside it, none larger than may be in memory.

Reads no file's content. Invariant: of a folder that passes, every name is a file or a folder, or a link to one, that
really lies inside it, and what is read whole is bounded.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from llmws.errors import ModelInvalidError, printable
from llmws.model_config import CONFIG
from llmws.tokenizer_files import (
    MAX_CONFIG_BYTES,
    MAX_TOKENIZER_BYTES,
    PROCESSORS,
    SPECIAL_TOKENS,
    TOKENIZER,
    TOKENIZER_CONFIG,
)

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


def check_files(folder: Path) -> None:
    """Refuses a folder with links that lead out of it, with pipes and the like, or with more than memory could take.

    Args:
        folder: an existing folder that is not a link itself.

    Raises:
        ModelInvalidError: the first reason, fit for a log line.
        OSError: something in it cannot be read.
    """
    root = os.path.realpath(folder)
    for path, status in _entries(folder):
        name = printable(path.name)
        if stat.S_ISLNK(status.st_mode):
            if not os.path.realpath(path).startswith(root + os.sep):
                raise ModelInvalidError(f"{name} is a link out of the folder")
        elif not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise ModelInvalidError(f"{name} is neither a file nor a folder")
        limit_bytes = MAX_CONFIG_BYTES if path.suffix == _TEMPLATE else _LIMITS_BYTES.get(path.name)
        if limit_bytes is not None and path.is_file() and path.stat().st_size > limit_bytes:
            raise ModelInvalidError(f"{name} is larger than {limit_bytes} bytes")


def size_bytes(folder: Path) -> int:
    """The size of all regular files of a folder; links do not count."""
    return sum(status.st_size for _, status in _entries(folder) if stat.S_ISREG(status.st_mode))


def _entries(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for parent, folders, files in os.walk(folder):  # does not follow links
        for name in (*folders, *files):
            path = Path(parent, name)
            yield path, path.lstat()

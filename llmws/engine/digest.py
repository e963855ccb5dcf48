"""What names a model: digests over its folder.

Knows no engine and reads no weights. Invariant: the same files give the same digests, wherever the folder lies.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from llmws.errors import ModelInvalidError
from llmws.tokenizer_files import PROCESSORS
from llmws.weight_files import files_of, header

_SAMPLE_BLOCKS = 16
_SAMPLE_BLOCK_BYTES = 4096

_TOKENIZER_FILES = (
    "added_tokens.json",
    "additional_chat_templates/*.jinja",
    "chat_template*.jinja",
    "chat_template.json",
    "merges.txt",
    *PROCESSORS,
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)


def model_digest(folder: Path) -> str:
    """Hex SHA-256 over config.json and each safetensors file's name, size, header and a sample of its data, by name.

    A header lists every tensor's name, type, shape and place, and the sample is 16 blocks of 4 KiB spread over the
    data: another architecture, quantisation or training gives another digest, in milliseconds for any size. It tells
    whether a stream may be continued. It does not tell that every weight is intact, nor that nobody changed one on
    purpose: most bytes are not read.

    Raises:
        ModelInvalidError: a file is missing or is not safetensors.
    """
    digest = hashlib.sha256()
    try:
        _add(digest, b"config.json", (folder / "config.json").read_bytes())
        for path in files_of(folder):
            size = path.stat().st_size
            start = 8 + len(head := header(path))
            _add(digest, path.name.encode(), size.to_bytes(8, "little"), head, *_sample(path, start, size))
    except FileNotFoundError as error:
        raise ModelInvalidError(f"{folder.name}: there is no {Path(error.filename).name}") from None
    return digest.hexdigest()


def tokenizer_digest(folder: Path) -> str:
    """Hex SHA-256 over the names and contents of what makes the prompt: tokenizer, chat templates, processor."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in _TOKENIZER_FILES for path in folder.glob(pattern) if path.is_file()}):
        _add(digest, path.relative_to(folder).as_posix().encode(), path.read_bytes())
    return digest.hexdigest()


def _sample(path: Path, start: int, size: int) -> list[bytes]:
    blocks = []
    with path.open("rb") as file:
        for i in range(_SAMPLE_BLOCKS):
            file.seek(start + (size - start) * i // _SAMPLE_BLOCKS)
            blocks.append(file.read(_SAMPLE_BLOCK_BYTES))
    return blocks


def _add(digest: hashlib._Hash, *parts: bytes) -> None:
    """Each part with its length before it, so that no two lists of parts look alike."""
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)

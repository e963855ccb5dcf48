"""Which tokenizers are taken, before one of their decoders runs in the server's process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmws.errors import ModelInvalidError
from llmws.tokenizer_files import MAX_DECODERS, read_tokenizer
from tests.support.model_folders import byte_level, write_model

BYTES: dict[str, object] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}


def replacing(pattern: dict[str, str], content: str) -> dict[str, object]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def row(*decoders: object) -> dict[str, object]:
    return {"type": "Sequence", "decoders": decoders}


def folder_with(folder: Path, decoder: object) -> Path:
    write_model(folder, byte_level())
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"decoder": decoder}))
    return folder


@pytest.mark.parametrize(
    "decoder",
    [
        None,
        BYTES,
        row(replacing({"String": "▁"}, " "), {"type": "ByteFallback"}, {"type": "Fuse"}),
        {"type": "WordPiece", "prefix": "##", "cleanup": True},
        {"type": "BPEDecoder", "suffix": "</w>"},
        {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": True},
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ],
)
def test_decoders_of_families_in_use_are_taken(decoder: object, tmp_path: Path) -> None:
    assert (read_tokenizer(folder_with(tmp_path, decoder)).tokenizer.decoder is None) == (decoder is None)


@pytest.mark.parametrize(
    "decoder",
    [
        row(BYTES, *[replacing({"String": "a"}, "aa")] * 3),
        replacing({"String": ""}, "x"),
        replacing({"Regex": "(a+)+$"}, ""),
        row(row(replacing({"String": "a"}, "aa"))),
        {"type": "BPEDecoder", "suffix": ""},
        {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "", "cleanup": True},
    ],
)
def test_a_decoder_that_makes_text_longer_or_takes_for_ever_is_refused(decoder: object, tmp_path: Path) -> None:
    with pytest.raises(ModelInvalidError, match=r"tokenizer\.json cannot be used: its decoder makes text longer"):
        read_tokenizer(folder_with(tmp_path, decoder))


def test_decoders_have_an_end(tmp_path: Path) -> None:
    read_tokenizer(folder_with(tmp_path / "some", row(*[{"type": "Fuse"}] * (MAX_DECODERS - 1))))
    with pytest.raises(ModelInvalidError, match=f"it has more than {MAX_DECODERS} decoders"):
        read_tokenizer(folder_with(tmp_path / "more", row(*[{"type": "Fuse"}] * MAX_DECODERS)))

"""A model's tokenizer as its folder describes it: `tokenizer.json`, and the tokens that other files add to it.

Prompts are encoded and answers decoded by it, so both sides read it here. Reads the same files in the same order of
precedence as transformers' AutoTokenizer does, without importing it. Knows neither templates nor models. Invariant: a
folder that cannot be used raises `ModelInvalidError` that names the file, whatever is in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from tokenizers import AddedToken, Tokenizer

from llmws.errors import ModelInvalidError, one_line

TOKENIZER: Final = "tokenizer.json"
TOKENIZER_CONFIG: Final = "tokenizer_config.json"
SPECIAL_TOKENS: Final = "special_tokens_map.json"
PROCESSORS: Final = ("preprocessor_config.json", "processor_config.json")
"""Where models say how images are prepared; one of these makes a model for images."""

MAX_TOKENIZER_BYTES: Final = 128 * 2**20
"""Largest tokenizer read; the largest in use are near 40 MB, and in memory they take up to twelve times as much."""

MAX_CONFIG_BYTES: Final = 4 * 2**20
"""Largest configuration read; the largest in use are near 200 kB."""

MAX_DECODERS: Final = 16
"""Steps from tokens to text; four are usual."""

_STEADY_DECODERS: Final = ("ByteFallback", "ByteLevel", "Fuse", "Metaspace", "Sequence", "Strip", "WordPiece")
"""Whatever is in them, they make each token longer by a character at most, in one pass over it."""

_FLAGS = ("lstrip", "rstrip", "single_word", "normalized")


class TokenizerFiles(msgspec.Struct, frozen=True):
    """What the files say.

    Attributes:
        tokenizer: without truncation or padding, with all added tokens.
        config: `tokenizer_config.json`, and `special_tokens_map.json` where transformers reads it.
        named: text of `bos_token` and the like, a model's own `…_token` names included.
    """

    tokenizer: Tokenizer
    config: dict[str, Any]
    named: dict[str, str]


def read_tokenizer(folder: Path) -> TokenizerFiles:
    """Reads a model's tokenizer.

    Raises:
        ModelInvalidError: naming the file and what is wrong.
    """
    config = read_object(folder / TOKENIZER_CONFIG)
    if "added_tokens_decoder" not in config:
        config |= read_object(folder / SPECIAL_TOKENS)
    tokenizer = _from_json(folder / TOKENIZER)
    try:
        named = _named_tokens(config)
        _add_tokens(tokenizer, config, named)
    except (TypeError, ValueError) as error:
        raise broken(folder / TOKENIZER_CONFIG, f"its tokens cannot be added ({error})") from None
    return TokenizerFiles(tokenizer, config, {name: token.content for name, token in named.items()})


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is no file.

    Raises:
        ModelInvalidError: naming the file and what is wrong.
    """
    if not path.exists():
        return {}
    try:
        # Not msgspec: transformers reads these files by this, and some of them say Infinity.
        value = json.loads(read(path, MAX_CONFIG_BYTES).decode())
    except (ValueError, RecursionError):
        raise broken(path, "not valid JSON") from None
    if not isinstance(value, dict):
        raise broken(path, "not a JSON object")
    return value


def read(path: Path, limit_bytes: int) -> bytes:
    """The content of a file.

    Raises:
        ModelInvalidError: naming the file and what is wrong.
    """
    try:
        if path.stat().st_size > limit_bytes:
            raise broken(path, f"larger than {limit_bytes} bytes")
        return path.read_bytes()
    except OSError as error:
        raise broken(path, error.strerror or "cannot be read") from None


def broken(path: Path, reason: str) -> ModelInvalidError:
    """The error for a file that cannot be used. Whatever the reason quotes, it is one short line."""
    return ModelInvalidError(f"the model's {path.name} cannot be used: {one_line(reason)}")


def _from_json(path: Path) -> Tokenizer:
    content = read(path, MAX_TOKENIZER_BYTES)
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except BaseException as error:  # noqa: BLE001 - the library raises plain Exception, and panics with less than that
        raise broken(path, str(error)) from None
    _check_decoders(path, tokenizer)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _check_decoders(path: Path, tokenizer: Tokenizer) -> None:
    """Refuses what would take memory or time without end for every token: answers are decoded in the server's process.

    Forty replacements of `a` by `aa` in a row, a few hundred bytes of a file, make a terabyte of one letter.
    """
    waiting = [] if tokenizer.decoder is None else [json.loads(tokenizer.decoder.__getstate__())]
    count = 0
    while waiting:
        decoder = waiting.pop()
        waiting += decoder.get("decoders", ())
        count += 1
        if count > MAX_DECODERS:
            raise broken(path, f"it has more than {MAX_DECODERS} decoders")
        if not _is_steady(decoder):
            raise broken(path, f"its decoder makes text longer, or may take for ever ({decoder['type']})")


def _is_steady(decoder: Mapping[str, Any]) -> bool:
    match decoder:
        case {"type": "Replace", "pattern": {"String": str(pattern)}, "content": str(content)}:
            return 0 < len(pattern) >= len(content)
        case {"type": "BPEDecoder", "suffix": str(mark)} | {"type": "CTC", "word_delimiter_token": str(mark)}:
            return bool(mark)  # a space is put in its place
        case {"type": str(kind)}:
            return kind in _STEADY_DECODERS
    return False


def _named_tokens(config: Mapping[str, Any]) -> dict[str, AddedToken]:
    """`bos_token` and the like, a model's own `…_token` names included."""
    extra = config.get("extra_special_tokens")
    entries = {**config, **extra} if isinstance(extra, dict) else config
    own = extra.keys() if isinstance(extra, dict) else ()
    return {
        name: token
        for name, value in entries.items()
        if (name.endswith("_token") or name in own) and (token := _added_token(value)) is not None
    }


def _added_token(value: object) -> AddedToken | None:
    """A token as configurations write it, a string or an object; None for anything else, like `add_bos_token`."""
    if isinstance(value, str):
        return AddedToken(value, special=True)
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        return None
    flags = {key: value[key] for key in _FLAGS if key in value}
    return AddedToken(value["content"], special=bool(value.get("special", True)), **flags)


def _add_tokens(tokenizer: Tokenizer, config: Mapping[str, Any], named: Mapping[str, AddedToken]) -> None:
    """Adds what the configuration names and the tokenizer does not know as a token yet, in transformers' order."""
    known = {token.content: repr(token) for token in tokenizer.get_added_tokens_decoder().values()}
    listed = config.get("added_tokens_decoder")
    decoder = sorted(listed.items(), key=lambda item: int(item[0])) if isinstance(listed, dict) else []
    tokens = [t for _, value in decoder if (t := _added_token(value)) and repr(t) not in known.values()]
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens")
    others = [_added_token(value) for value in extra] if isinstance(extra, list) else []
    for token in [*named.values(), *others]:
        if token is not None and token.content not in known and token.content not in {t.content for t in tokens}:
            tokens.append(token)
    if tokens:
        tokenizer.add_tokens(tokens)

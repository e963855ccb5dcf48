"""The text side of a model's folder: its tokenizer, its chat template, the size of its vocabulary.

Reads the same files in the same order of precedence as transformers' AutoTokenizer does, without importing it;
`tokenizer.json` is the truth about tokenising. Knows nothing of jobs. Invariant: a `ModelText` that exists tokenises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import msgspec
from tokenizers import AddedToken, Tokenizer

from llmws.errors import PromptError
from llmws.prompt.template import ChatTemplate, local_now, plain
from llmws.protocol import ErrorCode

MAX_FILE_BYTES: Final = 512 * 2**20
"""Largest file read; the largest tokenizers in use are near 40 MB."""

_TOKENIZER = "tokenizer.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"
_SPECIAL_TOKENS = "special_tokens_map.json"
_CONFIG = "config.json"
_TEMPLATE = "chat_template.jinja"
_MORE_TEMPLATES = "additional_chat_templates"
_STANDARD_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

Fingerprint = tuple[tuple[str, int, int], ...]


class ModelText(msgspec.Struct, frozen=True):
    """What turns a context into token ids.

    Attributes:
        tokenizer: without truncation or padding.
        template: None when the model has none.
        vocab_size: ids from 0 up to this are the model's.
    """

    tokenizer: Tokenizer
    template: ChatTemplate | None
    vocab_size: int

    def tokenize(self, text: str, *, special_tokens: bool) -> list[int]:
        """Token ids of the text; `special_tokens` adds those that the tokenizer puts around a text, like BOS.

        Strings like `<|im_end|>` become the special token wherever they stand, in a user's text too: so does
        `apply_chat_template`, and a prompt must mean the same here as where the model was tested.
        """
        # `encode` holds the GIL (0.6 s a MiB, in which no token is sent to anyone); the batch call releases it.
        return self.tokenizer.encode_batch_fast([text], add_special_tokens=special_tokens)[0].ids


def fingerprint(folder: Path) -> Fingerprint:
    """Name, time in nanoseconds and size of the files that `load` reads; differs when one was replaced."""
    more = folder / _MORE_TEMPLATES
    paths = [folder / name for name in (_TOKENIZER, _TOKENIZER_CONFIG, _SPECIAL_TOKENS, _CONFIG, _TEMPLATE)]
    found = []
    for path in [*paths, *(sorted(more.glob("*.jinja")) if more.is_dir() else ())]:
        try:
            status = path.stat()
        except OSError:
            continue
        found.append((path.name, status.st_mtime_ns, status.st_size))
    return tuple(found)


def load(folder: Path, *, clock: Callable[[], datetime] = local_now) -> ModelText:
    """Reads a model's tokenizer and template.

    Args:
        folder: the model's.
        clock: what the template's `strftime_now` formats.

    Raises:
        PromptError: `model_failed`, naming the file and what is wrong.
    """
    config = _read_object(folder / _TOKENIZER_CONFIG)
    if "added_tokens_decoder" not in config:
        config |= _read_object(folder / _SPECIAL_TOKENS)
    named = _named_tokens(config)
    tokenizer = _read_tokenizer(folder / _TOKENIZER)
    _add_tokens(tokenizer, config, named)
    tokenizer.encode_special_tokens = config.get("split_special_tokens") is True
    source = _template_source(folder, config)
    template = None if source is None else ChatTemplate(source, _texts(named), clock=clock)
    return ModelText(tokenizer, template, _vocab_size(folder, tokenizer))


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object in the file; empty where there is no file."""
    if not path.exists():
        return {}
    try:
        value = msgspec.json.decode(_read(path))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _broken(path, "not valid JSON") from None
    if not isinstance(value, dict):
        raise _broken(path, "not a JSON object")
    return value


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise _broken(path, f"larger than {MAX_FILE_BYTES} bytes")
        return path.read_bytes()
    except OSError as error:
        raise _broken(path, error.strerror or "cannot be read") from None


def _read_text(path: Path) -> str:
    try:
        return _read(path).decode()
    except UnicodeDecodeError:
        raise _broken(path, "not UTF-8") from None


def _broken(path: Path, reason: str) -> PromptError:
    return PromptError(ErrorCode.MODEL_FAILED, f"the model's {path.name} cannot be used: {reason}")


def _read_tokenizer(path: Path) -> Tokenizer:
    content = _read(path)
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # noqa: BLE001 - the library raises plain Exception
        raise _broken(path, plain(str(error))) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


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
    flags = {key: value[key] for key in ("lstrip", "rstrip", "single_word", "normalized") if key in value}
    return AddedToken(value["content"], special=bool(value.get("special", True)), **flags)


def _texts(named: Mapping[str, AddedToken]) -> dict[str, str]:
    return {name: token.content for name, token in named.items()}


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


def _template_source(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The default template: `chat_template.jinja` and its neighbours before the entry in `tokenizer_config.json`."""
    more = folder / _MORE_TEMPLATES
    files = {path.stem: path for path in more.glob("*.jinja")} if more.is_dir() else {}
    if (folder / _TEMPLATE).exists():
        files.setdefault("default", folder / _TEMPLATE)
    if files:
        if "default" not in files:
            raise _broken(more, "it has no template named default")
        return _read_text(files["default"])
    entry = config.get("chat_template")
    if isinstance(entry, list):
        named = {e["name"]: e["template"] for e in entry if isinstance(e, dict) and {"name", "template"} <= e.keys()}
        entry = named.get("default")
        if entry is None:
            raise _broken(folder / _TOKENIZER_CONFIG, "it has no chat template named default")
    if entry is not None and not isinstance(entry, str):
        raise _broken(folder / _TOKENIZER_CONFIG, "its chat template is not text")
    return entry


def _vocab_size(folder: Path, tokenizer: Tokenizer) -> int:
    """Rows of the model's embedding, which may be more than the tokenizer has names for."""
    config = _read_object(folder / _CONFIG)
    text = config.get("text_config")
    for holder in (config, text if isinstance(text, dict) else {}):
        size = holder.get("vocab_size")
        if isinstance(size, int) and size > 0:
            return size
    return int(tokenizer.get_vocab_size(with_added_tokens=True))

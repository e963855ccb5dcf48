"""The text side of a model's folder: its tokenizer, its chat template, the size of its vocabulary.

Reads templates in the order of precedence of transformers' AutoTokenizer, without importing it. Knows nothing of jobs.
Invariant: a `ModelText` that exists tokenises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import msgspec
from tokenizers import Tokenizer

from llmws.prompt.template import ChatTemplate, local_now
from llmws.tokenizer_files import (
    PROCESSORS,
    SPECIAL_TOKENS,
    TOKENIZER,
    TOKENIZER_CONFIG,
    TokenizerFiles,
    broken,
    read,
    read_object,
    read_tokenizer,
)

MAX_TEMPLATE_BYTES: Final = 2**20
"""Largest template file read; `template.MAX_SOURCE_CHARS` bounds what is taken of it."""

_CONFIG = "config.json"
_TEMPLATE = "chat_template.jinja"
_PROCESSOR_TEMPLATE = "chat_template.json"
_MORE_TEMPLATES = "additional_chat_templates"

_IMAGE_TOKENS = ("image_token", "boi_token")
"""Source: the processors of transformers 5: what stands for an image is the one or the other (boi: begin of image)."""

Fingerprint = tuple[tuple[str, int, int], ...]


class ModelText(msgspec.Struct, frozen=True):
    """What turns a context into token ids.

    Attributes:
        tokenizer: without truncation or padding.
        template: None when the model has none.
        vocab_size: ids from 0 up to this are the model's.
        bos: the text of the token that a prompt begins with, if there is one.
        has_processor: whether a processor, as models for images have one, prepares the prompt.
        placeholders: tokens that stand for an image.
    """

    tokenizer: Tokenizer
    template: ChatTemplate | None
    vocab_size: int
    bos: str = ""
    has_processor: bool = False
    placeholders: tuple[str, ...] = ()

    def spelled(self, text: str) -> str:
        """The text, in which the placeholder of an image is a word like any other."""
        for placeholder in self.placeholders:
            text = text.replace(placeholder, f"{placeholder[0]} {placeholder[1:]}")
        return text

    def tokenize_rendered(self, text: str) -> list[int]:
        """Token ids of what the template made.

        Source: a processor's `apply_chat_template` adds a BOS that the template left out, a tokenizer's never does.
        """
        has_bos = bool(self.bos) and text.startswith(self.bos)
        return self.tokenize(text, special_tokens=self.has_processor and not has_bos)

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
    names = (TOKENIZER, TOKENIZER_CONFIG, SPECIAL_TOKENS, _CONFIG, _TEMPLATE, _PROCESSOR_TEMPLATE, *PROCESSORS)
    paths = [folder / name for name in names]
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
        ModelInvalidError: naming the file and what is wrong.
        PromptError: `model_failed`: the template is not valid.
    """
    files = read_tokenizer(folder)
    files.tokenizer.encode_special_tokens = files.config.get("split_special_tokens") is True
    source = _template_source(folder, files.config)
    has_processor = any((folder / name).exists() for name in PROCESSORS)
    template = None
    if source is not None:
        template = ChatTemplate(source, files.named, clock=clock, has_processor=has_processor)
    return ModelText(
        files.tokenizer,
        template,
        _vocab_size(folder, files.tokenizer),
        bos=files.named.get("bos_token", ""),
        has_processor=has_processor,
        placeholders=_placeholders(folder, files) if has_processor else (),
    )


def _placeholders(folder: Path, files: TokenizerFiles) -> tuple[str, ...]:
    """Tokens that stand for an image in a prompt, however the model's files name them."""
    config = read_object(folder / _CONFIG)
    ids = [config.get(name + suffix) for name in _IMAGE_TOKENS for suffix in ("_id", "_index")]
    known = [each for each in ids if isinstance(each, int) and 0 <= each < 2**32]
    texts = [files.tokenizer.id_to_token(each) for each in known] + [files.named.get(name) for name in _IMAGE_TOKENS]
    return tuple(dict.fromkeys(text for text in texts if text))


def _read_text(path: Path) -> str:
    try:
        return read(path, MAX_TEMPLATE_BYTES).decode()
    except UnicodeDecodeError:
        raise broken(path, "not UTF-8") from None


def _template_source(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The default template: `chat_template.jinja` and its neighbours before the entry in `tokenizer_config.json`."""
    more = folder / _MORE_TEMPLATES
    files = {path.stem: path for path in more.glob("*.jinja")} if more.is_dir() else {}
    if (folder / _TEMPLATE).exists():
        files.setdefault("default", folder / _TEMPLATE)
    if files:
        if "default" not in files:
            raise broken(more, "it has no template named default")
        return _read_text(files["default"])
    entry = read_object(folder / _PROCESSOR_TEMPLATE).get("chat_template") or config.get("chat_template")
    if isinstance(entry, list):
        named = {e["name"]: e["template"] for e in entry if isinstance(e, dict) and {"name", "template"} <= e.keys()}
        entry = named.get("default")
        if entry is None:
            raise broken(folder / TOKENIZER_CONFIG, "it has no chat template named default")
    if entry is not None and not isinstance(entry, str):
        raise broken(folder / TOKENIZER_CONFIG, "its chat template is not text")
    return entry


def _vocab_size(folder: Path, tokenizer: Tokenizer) -> int:
    """Rows of the model's embedding, which may be more than the tokenizer has names for."""
    config = read_object(folder / _CONFIG)
    text = config.get("text_config")
    for holder in (config, text if isinstance(text, dict) else {}):
        size = holder.get("vocab_size")
        if isinstance(size, int) and size > 0:
            return size
    return int(tokenizer.get_vocab_size(with_added_tokens=True))

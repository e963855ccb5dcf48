"""A model's own processor of images, as far as it can be believed.

Owns what is taken of a folder's processor files. Knows no streams. Invariant: nothing that the folder says has a
processor take more than a bounded picture, or encode a text by rules of the folder's own.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import transformers
from tokenizers import Tokenizer, pre_tokenizers
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING, processor_class_from_name

from llmws.errors import ModelInvalidError
from llmws.tokenizer_files import PROCESSORS, TOKENIZER_CONFIG, read_object, read_tokenizer

MAX_PIXELS: Final = 2**24
"""That a processor may make of a picture, whatever its size, and in all tiles together."""

_MAX_SIDE: Final = 2560
"""Pixels. The largest in use are 2304. Of any other number too, such as tokens of a picture."""

_MAX_PLACES: Final = 2**16
"""Patches of a picture; each is a token or a part of one. Source: 12,845,056 pixels in patches of 14 x 14, Qwen2-VL."""

_MAX_MARK_CHARS: Final = 256
_AREAS: Final = re.compile(r"(min|max)_pixels")
_AREAS_OF_SOME: Final = re.compile(r"(longest|shortest)_edge")
"""Sides, but pixels where the class resizes by them. Source: `smart_resize`, transformers 5."""

_TILES: Final = re.compile(r"max_(image_)?(tiles|patches|crops)")


def load_processor(folder: Path, config: transformers.PreTrainedConfig) -> Any:  # noqa: ANN401 - each its own class
    """The processor in the folder, without its part for videos.

    Source: `ProcessorMixin`, transformers 5, makes its parts from what `get_attributes` lists.

    Raises:
        ModelInvalidError: it would take too much, or there is none.
        Exception: whatever transformers raises where it lacks a file or a package, or where the processor is not one
            for images.
    """
    whole: Any = _processor_class(folder, config)
    tokenizer = _tokenizer(folder)
    parts = [part for part in whole.get_attributes() if part != "video_processor"]
    own = {
        "get_attributes": classmethod(lambda _: parts),
        "_load_tokenizer_from_pretrained": classmethod(lambda *_, **__: tokenizer),
    }
    for_images: Any = type("ProcessorForImages", (whole,), own)
    processor = for_images.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    _check_sizes(processor)
    return processor


def _processor_class(folder: Path, config: transformers.PreTrainedConfig) -> type:
    for name in (*reversed(PROCESSORS), TOKENIZER_CONFIG):
        said = read_object(folder / name).get("processor_class")
        if isinstance(said, str):
            named = processor_class_from_name(said)
            if not (isinstance(named, type) and issubclass(named, transformers.ProcessorMixin)):
                raise ModelInvalidError("its processor is none that transformers has")
            return named
    mapping: Any = PROCESSOR_MAPPING
    known: type = mapping[type(config)]
    return known


def _tokenizer(folder: Path) -> Any:  # noqa: ANN401 - transformers' has no types
    """A tokenizer for the texts that processors write, placeholders and line breaks, of the model's ids.

    Without the model's own rules for other texts: those are anybody's, and take as long as their author likes.
    """
    files = read_tokenizer(folder)
    plain: Tokenizer = files.tokenizer
    is_of_bytes = plain.pre_tokenizer is not None and b'"ByteLevel"' in plain.pre_tokenizer.__getstate__()
    plain.normalizer = None
    plain.post_processor = None
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False) if is_of_bytes else None
    usual = {name: text for name, text in files.named.items() if name in ("bos_token", "eos_token", "pad_token")}
    others = {name: text for name, text in files.named.items() if name not in usual and name != "unk_token"}
    fast: Any = transformers.PreTrainedTokenizerFast
    return fast(tokenizer_object=plain, extra_special_tokens=others, **usual)


def _check_sizes(processor: Any) -> None:  # noqa: ANN401 - each its own class
    images = processor.image_processor
    has_areas = hasattr(sys.modules[type(images).__module__], "smart_resize")
    largest_pixels, tiles, patch = 1, 1, _MAX_SIDE
    for name, number in (*_numbers("", vars(images)), *_numbers("", _own(processor))):
        is_area = bool(_AREAS.fullmatch(name) or (has_areas and _AREAS_OF_SOME.fullmatch(name)))
        pixels = number if is_area else number * number
        if not 0 <= number <= (MAX_PIXELS if is_area else _MAX_SIDE):
            raise ModelInvalidError(f"its processor has a size of {number}")
        if _TILES.fullmatch(name):
            tiles = max(tiles, number)
        elif name == "patch_size":
            patch = min(patch, max(1, number))
        else:
            largest_pixels = max(largest_pixels, pixels)
    if tiles * largest_pixels > MAX_PIXELS:
        raise ModelInvalidError(f"its processor makes {tiles} tiles of a picture")
    if patch < _MAX_SIDE and largest_pixels // patch**2 > _MAX_PLACES:
        raise ModelInvalidError(f"its processor makes {largest_pixels // patch**2} patches of a picture")
    for text in _own(processor).values():
        if isinstance(text, str) and len(text) > _MAX_MARK_CHARS:
            raise ModelInvalidError("its processor has a placeholder that is no token")
    if processor.tokenizer.backend_tokenizer.token_to_id(processor.image_token) is None:
        raise ModelInvalidError("its processor has a placeholder that is no token")


def _own(processor: Any) -> dict[str, object]:  # noqa: ANN401 - each its own class
    """What a processor holds beside its parts."""
    without = {*processor.get_attributes(), "chat_template"}
    return {name: value for name, value in vars(processor).items() if name not in without and not name.endswith("_id")}


def _numbers(name: str, value: object) -> Iterator[tuple[str, int]]:
    """The whole numbers in a configuration, by the nearest name."""
    if isinstance(value, int) and not isinstance(value, bool):
        yield name, int(value)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _numbers(name, each)
    elif isinstance(value, Mapping) or hasattr(value, "__dataclass_fields__"):
        for key, each in (value if isinstance(value, Mapping) else vars(value)).items():
            yield from _numbers(name if key in ("height", "width") else str(key), each)

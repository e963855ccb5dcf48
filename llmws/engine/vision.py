"""Images in a prompt: from encoded files to what a model's first forward takes.

Owns what is asked of the model's processor. Knows no streams. Invariant: an image takes as many tokens as the processor
gives it, whatever else is in the prompt.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import msgspec
import torch
from PIL import Image

from llmws.engine.image_files import read_images
from llmws.engine.network import Network
from llmws.engine.processors import load_processor
from llmws.engine_api import GenerationRequest, ImageInput
from llmws.errors import BadRequestError, ModelInvalidError
from llmws.protocol.messages import Sampling
from llmws.tokenizer_files import PROCESSORS

_PER_TOKEN: Final[tuple[str, ...]] = ("token_type_ids", "mm_token_type_ids")
"""What a processor says of each token. Source: `prepare_inputs_for_generation`, transformers 5."""

_USUAL_PIXELS: Final = 1024
"""Width and height of the image that tells how many tokens one takes, where that depends on its size."""

_SHAPES: Final = ((64, 64), (1024, 1024), (256, 1024), (1024, 256))
"""Of images that tell whether the processor makes all of them one size."""

_REDUCING_GAP: Final = 3
"""To how many times the size that a model sees a larger image may be reduced before it is resampled: no difference is
seen from three on. Source: `Image.thumbnail`, Pillow."""


class Sight(NamedTuple):
    """What the first forward of a prompt with images takes beside the ids.

    Attributes:
        tensors: of all images of the prompt, named by the processor; `token_type_ids` and the like are [1, prompt].
        positions: of the prompt's ids, [..., 1, prompt]: some models give an image those of its rows and columns.
    """

    tensors: Mapping[str, torch.Tensor]
    positions: torch.Tensor

    def inputs(self, end: int) -> dict[str, torch.Tensor]:
        """The tensors for a first forward up to `end`, the prompt's length or more; what follows the prompt is text."""
        return {
            name: torch.nn.functional.pad(value, (0, end - value.shape[-1])) if name in _PER_TOKEN else value
            for name, value in self.tensors.items()
        }


class _Processed(NamedTuple):
    """What a processor made of images.

    Attributes:
        ids: of each image.
        per_token: what else it says of each of these, by name.
        tensors: of all images.
    """

    ids: list[list[int]]
    per_token: Mapping[str, list[list[int]]]
    tensors: Mapping[str, torch.Tensor]


class Processor(Protocol):
    """What is used of a transformers processor."""

    image_token: str
    tokenizer: Any

    def __call__(self, *, images: list[Image.Image], text: str, **options: object) -> Mapping[str, torch.Tensor]:
        """The ids of the text, each placeholder in it expanded, and the tensors of the images."""


class Vision:
    """Turns prompts with placeholders for images into ones that a model takes.

    Args:
        network: a transformers model that takes images.
        processor: of the model.
        max_pixels: that the images of a prompt may have together.

    Attributes:
        image_tokens: that an image of 1024 x 1024 pixels takes; for many models every image does.

    Raises:
        ModelInvalidError: in a prompt, what the processor makes of one image cannot be told from that of the next.
    """

    def __init__(self, network: Network, processor: Processor, *, max_pixels: int) -> None:
        self._network = network
        self._processor = processor
        self._max_pixels = max_pixels
        self._placeholder: int = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
        self._separator, self._separator_id = _separator(processor)
        usual = Image.new("RGB", (_USUAL_PIXELS, _USUAL_PIXELS))
        [alone] = self._processed([usual]).ids
        if self._processed([usual, usual]).ids != [alone, alone]:
            raise ModelInvalidError("its processor runs images together")
        self.image_tokens = len(alone)
        self._enough = self._largest_side()

    def expand(self, request: GenerationRequest) -> tuple[GenerationRequest, Sight]:
        """The request without its images, as many ids in the place of each as it takes; and what they show.

        Raises:
            BadRequestError: an image cannot be read, or has no place in the prompt.
        """
        places = [index for index, token in enumerate(request.prompt_ids) if token == self._placeholder]
        if len(places) != len(request.images):
            raise BadRequestError(
                f"the prompt has {len(places)} places for {len(request.images)} images; the model's chat template must "
                f"write {self._processor.image_token} for each"
            )
        made = self._processed(read_images(request.images, max_pixels=self._max_pixels, enough=self._enough))
        ids = _replaced(request.prompt_ids, places, made.ids)
        tensors = dict(made.tensors)
        for name, parts in made.per_token.items():
            tensors[name] = torch.tensor([_replaced([0] * len(request.prompt_ids), places, parts)])
        return msgspec.structs.replace(request, prompt_ids=tuple(ids), images=()), self._sight(ids, tensors)

    def _sight(self, ids: list[int], tensors: Mapping[str, torch.Tensor]) -> Sight:
        device, dtype = self._network.device, self._network.dtype
        placed = {
            name: value.to(device, dtype if value.is_floating_point() else None) for name, value in tensors.items()
        }
        prompt = torch.tensor([ids], device=device)
        return Sight(placed, self._network._prepare_position_ids_for_generation(prompt, dict(placed)))

    def sample(self, *, upright: bool) -> tuple[GenerationRequest, Sight]:
        """A small prompt with a picture, to try a model on; turned by a quarter, it is another picture."""
        picture = Image.linear_gradient("L").resize((64, 64))
        encoded = io.BytesIO()
        (picture if upright else picture.rotate(90)).save(encoded, "PNG")
        image = ImageInput(mime="image/png", data=encoded.getvalue())
        ids = (self._placeholder, *self._processor.tokenizer("What is it?", add_special_tokens=False)["input_ids"])
        return self.expand(
            GenerationRequest(key="", prompt_ids=ids, images=(image,), sampling=Sampling(), max_new_tokens=1)
        )

    def _processed(self, images: list[Image.Image]) -> _Processed:
        text = self._separator.join([self._processor.image_token] * len(images))
        made = dict(self._processor(images=images, text=text, add_special_tokens=False, return_tensors="pt"))
        ids = made.pop("input_ids")[0].tolist()
        made.pop("attention_mask", None)
        separators = [index for index, token in enumerate(ids) if token == self._separator_id]
        per_token = {name: _split(made.pop(name)[0].tolist(), separators) for name in _PER_TOKEN if name in made}
        return _Processed(_split(ids, separators), per_token, made)

    def _largest_side(self) -> int | None:
        """Pixels of the shorter side beyond which the model cannot see more; None where that depends on the image."""
        made = [self._processed([Image.new("RGB", shape)]).tensors.get("pixel_values") for shape in _SHAPES]
        shapes = {None if pixels is None else tuple(pixels.shape) for pixels in made}
        shape = shapes.pop()
        is_one_picture = not shapes and shape is not None and len(shape) == len("NCHW") and shape[0] == 1
        return _REDUCING_GAP * max(shape[-2:]) if shape is not None and is_one_picture else None


def _separator(processor: Processor) -> tuple[str, int]:
    """A special token that no image takes, to stand between two."""
    tokenizer = processor.tokenizer
    text = tokenizer.eos_token or tokenizer.bos_token or tokenizer.pad_token
    if text is None:
        raise ModelInvalidError("its tokenizer has no special token to tell one image from the next")
    return text, tokenizer.convert_tokens_to_ids(text)


def has_processor(folder: Path) -> bool:
    """Whether the model in the folder comes with something that prepares images."""
    return any((folder / name).is_file() for name in PROCESSORS)


def load_vision(folder: Path, network: Network, *, max_pixels: int) -> Vision:
    """What turns images into input for the model in the folder.

    Raises:
        Exception: whatever transformers raises where it lacks a file or a package, or where the processor is not one
            for images.
    """
    return Vision(network, load_processor(folder, network.config), max_pixels=max_pixels)


def _split(values: Sequence[int], separators: Sequence[int]) -> list[list[int]]:
    """The parts of the values between those at `separators`."""
    starts, ends = [0, *(index + 1 for index in separators)], [*separators, len(values)]
    return [list(values[start:end]) for start, end in zip(starts, ends, strict=True)]


def _replaced(values: Sequence[int], places: Sequence[int], inserted: Sequence[Sequence[int]]) -> list[int]:
    """The values with those at `places` replaced by several."""
    result: list[int] = []
    start = 0
    for place, new in zip(places, inserted, strict=True):
        result += values[start:place]
        result += new
        start = place + 1
    return [*result, *values[start:]]

"""Images in a prompt: from encoded files to what a model's first forward takes.

Owns their decoding, and the model's own processor. Knows no streams. Invariants: no pixel is decoded of a file that is
not what its author says it is, or that has more of them than are allowed; an image takes as many tokens as the model's
processor gives it, whatever else is in the prompt.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import msgspec
import torch
import transformers
from PIL import Image, ImageOps
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from llmws.engine.network import Network
from llmws.engine_api import GenerationRequest, ImageInput
from llmws.errors import BadRequestError
from llmws.protocol.messages import Sampling
from llmws.tokenizer_files import PROCESSORS

log = logging.getLogger(__name__)

# Pillow's own bound is a warning, and looser; `read_image` looks at the size before any pixel is decoded.
Image.MAX_IMAGE_PIXELS = None

_FORMATS: Final = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP", "image/gif": "GIF"}

_PER_TOKEN: Final = ("token_type_ids", "mm_token_type_ids")
"""What a processor says of each token. Source: `prepare_inputs_for_generation`, transformers 5."""

_MAX_RATIO: Final = 64
"""Of the longer side to the shorter: where a processor scales by the shorter one, a thin line would take gigabytes."""

_USUAL_PIXELS: Final = 1024
"""Width and height of the image that tells how many tokens one takes, where that depends on its size."""


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
        max_pixels: that an image may have.

    Attributes:
        image_tokens: that an image of 1024 x 1024 pixels takes; for many models every image does.
    """

    def __init__(self, network: Network, processor: Processor, *, max_pixels: int) -> None:
        self._network = network
        self._processor = processor
        self._max_pixels = max_pixels
        self._placeholder: int = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
        usual = Image.new("RGB", (_USUAL_PIXELS, _USUAL_PIXELS))
        self.image_tokens = self._processed([usual])["input_ids"].shape[1]

    def expand(self, request: GenerationRequest) -> tuple[GenerationRequest, Sight]:
        """The request without its images, as many ids in the place of each as it takes; and what they show.

        Raises:
            BadRequestError: an image cannot be read, or has no place in the prompt.
        """
        places = [index for index, token in enumerate(request.prompt_ids) if token == self._placeholder]
        if len(places) != len(request.images):
            raise BadRequestError(
                f"the prompt has {len(places)} places for {len(request.images)} images; does its text say "
                f"{self._processor.image_token}, or does the model's chat template show no images?"
            )
        images = [
            read_image(image, name=f"image {number}", max_pixels=self._max_pixels)
            for number, image in enumerate(request.images, start=1)
        ]
        alone = [self._processed([image]) for image in images]
        together = alone[0] if len(alone) == 1 else self._processed(images)
        ids = _replaced(request.prompt_ids, places, [each["input_ids"][0].tolist() for each in alone])
        tensors = {name: value for name, value in together.items() if name not in ("input_ids", "attention_mask")}
        for name in set(_PER_TOKEN) & tensors.keys():
            values = _replaced([0] * len(request.prompt_ids), places, [each[name][0].tolist() for each in alone])
            tensors[name] = torch.tensor([values])
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

    def _processed(self, images: list[Image.Image]) -> Mapping[str, torch.Tensor]:
        text = self._processor.image_token * len(images)
        return self._processor(images=images, text=text, add_special_tokens=False, return_tensors="pt")


def has_processor(folder: Path) -> bool:
    """Whether the model in the folder comes with something that prepares images."""
    return any((folder / name).is_file() for name in PROCESSORS)


def load_vision(folder: Path, network: Network, *, max_pixels: int) -> Vision:
    """What turns images into input for the model in the folder.

    Raises:
        Exception: whatever transformers raises where it lacks a file or a package, or where the processor is not one
            for images.
    """
    return Vision(network, _processor(folder, network.config), max_pixels=max_pixels)


def _processor(folder: Path, config: transformers.PreTrainedConfig) -> Processor:
    """The processor in the folder; where only its part for videos cannot be loaded, which takes torchvision, the rest.

    Source: `ProcessorMixin`, transformers 5, makes its parts from what `get_attributes` lists.
    """
    auto: Any = transformers.AutoProcessor
    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        return auto.from_pretrained(folder, **options)  # type: ignore[no-any-return]
    except (ImportError, OSError) as error:
        try:
            whole: Any = PROCESSOR_MAPPING[type(config)]
            parts = [part for part in whole.get_attributes() if part != "video_processor"]
            for_images: Any = type(whole.__name__, (whole,), {"get_attributes": classmethod(lambda _: parts)})
            return for_images.from_pretrained(folder, **options)  # type: ignore[no-any-return]
        except Exception:  # noqa: BLE001 - whatever it is, the first reason is the better one
            raise error from None


def read_image(image: ImageInput, *, name: str, max_pixels: int) -> Image.Image:
    """Decodes an image: the first frame, upright, in RGB, what is transparent on white.

    Raises:
        BadRequestError: it is not of its declared type, broken, or too large; the message begins with `name`.
    """
    declared = _FORMATS[image.mime]
    try:
        opened = Image.open(io.BytesIO(image.data), formats=[declared])
    except Exception as error:  # noqa: BLE001 - what Pillow raises over a hostile file is anything
        log.info("%s was refused: %s", name, error)
        raise BadRequestError(f"{name} is not a {declared} file") from None
    with opened:
        width, height = opened.size
        if width * height > max_pixels:
            raise BadRequestError(f"{name} has {width} x {height} pixels; at most {max_pixels} are taken")
        if max(width, height) > _MAX_RATIO * min(width, height):
            message = f"{name} has {width} x {height} pixels; one side may be {_MAX_RATIO} times the other at most"
            raise BadRequestError(message)
        try:
            return _flat(ImageOps.exif_transpose(opened))
        except Exception as error:  # noqa: BLE001 - likewise
            log.info("%s was refused: %s", name, error)
            raise BadRequestError(f"{name} is broken or cut short") from None


def _flat(image: Image.Image) -> Image.Image:
    """The image in RGB, on white where it is transparent."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    solid = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", solid.size, "white"), solid).convert("RGB")


def _replaced(values: Sequence[int], places: Sequence[int], inserted: Sequence[Sequence[int]]) -> list[int]:
    """The values with those at `places` replaced by several."""
    result: list[int] = []
    start = 0
    for place, new in zip(places, inserted, strict=True):
        result += values[start:place]
        result += new
        start = place + 1
    return [*result, *values[start:]]

"""Image files to pixels.

Owns what is believed of a file. Knows no model. Invariant: no pixel is decoded of a file that is not what its author
says it is, nor of any file of a prompt whose files claim more pixels together than are allowed.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from typing import Final

from PIL import Image, ImageOps

from llmws.engine_api import ImageInput
from llmws.errors import BadRequestError

log = logging.getLogger(__name__)

# Pillow's own bound is a warning, and looser; `read_images` looks at the sizes before any pixel is decoded.
Image.MAX_IMAGE_PIXELS = None

_FORMATS: Final = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP", "image/gif": "GIF"}

_MAX_RATIO: Final = 64
"""Of the longer side to the shorter: where a processor scales by the shorter one, a thin line would take gigabytes."""

_MAX_SCANS: Final = 100
"""Of a JPEG: a progressive one has ten or so. Each passes over the whole picture, however few bytes it takes."""

_START_OF_SCAN: Final = b"\xff\xda"
"""Source: ITU-T T.81, B.1.1.3; in what scans hold, 0xFF is followed by 0."""

_16_BIT: Final = ("I", "I;16")


def read_images(images: Sequence[ImageInput], *, max_pixels: int, enough: int | None = None) -> list[Image.Image]:
    """Decodes the images of a prompt, one by one: the first frame, upright, in RGB, what is transparent on white.

    Args:
        images: as they came.
        max_pixels: that all of them may have together.
        enough: pixels that the shorter side may be reduced to; None: nothing is reduced.

    Raises:
        BadRequestError: one is not of its declared type, broken, or too large; the message says which.
    """
    total = 0
    for image in images:
        with _opened(image) as opened:
            width, height = opened.size
        total += width * height
        if width * height > max_pixels:
            raise BadRequestError(f"{image.name} has {width} x {height} pixels; at most {max_pixels} are taken")
        if max(width, height) > _MAX_RATIO * min(width, height):
            message = (
                f"{image.name} has {width} x {height} pixels; one side may be {_MAX_RATIO} times the other at most"
            )
            raise BadRequestError(message)
    if total > max_pixels:
        raise BadRequestError(
            f"the prompt's images, those of earlier turns included, have {total} pixels together; at most {max_pixels} "
            "are taken: send smaller ones, or begin another conversation (/new)"
        )
    return [_read(image, enough) for image in images]


def _opened(image: ImageInput) -> Image.Image:
    """The file, of which only what is before its pixels was read."""
    declared = _FORMATS[image.mime]
    if declared == "JPEG" and image.data.count(_START_OF_SCAN) > _MAX_SCANS:
        raise BadRequestError(f"{image.name} is a JPEG of more than {_MAX_SCANS} scans; save it with fewer")
    try:
        return Image.open(io.BytesIO(image.data), formats=[declared])
    except Exception as error:  # noqa: BLE001 - what Pillow raises over a hostile file is anything
        log.info("%s was refused: %s", image.name, error)
        raise BadRequestError(f"{image.name} is not a {declared} file") from None


def _read(image: ImageInput, enough: int | None) -> Image.Image:
    with _opened(image) as opened:
        try:
            if enough is not None:
                opened.draft("RGB", (enough, enough))
            ImageOps.exif_transpose(opened, in_place=True)
            flat = _flat(opened)
        except Exception as error:  # noqa: BLE001 - likewise
            log.info("%s was refused: %s", image.name, error)
            raise BadRequestError(f"{image.name} is broken or cut short") from None
    factor = 1 if enough is None else min(flat.size) // enough
    return flat.reduce(factor) if factor > 1 else flat


def _flat(image: Image.Image) -> Image.Image:
    """The image in RGB, on white where it is transparent."""
    if image.mode in _16_BIT:
        image = _in_8_bits(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    solid = image.convert("RGBA")
    white = Image.new("RGB", solid.size, "white")
    white.paste(solid, mask=solid)
    return white


def _in_8_bits(image: Image.Image) -> Image.Image:
    """Greys of 16 bits, which Pillow would cut off at 255; the one that stands for nothing becomes white."""
    greys = [value >> 8 for value in range(2**16)]
    clear = image.info.pop("transparency", None)
    if isinstance(clear, int):
        greys[clear] = 255
    return image.convert("I").point(greys, "L")

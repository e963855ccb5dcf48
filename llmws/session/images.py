"""Images on their way from a message to the engine.

They stay as the message brought them, in base64: in memory once, however many records and turns name them. Pure; what
the bytes show is the engine's to find out. Invariant: images that passed `wrong_images` are `decoded` without an error.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from typing import Final

from llmws.engine_api import ImageInput
from llmws.protocol import messages as m

NO_IMAGES: Final = "this model takes no images"


def wrong_images(images: Iterable[m.Image]) -> tuple[str, str] | None:
    """What is wrong with a prompt's images, as (field, text), or None."""
    for index, image in enumerate(images):
        try:
            is_canonical = base64.b64encode(base64.b64decode(image.data)) == image.data.encode()
        except (binascii.Error, ValueError):
            is_canonical = False
        if not is_canonical or not image.data:
            return f"prompt.images[{index}].data", "this is not an image in base64"
    return None


def decoded(images: Iterable[m.Image]) -> tuple[ImageInput, ...]:
    """The images as the engine takes them."""
    return tuple(ImageInput(mime=each.mime, data=base64.b64decode(each.data)) for each in images)

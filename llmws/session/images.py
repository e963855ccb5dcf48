"""Images on their way from a message to the engine.

They stay as the message brought them, in base64: in memory once, however many records and turns name them. Pure; what
the bytes show is the engine's to find out. Invariant: images that passed `wrong_images` are `decoded` without an error.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from typing import Final

from llmws.engine_api import ImageInput
from llmws.protocol import messages as m

_BASE64: Final = re.compile("[A-Za-z0-9+/]*(?:[AQgw]==|[AEIMQUYcgkosw048]=)?")
"""Of the ways to spell the same bytes the one that encoders write. Source: RFC 4648, 3.5: the bits left over are 0."""


def wrong_images(images: Iterable[m.Image]) -> tuple[str, str] | None:
    """What is wrong with a prompt's images, as (field, text), or None."""
    for index, image in enumerate(images):
        if not image.data or len(image.data) % 4 or _BASE64.fullmatch(image.data) is None:
            return f"prompt.images[{index}].data", "this is not an image in base64"
    return None


def decoded(images: Sequence[m.Image], *, asked: int) -> tuple[ImageInput, ...]:
    """The images as the engine takes them, the last `asked` of which came with the question."""
    earlier = len(images) - asked
    return tuple(
        ImageInput(
            mime=each.mime,
            data=base64.b64decode(each.data),
            name="an image of an earlier question" if index < earlier else f"image {index - earlier + 1}",
        )
        for index, each in enumerate(images)
    )

"""Images as a prompt carries them.

Knows a file's type from how it begins, whatever its name says; what it shows is the server's to find out.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Final, Literal

from llmws.protocol.messages import Image

MAX_FILE_BYTES: Final = 64 * 2**20
"""What is longer no server takes, whatever its settings."""

MAX_IMAGES: Final = 16
"""In a prompt, as the protocol says."""

_Mime = Literal["image/png", "image/jpeg", "image/webp", "image/gif"]


def image(data: bytes) -> Image:
    """An image from the bytes of its file.

    Raises:
        ValueError: it is neither PNG, JPEG, WebP nor GIF.
    """
    mime = _mime(data)
    if mime is None:
        raise ValueError("not an image that can be sent; PNG, JPEG, WebP and GIF are")
    return Image(data=base64.b64encode(data).decode(), mime=mime)


def image_file(path: str | os.PathLike[str]) -> Image:
    """An image from a file.

    Raises:
        ValueError: it cannot be read, is too large, or is no image; the message names the file.
    """
    file = Path(path)
    try:
        if not file.exists():
            raise ValueError(f"{path}: there is no such file")
        # Not a device or a pipe: they may never end.
        if not file.is_file():
            raise ValueError(f"{path}: this is not a plain file")
        if file.stat().st_size > MAX_FILE_BYTES:
            raise ValueError(f"{path}: larger than {MAX_FILE_BYTES >> 20} MiB")
        data = file.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    try:
        return image(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _mime(data: bytes) -> _Mime | None:
    """Source: the signatures in the specifications of the formats."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    return "image/webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None

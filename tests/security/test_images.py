"""An image is a file of a stranger's that a decoder in C reads, or an address that the server is sent to."""

from __future__ import annotations

import io
import json
import struct
import zlib

import pytest
from PIL import Image

from llmws.engine.image_files import read_images
from llmws.engine_api import ImageInput
from llmws.errors import BadRequestError
from llmws.protocol import ErrorCode, FrameError, decode
from llmws.protocol import messages as m

MAX_PIXELS = 1_000_000


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int) -> bytes:
    """A file of a few bytes that says it is as large as this."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "image",
    [
        {"url": "http://169.254.169.254/latest/meta-data/"},
        {"path": "/etc/passwd", "mime": "image/png"},
        {"data": "", "mime": "image/svg+xml"},
        {"data": "", "mime": "application/postscript"},
        "http://169.254.169.254/",
    ],
)
def test_an_image_has_no_address(image: object) -> None:
    """Servers that fetch images fetch the cloud's secrets: CVE-2025-6242, vLLM. SVG and EPS are programs besides."""
    with pytest.raises(FrameError) as refused:
        decode(json.dumps({"type": "inference", "prompt": {"user": "x", "images": [image]}}))
    assert refused.value.code is ErrorCode.BAD_REQUEST
    assert m.Image.__struct_fields__ == ("data", "mime")


@pytest.mark.parametrize("size", [(60_000, 60_000), (2**31 - 1, 2**31 - 1), (1_000_001, 1), (1001, 1000)])
def test_an_image_bomb_is_not_decoded(size: tuple[int, int]) -> None:
    """A kilobyte that says it is ten gigabytes of pixels: CVE-2014-9601, Pillow."""
    with pytest.raises(BadRequestError):
        read_images([ImageInput(data=png(*size), mime="image/png")], max_pixels=MAX_PIXELS)


def test_many_small_images_are_no_large_one() -> None:
    """A bound on each is none on all."""
    file = io.BytesIO()
    Image.new("RGB", (600, 600)).save(file, "PNG")
    one = ImageInput(data=file.getvalue(), mime="image/png")
    assert len(read_images([one] * 2, max_pixels=MAX_PIXELS)) == 2
    with pytest.raises(BadRequestError, match="pixels together"):
        read_images([one] * 3, max_pixels=MAX_PIXELS)


def test_only_the_declared_decoder_sees_a_file() -> None:
    """Libraries that guess the type open forty kinds of file, and most faults are in the rare ones."""
    for kind in ("BMP", "TIFF", "ICO", "PCX", "TGA", "EPS", "GIF", "JPEG"):
        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, kind)
        with pytest.raises(BadRequestError, match="is not a PNG file"):
            read_images([ImageInput(data=file.getvalue(), mime="image/png")], max_pixels=MAX_PIXELS)

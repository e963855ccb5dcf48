"""What model folders, image files and the prompt process give, as functions of their bytes."""

from __future__ import annotations

import functools
import json
import re
import socket
from pathlib import Path
from typing import Final

from llmws.catalog import ModelName, candidates, find
from llmws.catalog.inspection import examine
from llmws.engine.image_files import read_images
from llmws.engine_api import ImageInput, ModelRef
from llmws.errors import BadRequestError, ModelInvalidError, ModelNotFoundError
from llmws.model_config import check_config
from llmws.prompt.frames import UNREADABLE, FrameError, Line, decode_answer, decode_job, encode
from llmws.tokenizer_files import read_tokenizer
from llmws.weight_files import tensor_bytes
from tests.fuzz.target import PART, Target, check_refusal, scratch
from tests.support.safetensors_file import safetensors_bytes

MAX_PIXELS: Final = 2**16
FRAME_BYTES: Final = 1024
_MIMES: Final = ("image/png", "image/jpeg", "image/webp", "image/gif")
_RUNS_CODE: Final = {"attribute_map", "auto_map", "custom_pipelines", "custom_generate", "trust_remote_code"}
_LISTED: Final = tuple(
    ModelRef(name=name, path=f"models/{name}", location=f"/m/{name}", size_bytes=1, source="models")
    for name in ("llmws-guide", "tiny-1.5B")
)


def model_name(data: bytes) -> None:
    """A client's text is the name of a folder right below the models folder, or refused in one printable line."""
    text = data.decode(errors="surrogatepass" if _has_surrogates(data) else "surrogateescape")
    try:
        name = ModelName(text).text
    except BadRequestError as error:
        check_refusal(error)
    else:
        assert (Path("/m") / name).resolve() == Path("/m", name)
        assert re.fullmatch("[A-Za-z0-9._-]+", name)
    found = find(_LISTED, text)
    assert found is None or text in (found.name, found.path)
    try:
        assert candidates(_LISTED, preferred=text, last=None) == (found,)
    except ModelNotFoundError as error:
        check_refusal(error)
    assert set(candidates(_LISTED, preferred=None, last=text)) == set(_LISTED)


def _has_surrogates(data: bytes) -> bool:
    try:
        data.decode(errors="surrogatepass")
    except UnicodeDecodeError:
        return False
    return True


def config_json(data: bytes) -> None:
    """A model's configuration that passes names no code, at any depth; one that does not is refused in one line."""
    folder = _folder("config")
    (folder / "config.json").write_bytes(data)
    try:
        check_config(folder)
    except ModelInvalidError as error:
        check_refusal(error)
        return
    assert not _RUNS_CODE & set(_keys(json.loads(data)))


def _keys(value: object) -> list[str]:
    if isinstance(value, dict):
        return [*value, *(key for each in value.values() for key in _keys(each))]
    return [key for each in value for key in _keys(each)] if isinstance(value, list) else []


@functools.cache
def _folder(name: str, *weights: str) -> Path:
    """A model's folder, but for what is fuzzed of it."""
    folder = scratch() / name
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type":"llama"}')
    for each in weights:
        header = {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
        (folder / each).write_bytes(safetensors_bytes(header, bytes(4)))
    return folder


def weights_index(data: bytes) -> None:
    """An index that passes names only files that lie beside it."""
    folder = _folder("index", "a.safetensors", "b.safetensors")
    (folder / "model.safetensors.index.json").write_bytes(data)
    try:
        examine(folder)
    except ModelInvalidError as error:
        check_refusal(error)
        return
    named = set(json.loads(data)["weight_map"].values())
    assert named <= {"a.safetensors", "b.safetensors"}
    assert set(tensor_bytes(folder)) <= {"w"}


def weights_header(data: bytes) -> None:
    """A safetensors file is refused, or holds all that its header tells of."""
    folder = _folder("header")
    (folder / "model.safetensors").write_bytes(data)
    try:
        assert examine(folder) > len(data)
        tensors = tensor_bytes(folder)
    except ModelInvalidError as error:
        check_refusal(error)
        return
    assert sum(size for _, size in tensors.values()) < len(data)


def tokenizer_files(data: bytes) -> None:
    """A folder's tokenizer is read, or refused in one line that names the file."""
    folder = _folder("tokenizer")
    parts = [*data.split(PART), b"", b""][:3]
    names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
    for name, content in zip(names, parts, strict=True):
        (folder / name).write_bytes(content)
        if not content and name != "tokenizer.json":
            (folder / name).unlink()
    try:
        files = read_tokenizer(folder)
    except ModelInvalidError as error:
        check_refusal(error, *names)
        return
    assert all(isinstance(text, str) for text in files.named.values())
    files.tokenizer.decode(files.tokenizer.encode("hi", add_special_tokens=False).ids)


def prompt_frames(data: bytes) -> None:
    """What the prompt process says is frames within the limit, each an answer or an error that is known."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(data)
        theirs.close()
        line = Line(ours)
        try:
            while True:
                body = line.receive(FRAME_BYTES, ends_s=None)
                assert len(body) <= FRAME_BYTES
                for reads in (decode_answer, decode_job):
                    try:
                        value = reads(body)
                    except UNREADABLE:
                        continue
                    assert reads(encode(value)) == value
        except (EOFError, FrameError):
            return


def image(data: bytes) -> None:
    """An image file becomes a picture within the bound, or is refused; the first byte says what it claims to be."""
    mime = _MIMES[data[0] % len(_MIMES)] if data else _MIMES[0]
    claimed = ImageInput(mime=mime, data=data[1:], name="image 1")
    try:
        (picture,) = read_images([claimed], max_pixels=MAX_PIXELS, enough=64 if data[:1] >= b"\x80" else None)
    except BadRequestError as error:
        check_refusal(error)
        return
    assert picture.mode == "RGB"
    assert picture.width * picture.height <= MAX_PIXELS


MODELS = (
    Target(run=model_name, share=80, max_bytes=256),
    Target(run=config_json, share=30, on_loop=False),
    Target(run=weights_index, share=10, on_loop=False),
    Target(run=weights_header, share=10, on_loop=False),
    Target(run=tokenizer_files, share=10, on_loop=False),
    Target(run=prompt_frames, share=10, on_loop=False),
    Target(run=image, share=10, on_loop=False, max_bytes=16_384),
)

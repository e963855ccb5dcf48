"""What a model's safetensors files say about themselves.

Knows no model and reads no weights: a header of some kilobytes lists every tensor's name, type, shape and place.
Invariant: of files that pass, each byte of data belongs to exactly one tensor, whose shape and type take that many.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Final

import msgspec

from llmws.errors import ModelInvalidError, printable

WEIGHTS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
MAX_INDEX_BYTES: Final = 64 * 2**20

_MAX_HEADER_BYTES: Final = 32 * 2**20
"""Largest header that is read, some 300,000 tensors in one file; in memory it takes ten times as much. Source: the
safetensors library takes 100 MB."""

_SHARD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}\.safetensors")
_DISTRIBUTED: Final = re.compile(r"shard-[0-9]{5}-model-[0-9]{5}-of-[0-9]{5}\.safetensors")
"""Source: `is_sharded_checkpoint` of transformers 5, which takes all the folder's files where one is named so."""

_PICKLES: Final = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".h5")

_FLOAT_BYTES: Final = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Types that become the model's dtype on loading; the others (quantised weights) stay as they are."""

_BITS: Final = {
    **{kind: 8 * size for kind, size in _FLOAT_BYTES.items()},
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16"), 16),
    **dict.fromkeys(("U32", "I32"), 32),
    **dict.fromkeys(("U64", "I64", "C64"), 64),
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}
"""Of one number. Source: `Dtype` of the safetensors library."""


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


_MAX_DIMENSIONS: Final = 64
"""Of a tensor, as in torch: the product of a million of them would hold all threads up for minutes."""


class _Tensor(msgspec.Struct):
    """Where a tensor lies within the data, which begins after the header."""

    dtype: str
    shape: Annotated[tuple[int, ...], msgspec.Meta(max_length=_MAX_DIMENSIONS)]
    data_offsets: tuple[int, int]


_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_tensor = msgspec.json.Decoder(_Tensor)


def files_of(folder: Path) -> list[Path]:
    """The files that hold the model's weights, by name.

    Others, such as an original checkpoint beside them, do not count.
    Source: transformers reads `model.safetensors`, else the files that `model.safetensors.index.json` names.

    Raises:
        ModelInvalidError: there are none, or the index names something outside the folder.
    """
    if any(_DISTRIBUTED.fullmatch(path.name) for path in folder.iterdir()):
        raise ModelInvalidError("it holds a distributed checkpoint (shard-….safetensors); put the whole model there")
    single, index = folder / WEIGHTS, folder / INDEX
    if single.is_file():
        return [single]
    if index.is_file():
        return index_files(index)
    suffixes = {path.suffix for path in folder.iterdir()}
    if ".safetensors" in suffixes:
        raise ModelInvalidError(f"it has neither {WEIGHTS} nor {INDEX}")
    if suffixes.intersection(_PICKLES):
        raise ModelInvalidError("its weights are pickles, which can run code; convert them to safetensors")
    raise ModelInvalidError("it has no *.safetensors file")


def index_files(index: Path) -> list[Path]:
    """The files that an index names, all of them beside it.

    Raises:
        ModelInvalidError: it is none, or names something else.
    """
    if index.stat().st_size > MAX_INDEX_BYTES:
        raise ModelInvalidError(f"{printable(index.name)} is larger than {MAX_INDEX_BYTES} bytes")
    try:
        # Decoded first: msgspec does not look into what it skips, and transformers then fails over it.
        names = sorted(set(msgspec.json.decode(index.read_bytes().decode(), type=_Index).weight_map.values()))
    except _UNREADABLE:
        raise ModelInvalidError(f"{printable(index.name)} is not an index") from None
    for name in names:
        if not _SHARD.fullmatch(name):
            raise ModelInvalidError(f"{printable(index.name)} names '{printable(name[:64])}', not a plain file name")
        if not (index.parent / name).is_file():
            raise ModelInvalidError(f"{name} is missing")
    return [index.parent / name for name in names]


def header(path: Path) -> bytes:
    """The JSON header of a safetensors file.

    Source: the safetensors format: 8 bytes little-endian length, then that many bytes of JSON.

    Raises:
        ModelInvalidError: the file does not begin with such a header.
    """
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= _MAX_HEADER_BYTES:
            reason = "cut short, or a git-lfs pointer"
            raise ModelInvalidError(f"{printable(path.name)} is not a safetensors file ({reason})")
        data = file.read(length)
    if len(data) != length:
        raise ModelInvalidError(f"{printable(path.name)} is cut short")
    return data


def tensor_bytes(folder: Path) -> dict[str, tuple[str, int]]:
    """(type, bytes in the file) of every tensor of the model, by name.

    Raises:
        ModelInvalidError: a header is not as the format says, or tells of data that the file has not got.
    """
    return {name: tensor for path in files_of(folder) for name, tensor in file_tensors(path).items()}


def file_tensors(path: Path) -> dict[str, tuple[str, int]]:
    """(type, bytes) of every tensor of one file, by name. Raises as `tensor_bytes`."""
    head = header(path)
    try:
        entries = msgspec.json.decode(head, type=dict[str, msgspec.Raw])
        tensors = {name: _tensor.decode(entry) for name, entry in entries.items() if name != "__metadata__"}
    except _UNREADABLE:
        raise _senseless(path) from None
    _check_places(path, tensors.values(), data_bytes=path.stat().st_size - 8 - len(head))
    return {name: (tensor.dtype, _size_bytes(tensor)) for name, tensor in tensors.items()}


def _check_places(path: Path, tensors: Iterable[_Tensor], *, data_bytes: int) -> None:
    """Source: `Metadata.validate` of the safetensors library: without holes, overlaps, or data that is nobody's."""
    told_bytes = 0
    for tensor in sorted(tensors, key=lambda each: each.data_offsets):
        start, end = tensor.data_offsets
        bits = _BITS.get(tensor.dtype)
        is_sound = start == told_bytes and start <= end and all(length >= 0 for length in tensor.shape)
        if not is_sound or (bits is not None and math.prod(tensor.shape) * bits != 8 * (end - start)):
            raise _senseless(path)
        told_bytes = end
    if told_bytes > data_bytes:
        raise ModelInvalidError(f"{printable(path.name)} is cut short")
    if told_bytes < data_bytes:
        raise _senseless(path)


def _size_bytes(tensor: _Tensor) -> int:
    start, end = tensor.data_offsets
    return end - start


def _senseless(path: Path) -> ModelInvalidError:
    return ModelInvalidError(f"{printable(path.name)} has a header that makes no sense")


def weights_bytes(folder: Path, *, dtype_bytes: int) -> int:
    """Memory that the weights will take in a dtype of that size. Reads headers only."""
    return sum(
        size * dtype_bytes // _FLOAT_BYTES[kind] if kind in _FLOAT_BYTES else size
        for kind, size in tensor_bytes(folder).values()
    )

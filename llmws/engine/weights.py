"""What safetensors files say about themselves.

Knows no model and reads no weights: a header of some kilobytes lists every tensor's name, type, shape and place.
"""

from __future__ import annotations

import struct
from pathlib import Path

import msgspec

from llmws.errors import ModelInvalidError
from llmws.tokenizer_files import read

_MAX_HEADER_BYTES = 100_000_000
"""Largest header that is read. Source: the limit of the safetensors library."""

_MAX_INDEX_BYTES = 64 * 2**20

_FLOAT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Types that become the model's dtype on loading; the others (quantised weights) stay as they are."""


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


class _Tensor(msgspec.Struct):
    """Where a tensor lies within the data, which begins after the header."""

    dtype: str
    data_offsets: tuple[int, int]


_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_tensor = msgspec.json.Decoder(_Tensor)


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the model's weights, by name.

    Others, such as an original checkpoint beside them, do not count.
    Source: transformers reads `model.safetensors`, else the files that `model.safetensors.index.json` names.

    Raises:
        ModelInvalidError: there are none, or the index names something outside the folder.
    """
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        raise ModelInvalidError("there is neither model.safetensors nor its index; pickled weights are never read")
    try:
        names = sorted(set(msgspec.json.decode(read(index, _MAX_INDEX_BYTES), type=_Index).weight_map.values()))
    except _UNREADABLE:
        raise ModelInvalidError("model.safetensors.index.json has no weight_map") from None
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise ModelInvalidError(f"model.safetensors.index.json names {name[:100]!r}, which is not in the folder")
    return [folder / name for name in names]


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
            raise ModelInvalidError(f"{path.name} is not a safetensors file")
        data = file.read(length)
    if len(data) != length:
        raise ModelInvalidError(f"{path.name} is cut short")
    return data


def tensor_bytes(folder: Path) -> dict[str, tuple[str, int]]:
    """(type, bytes in the file) of every tensor of the model, by name.

    Raises:
        ModelInvalidError: a header is not as the format says, or tells of data that the file has not got.
    """
    return {name: tensor for path in weight_files(folder) for name, tensor in _tensors(path).items()}


def _tensors(path: Path) -> dict[str, tuple[str, int]]:
    head = header(path)
    data_bytes = path.stat().st_size - 8 - len(head)
    tensors: dict[str, tuple[str, int]] = {}
    try:
        for name, entry in msgspec.json.decode(head, type=dict[str, msgspec.Raw]).items():
            if name != "__metadata__":
                tensor = _tensor.decode(entry)
                start, end = tensor.data_offsets
                if not 0 <= start <= end:
                    raise ModelInvalidError(f"{path.name} has a header that makes no sense")
                if end > data_bytes:
                    raise ModelInvalidError(f"{path.name} is cut short")
                tensors[name] = tensor.dtype, end - start
    except _UNREADABLE:
        raise ModelInvalidError(f"{path.name} has a header that makes no sense") from None
    return tensors


def weights_bytes(folder: Path, *, dtype_bytes: int) -> int:
    """Memory that the weights will take in a dtype of that size. Reads headers only."""
    return sum(
        size * dtype_bytes // _FLOAT_BYTES[kind] if kind in _FLOAT_BYTES else size
        for kind, size in tensor_bytes(folder).values()
    )

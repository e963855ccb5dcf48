"""What safetensors files may say of themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmws.errors import ModelInvalidError
from llmws.weight_files import tensor_bytes
from tests.support.safetensors_file import safetensors_bytes

SENSELESS = "model.safetensors has a header that makes no sense"
CUT_SHORT = "model.safetensors is cut short"


def entry(start: int, end: int, *shape: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def weights(folder: Path, header: object, *, data_bytes: int, name: str = "model.safetensors") -> Path:
    (folder / name).write_bytes(safetensors_bytes(header, bytes(data_bytes)))
    return folder


def test_tensors_fill_the_file(tmp_path: Path) -> None:
    header = {"b": entry(8, 10, 1, dtype="BF16"), "a": entry(0, 8, 2, 1), "c": entry(10, 11, 2, dtype="F4")}
    found = tensor_bytes(weights(tmp_path, header, data_bytes=11))
    assert found == {"b": ("BF16", 2), "a": ("F32", 8), "c": ("F4", 1)}


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"a": entry(0, 8, 2), "b": entry(4, 12, 2)}, SENSELESS),
        ({"a": entry(0, 4, 1), "b": entry(8, 12, 1)}, SENSELESS),
        ({"a": entry(0, 8, 2), "b": entry(0, 8, 2)}, SENSELESS),
        ({"a": entry(0, 8, 2)}, SENSELESS),
        ({"a": entry(4, 12, 2)}, SENSELESS),
        ({"a": entry(0, 12, 1000)}, SENSELESS),
        ({"a": entry(0, 12, -3, -1)}, SENSELESS),
        ({"a": entry(0, 12, 3, dtype="F64")}, SENSELESS),
        ({"a": entry(0, 16, 4)}, CUT_SHORT),
        ({"a": entry(0, 2**70, 2**68)}, CUT_SHORT),
        ({"a": entry(0, 12, 3, *[1] * 64)}, SENSELESS),
    ],
    ids=[
        "overlap", "hole", "twice", "rest", "front", "shape", "negative", "type", "beyond", "far beyond", "dimensions",
    ],
)  # fmt: skip
def test_a_header_that_lies_is_refused(header: object, reason: str, tmp_path: Path) -> None:
    """Of the twelve bytes of data."""
    with pytest.raises(ModelInvalidError) as caught:
        tensor_bytes(weights(tmp_path, header, data_bytes=12))
    assert str(caught.value) == reason


def test_files_that_transformers_would_read_instead_are_refused(tmp_path: Path) -> None:
    weights(tmp_path, {}, data_bytes=0)
    weights(tmp_path, {}, data_bytes=0, name="shard-00001-model-00001-of-00001.safetensors")
    with pytest.raises(ModelInvalidError, match="it holds a distributed checkpoint"):
        tensor_bytes(tmp_path)

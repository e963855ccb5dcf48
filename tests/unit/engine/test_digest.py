"""Digests tell models apart and do not depend on where they lie."""

import json
import struct

import pytest

from llmws.engine.digest import model_digest, tokenizer_digest
from llmws.errors import ModelInvalidError
from llmws.weight_files import tensor_bytes, weights_bytes
from tests.support.safetensors_file import safetensors_bytes


def write_weights(path, data, name="w", dtype="F32"):
    count = len(data) // {"F32": 4, "BF16": 2, "I8": 1}[dtype]
    entry = {"dtype": dtype, "shape": [count], "data_offsets": [0, len(data)]}
    path.write_bytes(safetensors_bytes({"__metadata__": {"format": "pt"}, name: entry}, data))


def shard(folder, *more):
    """The weights as two files under an index, and any other files that it is to name."""
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    write_weights(folder / "model-2.safetensors", bytes(6), name="half", dtype="BF16")
    names = {"w": "model-1.safetensors", "half": "model-2.safetensors", **{name: name for name in more}}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    write_weights(folder / "model.safetensors", bytes(400_000))
    return folder


def test_the_same_files_elsewhere_have_the_same_digests(folder):
    before = model_digest(folder), tokenizer_digest(folder)
    moved = folder.rename(folder.parent / "moved")

    assert (model_digest(moved), tokenizer_digest(moved)) == before
    assert all(len(digest) == 64 and int(digest, 16) for digest in before)


@pytest.mark.parametrize("change", ["config", "values", "name", "more"])
def test_another_model_has_another_digest(folder, change):
    before = model_digest(folder)
    if change == "config":
        (folder / "config.json").write_text('{"model_type": "gpt2"}')
    elif change == "values":
        write_weights(folder / "model.safetensors", bytes([1]) * 400_000)
    elif change == "name":
        write_weights(folder / "model.safetensors", bytes(400_000), name="v")
    else:
        shard(folder)

    assert model_digest(folder) != before


def test_a_chat_template_belongs_to_the_tokenizer(folder):
    model, tokenizer = model_digest(folder), tokenizer_digest(folder)
    (folder / "chat_template.jinja").write_text("{{ messages }}")

    assert model_digest(folder) == model
    assert tokenizer_digest(folder) != tokenizer


def test_further_chat_templates_belong_to_it_too(folder):
    before = tokenizer_digest(folder)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "default.jinja").write_text("{{ messages }}")

    assert tokenizer_digest(folder) != before


def test_a_folder_named_like_a_file_of_the_tokenizer_does_not_count(folder):
    before = tokenizer_digest(folder)
    (folder / "vocab.txt").mkdir()

    assert tokenizer_digest(folder) == before


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"PK", "not a safetensors file"), (bytes(100), "not a safetensors"), (struct.pack("<Q", 9) + b"{", "cut short")],
)
def test_what_is_not_safetensors_is_refused(folder, data, message):
    (folder / "model.safetensors").write_bytes(data)

    with pytest.raises(ModelInvalidError, match=message):
        model_digest(folder)


def test_a_folder_without_a_configuration_is_refused(folder):
    (folder / "config.json").unlink()

    with pytest.raises(ModelInvalidError, match=r"config\.json"):
        model_digest(folder)


def test_floats_take_the_models_dtype_and_the_rest_stays(folder):
    write_weights(folder / "model-3.safetensors", bytes(10), name="quantised", dtype="I8")
    shard(folder, "model-3.safetensors")

    assert tensor_bytes(folder) == {"w": ("F32", 400_000), "half": ("BF16", 6), "quantised": ("I8", 10)}
    assert weights_bytes(folder, dtype_bytes=4) == 400_000 + 12 + 10
    assert weights_bytes(folder, dtype_bytes=2) == 200_000 + 6 + 10


def test_files_that_are_not_the_models_do_not_count(folder):
    """As `consolidated.safetensors` beside the weights in some repositories."""
    digest = model_digest(folder)
    write_weights(folder / "consolidated.safetensors", bytes(400_000))

    assert tensor_bytes(folder) == {"w": ("F32", 400_000)}
    assert model_digest(folder) == digest


@pytest.mark.parametrize("name", ["../other/model.safetensors", "/etc/passwd", "missing.safetensors"])
def test_an_index_that_points_elsewhere_is_refused(folder, name):
    (folder.parent / "other").mkdir()
    write_weights(folder.parent / "other" / "model.safetensors", bytes(4))
    shard(folder, name)

    with pytest.raises(ModelInvalidError, match=r"not a plain file name|is missing"):
        model_digest(folder)


@pytest.mark.parametrize("index", ["{}", "[]", "{", '{"weight_map": 3}'])
def test_an_index_without_a_map_is_refused(folder, index):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(index)

    with pytest.raises(ModelInvalidError, match="is not an index"):
        tensor_bytes(folder)

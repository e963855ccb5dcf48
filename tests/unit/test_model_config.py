"""What a configuration may say, whoever reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmws.errors import ModelInvalidError
from llmws.model_config import check_config

LLAMA: dict[str, Any] = {"model_type": "llama", "num_hidden_layers": 2}


def written(folder: Path, content: str) -> Path:
    (folder / "config.json").write_text(content)
    return folder


def refusal(folder: Path, **changes: object) -> str:
    with pytest.raises(ModelInvalidError) as caught:
        check_config(written(folder, json.dumps(LLAMA | changes)))
    return str(caught.value)


def test_the_model_type_is_told(tmp_path: Path) -> None:
    assert check_config(written(tmp_path, json.dumps(LLAMA))) == "llama"


@pytest.mark.parametrize("number", ["Infinity", "-Infinity", "NaN", '{"__float__": "Infinity"}'])
def test_numbers_that_json_has_not_are_read_as_transformers_writes_them(number: str, tmp_path: Path) -> None:
    """The step limits of a Mamba 2 are written so, by old versions and by new ones."""
    content = f'{{"model_type": "mamba2", "time_step_limit": [0.0, {number}]}}'
    assert check_config(written(tmp_path, content)) == "mamba2"


@pytest.mark.parametrize("value", ["inf", 1, {"a": 1}, ["Infinity"], None])
def test_nothing_else_is_taken_for_such_a_number(value: object, tmp_path: Path) -> None:
    assert refusal(tmp_path, x={"__float__": value}) == "config.json has the private key '__float__'"


def test_such_a_number_hides_no_other_key(tmp_path: Path) -> None:
    hidden = {"__float__": "NaN", "auto_map": {}}
    assert refusal(tmp_path, x=hidden) == "config.json has the private key '__float__'"


@pytest.mark.parametrize(
    "content", ['{"model_type": "llama", "model_type": "evil"}', '{"model_type": "a", "x": [{"y": 1, "y": 1}]}']
)
def test_two_readers_can_not_be_told_two_things(content: str, tmp_path: Path) -> None:
    with pytest.raises(ModelInvalidError, match=r"config\.json says something twice"):
        check_config(written(tmp_path, content))


@pytest.mark.parametrize(
    "key", ["num_hidden_layers", "n_layer", "num_labels", "_num_labels", "depth", "encoder_layers", "num_experts"]
)
def test_what_is_built_piece_by_piece_has_an_end(key: str, tmp_path: Path) -> None:
    assert check_config(written(tmp_path, json.dumps(LLAMA | {key: 4096}))) == "llama"
    assert refusal(tmp_path, text_config={key: 4097}) == f"config.json asks for more than 4096 parts ({key})"
    assert refusal(tmp_path, **{key: 1e30}) == f"config.json asks for more than 4096 parts ({key})"


@pytest.mark.parametrize("key", ["fusion_config", "distributed_config"])
def test_how_other_models_are_built_is_not_the_folder_s_business(key: str, tmp_path: Path) -> None:
    assert refusal(tmp_path, **{key: {"x": True}}) == f"config.json changes how models are built ({key})"


def test_other_repositories_are_not_named(tmp_path: Path) -> None:
    message = "config.json names another repository (backbone)"
    assert refusal(tmp_path, vision_config={"model_type": "dpt", "backbone": "evil/repo"}) == message


def test_a_number_longer_than_python_reads_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(ModelInvalidError, match=r"config\.json is not valid JSON"):
        check_config(written(tmp_path, '{"model_type": "llama", "x": ' + "9" * 5000 + "}"))

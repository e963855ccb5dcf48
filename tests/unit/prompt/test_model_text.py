"""Reading the text side of a model's folder. That it reads the same as transformers is tests/contract's business."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from llmws.engine_api import Turn
from llmws.errors import LlmwsError
from llmws.prompt import model_text
from llmws.prompt.render import tokenize
from llmws.protocol import ErrorCode
from tests.support import model_folders as folders

HI = [Turn(role="user", content="hi")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folders.write_model(
        tmp_path, folders.byte_level(), tokenizer_config={"chat_template": "[{{ messages[0].content }}]"}
    )
    return tmp_path


def test_a_model_renders_and_tokenises(folder: Path) -> None:
    model = model_text.load(folder)
    assert model.tokenizer.decode(tokenize(HI, model)) == "[hi]"


def test_without_a_template_the_contents_stand_one_after_another(tmp_path: Path) -> None:
    folders.write_model(tmp_path, folders.byte_level("<s>", bos="<s>"))
    model = model_text.load(tmp_path)
    ids = tokenize([Turn(role="system", content="a"), Turn(role="user", content="b")], model)
    assert model.tokenizer.decode(ids, skip_special_tokens=False) == "<s>ab"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"vocab_size": 50}, 50),
        ({"vocab_size": None, "text_config": {"vocab_size": 70}}, 70),
        ({"vocab_size": "x"}, folders.byte_level().get_vocab_size()),
        ({"vocab_size": 50, "time_step_limit": [0.0, math.inf]}, 50),
    ],
)
def test_the_vocabulary_is_as_large_as_the_configuration_says(
    tmp_path: Path, config: dict[str, object], expected: int
) -> None:
    folders.write_model(tmp_path, folders.byte_level(), config=config)
    assert model_text.load(tmp_path).vocab_size == expected


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("tokenizer.json", None, "the model's tokenizer.json cannot be used: No such file or directory"),
        ("tokenizer.json", "{}", "the model's tokenizer.json cannot be used: "),
        ("tokenizer_config.json", "{", "the model's tokenizer_config.json cannot be used: not valid JSON"),
        ("tokenizer_config.json", "[" * 5000, "the model's tokenizer_config.json cannot be used: not valid JSON"),
        ("tokenizer_config.json", "[]", "the model's tokenizer_config.json cannot be used: not a JSON object"),
        ("tokenizer_config.json", " " * (4 * 2**20 + 1), "cannot be used: larger than 4194304 bytes"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {"content": "y"}}}', "its tokens cannot be added"),
        (
            "tokenizer_config.json",
            '{"added_tokens_decoder": {"400": {"content": "y", "lstrip": "no"}}}',
            "the model's tokenizer_config.json cannot be used: its tokens cannot be added",
        ),
        ("tokenizer_config.json", '{"chat_template": 5}', "its chat template is not text"),
        (
            "tokenizer_config.json",
            '{"chat_template": [{"name": "a", "template": "b"}]}',
            "no chat template named default",
        ),
        ("additional_chat_templates/rag.jinja", "x", "no template named default"),
        ("chat_template.jinja", " " * (2**20 + 1), "cannot be used: larger than 1048576 bytes"),
        ("chat_template.jinja", "\udcff", "the model's chat_template.jinja cannot be used: not UTF-8"),
        ("chat_template.jinja", "{% if %}", "the model's chat template is not valid: "),
        ("config.json", "[]", "the model's config.json cannot be used: not a JSON object"),
    ],
)
def test_a_broken_file_is_named_with_what_is_wrong(folder: Path, name: str, content: str | None, reason: str) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(LlmwsError) as caught:
        model_text.load(folder)
    assert caught.value.code == ErrorCode.MODEL_FAILED
    assert reason in str(caught.value)


def test_odd_entries_of_a_configuration_are_passed_over(folder: Path) -> None:
    """Flags that look like tokens, tokens without text, a list that is no list: the tokenizer itself is the truth."""
    odd = {
        "add_bos_token": True,
        "eos_token": None,
        "unk_token": {"text": 1},
        "pad_token": 7,
        "extra_special_tokens": "x",
        "added_tokens_decoder": [],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(odd | {"chat_template": "{{ messages[0].content }}"}))
    model = model_text.load(folder)
    assert model.tokenizer.decode(tokenize(HI, model)) == "hi"


@pytest.mark.parametrize(("template", "text"), [("[{}]", "<s>[hi]"), ("{{{{ bos_token }}}}[{}]", "<s>[hi]")])
def test_of_a_model_with_a_processor_a_prompt_begins_as_its_processor_has_it(
    tmp_path: Path, template: str, text: str
) -> None:
    """With one BOS, whether the template writes it or not; older folders have the template in a file of their own."""
    folders.write_model(tmp_path, folders.byte_level("<s>", bos="<s>"), tokenizer_config={"bos_token": "<s>"})
    (tmp_path / "preprocessor_config.json").write_text("{}")
    source = template.format("{{ messages[0].content }}")
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": source}))
    model = model_text.load(tmp_path)
    assert model.tokenizer.decode(tokenize(HI, model), skip_special_tokens=False) == text


def test_the_fingerprint_changes_with_every_file_that_is_read(folder: Path) -> None:
    seen = [model_text.fingerprint(folder)]
    more = ("chat_template.json", "preprocessor_config.json", "processor_config.json")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "config.json", *more):
        path = folder / name
        path.write_text(path.read_text() + " " if path.exists() else "{}")
        seen.append(model_text.fingerprint(folder))
    (folder / "chat_template.jinja").write_text("x")
    seen.append(model_text.fingerprint(folder))
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("x")
    seen.append(model_text.fingerprint(folder))
    assert len(set(seen)) == len(seen)
    assert model_text.fingerprint(folder) == seen[-1]

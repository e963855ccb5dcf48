"""Model names: what is one, and that nothing else ever becomes a path."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmws.catalog import ModelName
from llmws.errors import BadRequestError, printable
from tests.support.hostile_names import HOSTILE


@pytest.mark.parametrize("name", ["a", "0", "Llama-3.1-8B-Instruct", "llmws-guide", "x" * 128, "a_b.c-d", "console"])
def test_ordinary_names_are_names(name: str) -> None:
    assert (ModelName(name).text, str(ModelName(name))) == (name, name)


@pytest.mark.parametrize("name", HOSTILE)
def test_anything_else_is_refused_in_printable_words(name: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        ModelName(name)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


@given(st.text())
def test_a_name_is_one_harmless_path_component(text: str) -> None:
    try:
        name = ModelName(text).text
    except BadRequestError:
        return
    assert name == text
    assert name.isascii()
    assert not set(name) & set("/\\:\0\n ~$%*?\"'<>|&;`")
    assert name[0].isalnum()
    assert ".." not in name


def test_printable_escapes_what_a_terminal_would_act_on() -> None:
    assert printable("a\x1b[2J\r\n\u202e\udcffé") == "a\\x1b[2J\\r\\n\\u202e\\udcffé"

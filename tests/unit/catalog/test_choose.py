"""Which model is served, decided without looking at any file."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from llmws.catalog import auto_select, find
from llmws.engine_api import ModelRef
from llmws.errors import ModelNotFoundError


def refs(*paths: str) -> list[ModelRef]:
    return [
        ModelRef(
            name=path.rpartition("/")[2],
            path=path,
            location=f"/srv/{path}",
            size_bytes=1,
            source="var" if path.startswith("var/") else "models",
        )
        for path in paths
    ]


MODELS = refs("models/alpha", "models/llmws-guide", "models/zeta", "var/models/own")


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("alpha", "models/alpha"),
        ("models/alpha", "models/alpha"),
        ("own", "var/models/own"),
        ("var/models/own", "var/models/own"),
        ("./models/alpha", None),
        ("models/own", None),
        ("ALPHA", None),
        ("alph", None),
        ("/srv/models/alpha", None),
        ("../models/alpha", None),
        ("", None),
    ],
)
def test_a_model_is_found_by_exactly_its_name_or_path(wanted: str, expected: str | None) -> None:
    found = find(MODELS, wanted)
    assert (found.path if found else None) == expected


@given(st.text())
def test_no_other_text_finds_a_model(text: str) -> None:
    assume(text not in {name for model in MODELS for name in (model.name, model.path)})
    assert find(MODELS, text) is None
    assert auto_select(MODELS, preferred=None, last=text) == MODELS[0]
    with pytest.raises(ModelNotFoundError):
        auto_select(MODELS, preferred=text, last=None)


@pytest.mark.parametrize(
    ("models", "preferred", "last", "expected"),
    [
        ([], None, None, None),
        ([], None, "alpha", None),
        (refs("models/llmws-guide"), None, None, "models/llmws-guide"),
        (MODELS, None, None, "models/alpha"),
        (refs("models/llmws-guide", "models/zeta"), None, None, "models/zeta"),
        (refs("models/llmws-guide", "var/models/own"), None, None, "var/models/own"),
        (refs("models/zeta", "var/models/alpha"), None, None, "models/zeta"),
        (MODELS, None, "zeta", "models/zeta"),
        (MODELS, None, "models/llmws-guide", "models/llmws-guide"),
        (MODELS, None, "deleted", "models/alpha"),
        (MODELS, "own", "zeta", "var/models/own"),
        (MODELS, "models/llmws-guide", None, "models/llmws-guide"),
    ],
)
def test_the_model_at_start(
    models: list[ModelRef], preferred: str | None, last: str | None, expected: str | None
) -> None:
    """The wish, else the last one, else the first, one's own before the guide."""
    chosen = auto_select(models, preferred=preferred, last=last)
    assert (chosen.path if chosen else None) == expected


@pytest.mark.parametrize(("models", "found"), [([], "none"), (MODELS, "alpha, llmws-guide, zeta, own")])
def test_a_wish_that_cannot_be_met_is_not_replaced(models: list[ModelRef], found: str) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        auto_select(models, preferred="x\x1b", last="alpha")
    assert str(caught.value) == f"there is no model 'x\\x1b'; found: {found}"

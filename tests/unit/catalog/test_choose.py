"""Which model is served, decided without looking at any file."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from llmws.catalog import candidates, find
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
    assert candidates(MODELS, preferred=None, last=text)[0] == MODELS[0]
    with pytest.raises(ModelNotFoundError):
        candidates(MODELS, preferred=text, last=None)


@pytest.mark.parametrize(
    ("models", "preferred", "last", "expected"),
    [
        ([], None, None, []),
        ([], None, "alpha", []),
        (refs("models/llmws-guide"), None, None, ["models/llmws-guide"]),
        (MODELS, None, None, ["models/alpha", "models/zeta", "var/models/own", "models/llmws-guide"]),
        (refs("models/llmws-guide", "var/models/own"), None, None, ["var/models/own", "models/llmws-guide"]),
        (refs("models/zeta", "var/models/alpha"), None, None, ["models/zeta", "var/models/alpha"]),
        (MODELS, None, "zeta", ["models/zeta", "models/alpha", "var/models/own", "models/llmws-guide"]),
        (MODELS, None, "models/llmws-guide", ["models/llmws-guide", "models/alpha", "models/zeta", "var/models/own"]),
        (MODELS, None, "deleted", ["models/alpha", "models/zeta", "var/models/own", "models/llmws-guide"]),
        (MODELS, "own", "zeta", ["var/models/own"]),
        (MODELS, "models/llmws-guide", None, ["models/llmws-guide"]),
    ],
)
def test_the_models_to_begin_with(
    models: list[ModelRef], preferred: str | None, last: str | None, expected: list[str]
) -> None:
    """The wish alone; else the last one, then the others, one's own before the guide."""
    assert [model.path for model in candidates(models, preferred=preferred, last=last)] == expected


@pytest.mark.parametrize(("models", "found"), [([], "none"), (MODELS, "alpha, llmws-guide, zeta, own")])
def test_a_wish_that_cannot_be_met_is_not_replaced(models: list[ModelRef], found: str) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        candidates(models, preferred="x\x1b", last="alpha")
    assert str(caught.value) == f"there is no model 'x\\x1b'; found: {found}"

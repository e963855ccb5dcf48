"""SECURITY.md is held by what it names: every guarantee by a test that exists."""

from __future__ import annotations

import ast
import re

from tests.support.paths import ROOT

TEXT = (ROOT / "SECURITY.md").read_text()


def guarantees() -> dict[int, str]:
    """The numbered paragraphs."""
    section = TEXT.split("## Guarantees")[1].split("\n## ")[0]
    parts = re.split(r"^(\d+)\. ", section, flags=re.MULTILINE)
    return {int(number): text for number, text in zip(parts[1::2], parts[2::2], strict=True)}


def names_of_tests() -> set[str]:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, functions) and node.name.startswith("test_")
    }


def test_the_guarantees_are_numbered_without_a_gap() -> None:
    assert list(guarantees()) == list(range(1, len(guarantees()) + 1))


def test_every_guarantee_names_a_test_and_every_test_named_exists() -> None:
    known = names_of_tests()
    named = {number: re.findall(r"`(test_\w+)`", text) for number, text in guarantees().items()}
    assert {number for number, names in named.items() if not names} == set()
    assert {name for names in named.values() for name in names} - known == set()

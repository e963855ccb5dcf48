"""The lists of planted faults apply to the product as it is: a row that no longer does would prove nothing."""

from __future__ import annotations

import os
import select
from pathlib import Path

import pytest
from mutants.__main__ import MUTANTS, ROOT, outcome_of


def test_what_each_mutant_replaces_stands_once_in_its_file() -> None:
    found = {each.breaks: (ROOT / each.file).read_text().count(each.before) for each in MUTANTS}

    assert {breaks: count for breaks, count in found.items() if count != 1} == {}


def test_each_mutant_has_a_name_of_its_own_changes_something_and_names_tests_that_are_there() -> None:
    assert len({each.breaks for each in MUTANTS}) == len(MUTANTS)
    for each in MUTANTS:
        assert each.before != each.after, each.breaks
        assert (ROOT / each.tests.split()[0].partition("::")[0]).exists(), each.breaks


@pytest.mark.parametrize(
    ("status", "outcome"), [(0, "survived"), (1, "killed"), (2, "broken"), (4, "broken"), (5, "broken")]
)
def test_only_a_test_that_fails_kills(status: int, outcome: str, tmp_path: Path) -> None:
    """Not one that cannot be collected, is not there, or is not chosen."""
    assert outcome_of(["sh", "-c", f"exit {status}"], folder=tmp_path, environment={}, timeout_s=60) == outcome


def test_what_takes_too_long_ends_with_all_that_it_has_started(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "alive")
    end = os.open(tmp_path / "alive", os.O_RDONLY | os.O_NONBLOCK)
    try:
        command = ["sh", "-c", "(printf x; exec sleep 600) >alive & wait"]
        assert outcome_of(command, folder=tmp_path, environment=os.environ, timeout_s=1.0) == "timed out"
        assert os.read(end, 9) == b"x"
        select.select([end], [], [], 10)
        assert os.read(end, 9) == b"", "it is still there"
    finally:
        os.close(end)

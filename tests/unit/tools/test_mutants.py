"""The lists of planted faults apply to the product as it is: a row that no longer does would prove nothing."""

from __future__ import annotations

from mutants.__main__ import MUTANTS, ROOT


def test_what_each_mutant_replaces_stands_once_in_its_file() -> None:
    found = {each.breaks: (ROOT / each.file).read_text().count(each.before) for each in MUTANTS}

    assert {breaks: count for breaks, count in found.items() if count != 1} == {}


def test_each_mutant_has_a_name_of_its_own_changes_something_and_names_tests_that_are_there() -> None:
    assert len({each.breaks for each in MUTANTS}) == len(MUTANTS)
    for each in MUTANTS:
        assert each.before != each.after, each.breaks
        assert (ROOT / each.tests.split()[0].partition("::")[0]).exists(), each.breaks

"""What a hunt says of itself: how often it ran what, and whether that was often enough."""

import pytest

from tests.fuzz.__main__ import Outcome, sum_up
from tests.fuzz.target import Target
from tests.fuzz.watch import Counts, Watch, counts_in


def reader(data: bytes) -> int:
    """An execution says itself how long it took."""
    return len(data)


TARGET = Target(run=reader, share=1)


def test_an_input_that_is_run_once_more_counts_once(tmp_path):
    watch = Watch(TARGET, tmp_path / "notes")
    for data in (b"1", b"333", b"22"):
        watch(data)
    assert counts_in(tmp_path / "notes") == Counts(executions=3, repetitions=2, longest_ns=3)


@pytest.mark.parametrize(("executions", "status"), [(9, 1), (10, 0)])
def test_a_target_that_ran_too_seldom_fails_the_whole_and_is_named(executions, status, capsys):
    outcome = Outcome(target=TARGET, runs=10, counts=Counts(executions=executions), took_s=1.0)
    assert sum_up([outcome], 1.0) == status
    assert ("less often than asked for: reader" in capsys.readouterr().out) == bool(status)

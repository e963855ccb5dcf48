"""Repositories made to attack whoever serves them: each is refused with its reason, or served like any other.

All go together through what clients and the command line can make a server do, in one process that is listened to.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.security.poisoned.canary import ENVIRONMENT, SECRET, Canary
from tests.security.poisoned.folders import tiny_llama
from tests.security.poisoned.gauntlet import Result
from tests.security.poisoned.repositories import POISONS

ROOT = Path(__file__).parents[3]
WAIT_S = 120.0


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Canary]:
    canary = Canary(tmp_path_factory.mktemp("poisoned") / "canary")
    yield canary
    canary.close()


@pytest.fixture(scope="module")
def results(canary: Canary) -> dict[str, Result]:
    """What came of each, and in the end of the process too: `good` is one of them."""
    home = canary.marks.parents[1]
    models = home / "models"
    tiny_llama(models / "good")
    for name, poison in POISONS.items():
        poison.spoil(tiny_llama(models / name), canary)
    (home / "state").mkdir()
    environment = {
        **os.environ,
        ENVIRONMENT: SECRET,
        "HF_ENDPOINT": canary.url,
        "HF_HOME": str(home / "hub"),
        "HOME": str(home),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.security.poisoned.gauntlet",
            str(models),
            str(home / "state"),
            str(canary.secret),
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        check=False,
        timeout=WAIT_S,
    )
    assert done.returncode == 0, done.stderr.decode()[-4000:]
    found = [msgspec.json.decode(line, type=Result) for line in done.stdout.splitlines()]
    assert [each.name for each in found] == sorted(["good", *POISONS])
    return {each.name: each for each in found}


def begins(said: str | None, expected: str | None) -> bool:
    return said is None if expected is None else said is not None and said.startswith(expected)


@pytest.mark.parametrize("name", POISONS)
def test_a_poisoned_repository_is_refused_for_its_reason_or_serves_as_any_other(
    name: str, results: dict[str, Result]
) -> None:
    poison, result = POISONS[name], results[name]
    assert begins(result.offered, poison.refused), result.offered
    assert begins(result.loaded, poison.loaded), result.loaded
    assert begins(result.prompted, poison.prompted), result.prompted
    is_served = poison.refused is poison.loaded is poison.prompted is None
    assert bool(result.answer) == is_served
    assert result.estimated


@pytest.mark.parametrize("name", POISONS)
def test_nothing_is_run_opened_or_asked_for(name: str, results: dict[str, Result]) -> None:
    assert results[name].spied == []


@pytest.mark.parametrize("name", POISONS)
def test_no_secret_is_told_and_no_control_character(name: str, results: dict[str, Result]) -> None:
    result = results[name]
    said = " ".join(filter(None, (result.offered, result.loaded, result.prompted, result.answer, result.listed)))
    assert SECRET not in said + result.estimated
    refusals = " ".join(filter(None, (result.offered, result.loaded, result.prompted)))
    assert refusals.isprintable()


@pytest.mark.parametrize("name", POISONS)
def test_the_model_beside_it_says_the_same_afterwards(name: str, results: dict[str, Result]) -> None:
    assert results[name].good == results["good"].good
    assert len(results[name].good) > 0


@pytest.mark.usefixtures("results")
def test_no_mark_is_left_and_nobody_has_called(canary: Canary) -> None:
    assert canary.seen() == []

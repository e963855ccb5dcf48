"""Repositories made to attack whoever serves them: each is refused with its reason, or served like any other.

All go together through what clients and the command line can make a server do, in one process that is listened to.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.security.poisoned.canary import ENVIRONMENT, SECRET, Canary
from tests.security.poisoned.firing import FIRES, UNPROVABLE
from tests.security.poisoned.folders import tiny_llama
from tests.security.poisoned.gauntlet import Report, Result
from tests.security.poisoned.repositories import POISONS
from tests.support.paths import ROOT

WAIT_S = 240.0


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Canary]:
    canary = Canary(tmp_path_factory.mktemp("poisoned") / "canary")
    yield canary
    canary.close()


@pytest.fixture(scope="module")
def report(canary: Canary) -> Report:
    """What came of each, of `good` too."""
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
    places = map(str, (models, home / "state", canary.secret, canary.marks))
    done = subprocess.run(
        [sys.executable, "-m", "tests.security.poisoned.gauntlet", *places],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        check=False,
        timeout=WAIT_S,
    )
    assert done.returncode == 0, done.stderr.decode()[-4000:]
    report = msgspec.json.decode(done.stdout, type=Report)
    assert [each.name for each in report.results] == sorted(["good", *POISONS])
    return report


@pytest.fixture(scope="module")
def results(report: Report) -> dict[str, Result]:
    return {each.name: each for each in report.results}


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


def test_no_mark_is_left_and_nobody_has_called(report: Report, canary: Canary) -> None:
    assert (report.marks, canary.was_called()) == ([], False)


def test_without_the_walls_the_payloads_do_fire(report: Report) -> None:
    """Each mark and each secret that was not seen above would have been."""
    assert report.fired == list(FIRES)


def test_what_cannot_be_shown_to_fire_says_why() -> None:
    assert UNPROVABLE.keys() & FIRES.keys() == set()
    assert UNPROVABLE.keys() | FIRES.keys() <= POISONS.keys()


def test_the_listener_is_heard(tmp_path: Path) -> None:
    canary = Canary(tmp_path / "canary")
    socket.create_connection(canary.address, timeout=WAIT_S).close()
    assert (canary.was_called(), canary.was_called()) == (True, False)
    canary.close()


def test_the_spy_hears_what_it_listens_for(report: Report) -> None:
    assert [act for act, said in report.heard.items() if not said] == []

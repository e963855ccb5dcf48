"""How long the fault lanes run, and the figures at the end of a run."""

import pytest

from tests.faults.tally import Tally

_TALLY = pytest.StashKey[Tally]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=20, help="how often a server is killed with -9, over all kinds")
    parser.addoption("--client-kills", type=int, default=4, help="how often a client of each kind is killed with -9")
    parser.addoption("--every-bit", action="store_true", help="flip all bits under whole openings, of longer logs too")
    parser.addoption("--network-runs", type=int, default=40, help="how many users ask through a bad network")
    parser.addoption("--network-seed", type=int, help="repeat this one of the runs through it")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_TALLY] = Tally(config.getoption("--kills"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash[_TALLY].lines():
        terminalreporter.write_line(line)


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Tally:
    return request.config.stash[_TALLY]


@pytest.fixture
def client_kills(request: pytest.FixtureRequest) -> int:
    return request.config.getoption("--client-kills")


@pytest.fixture
def network_runs(request: pytest.FixtureRequest) -> int:
    return request.config.getoption("--network-runs")


@pytest.fixture
def network_seed(request: pytest.FixtureRequest) -> int | None:
    return request.config.getoption("--network-seed")

"""How long the fault lanes run."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=5, help="how often the server is killed with -9")
    parser.addoption("--network-runs", type=int, default=40, help="how many users ask through a bad network")
    parser.addoption("--network-seed", type=int, help="repeat this one of the runs through it")


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> int:
    return request.config.getoption("--kills")


@pytest.fixture
def network_runs(request: pytest.FixtureRequest) -> int:
    return request.config.getoption("--network-runs")


@pytest.fixture
def network_seed(request: pytest.FixtureRequest) -> int | None:
    return request.config.getoption("--network-seed")

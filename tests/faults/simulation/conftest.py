"""How many histories are simulated, or which one."""

import logging
from collections.abc import Iterator

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--simulation-seeds", type=int, default=10, help="how many histories are simulated")
    parser.addoption("--simulation-seed", type=int, help="simulate this one history")


@pytest.fixture
def simulation_seeds(request: pytest.FixtureRequest) -> range:
    seed = request.config.getoption("--simulation-seed")
    if seed is not None:
        return range(seed, seed + 1)
    return range(request.config.getoption("--simulation-seeds"))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Everything that fails here is logged, thousands of times."""
    logger = logging.getLogger("llmws")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)

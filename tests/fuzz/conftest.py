"""How long the storm lasts, and the servers it is let loose on."""

import pytest

from tests.support.echo_server import serve

__all__ = ["serve"]

SHORT_STORM_S = 1.0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--storm-seconds", type=float, help="how long strangers storm the server; its lag is then judged")


@pytest.fixture
def storm_s(request: pytest.FixtureRequest) -> float:
    """How long the storm lasts."""
    return request.config.getoption("--storm-seconds") or SHORT_STORM_S


@pytest.fixture
def is_judged(request: pytest.FixtureRequest) -> bool:
    """Whether the machine is quiet enough that times mean something."""
    return request.config.getoption("--storm-seconds") is not None

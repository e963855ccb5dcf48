import pytest

from tests.integration.client.fake_server import FakeServer
from tests.integration.client.harness import LONG


@pytest.fixture
async def server():
    async with FakeServer({"long": LONG}) as server:
        yield server

"""What the tests of the client share: a client that does not wait between attempts."""

import asyncio

from llmws.client import Backoff, Client
from tests.integration.client.fake_server import FakeServer

LONG = tuple(f"{n} " for n in range(40))


def client(server: FakeServer, **options) -> Client:
    return Client(server.url, backoff=Backoff(jitter=lambda: 0.0), **options)


async def eventually(condition) -> None:
    """Yields to the loop until the condition holds."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)

"""Servers for the tests of this folder."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Callable

import pytest

from llmws.access import Identity
from llmws.config import LimitsSection, ServerSection
from llmws.server import listen
from tests.integration.server.harness import TIMEOUT_S, TOKEN, EchoSessions, Running, Serve
from tests.support.credentials import FixedCredentials


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts servers; stops them after the test and sees that they leave nothing behind."""
    running: list[Running] = []

    async def start(
        *,
        server: ServerSection | None = None,
        limits: LimitsSection | None = None,
        auth: bool = True,
        tls: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> Running:
        sessions = EchoSessions()
        credentials = FixedCredentials({TOKEN if auth else None: Identity("local", "admin", "first")})
        door = listen.Server(
            listener=listen.bind("127.0.0.1", 0),
            sessions=sessions,
            credentials=credentials,
            server=server or ServerSection(),
            limits=limits or LimitsSection(),
            tls=tls,
            clock=clock,
        )
        task = asyncio.create_task(door.run())
        async with asyncio.timeout(TIMEOUT_S):
            await door.started.wait()
        running.append(Running(door, sessions, task, [], credentials=credentials))
        return running[-1]

    yield start
    for one in running:
        for client in one.clients:
            client.writer.transport.abort()
        one.server.stop()
    for one in running:
        with contextlib.suppress(asyncio.CancelledError):
            async with asyncio.timeout(TIMEOUT_S):
                await one.task
        attached = sorted(call[1:2] for call in one.sessions.calls if call[0] == "attach")
        detached = sorted(call[1:2] for call in one.sessions.calls if call[0] == "detach")
        assert detached == attached
        assert one.server.connections == 0


@pytest.fixture
async def running(serve: Serve) -> Running:
    """One server with the default limits."""
    return await serve()

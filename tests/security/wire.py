"""HTTP as an attacker writes it: bytes, not a client that would correct them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import NamedTuple

from tests.support.echo_server import TIMEOUT_S, Running


class Answer(NamedTuple):
    """What came back until the server closed; status 0 where it closed without a word."""

    status: int
    head: str
    body: str
    statuses: tuple[int, ...]
    """Of every response, where several requests were seen in what was sent."""


async def send(running: Running, request: bytes) -> Answer:
    """Sends bytes on a connection of their own and reads until its end; what is sent must bring that about."""
    client = await running.connect()
    client.writer.write(request)
    received = b""
    async with asyncio.timeout(TIMEOUT_S):
        try:
            while piece := await client.reader.read(65536):
                received += piece
        except ConnectionResetError:
            pass
    client.writer.close()
    head, _, body = received.decode("latin-1").partition("\r\n\r\n")
    statuses = tuple(
        int(status) for status in re.findall(r"^HTTP/1\.1 (\d{3})", received.decode("latin-1"), re.MULTILINE)
    )
    return Answer(statuses[0] if statuses else 0, head.lower(), body, statuses)


async def ask(
    running: Running, path: str, *, method: str = "GET", headers: Mapping[str, str] | None = None, body: bytes = b""
) -> Answer:
    """One well-formed request; `headers` replace or add."""
    values = {"Host": f"127.0.0.1:{running.port}", "Connection": "close", **(headers or {})}
    if body:
        values.setdefault("Content-Length", str(len(body)))
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in values.items()), "", ""]
    return await send(running, "\r\n".join(lines).encode("latin-1") + body)

"""How old a token is when a client reads it, and how late the event loop is, beside an engine that does not let go.

The engine steps twenty times a second and computes in Python for most of that, which is harder on the loop than a real
one: torch lets others run while it computes.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from bench.client import users
from bench.engine import Pace
from bench.figures import Figure, spread
from bench.servers import product

CROWDS: Final = (50, 500)
STEP_S: Final = 0.05
HELD: Final = 0.9
WARM_S: Final = 3.0
MEASURED_S: Final = 3.0


def measure(folder: Path) -> list[Figure]:
    """A few streams and many, each with a loop that is left alone and with one that is not."""
    figures = []
    for count in CROWDS:
        for held in (0.0, HELD):
            figures += asyncio.run(_measure(folder / f"{count}-{held}", count, Pace(step_s=STEP_S, held=held)))
    return figures


async def _measure(folder: Path, count: int, pace: Pace) -> list[Figure]:
    with product(folder, pace=pace) as server:
        everyone = await users(server.port, count)
        answers = asyncio.gather(*(user.ask(1, round((WARM_S + MEASURED_S) / STEP_S)) for user in everyone))
        await asyncio.sleep(WARM_S)
        server.vitals()
        for user in everyone:
            user.keeps_times = True
        await asyncio.sleep(MEASURED_S)
        late_ms = server.vitals().late_ms
        token_ms = [each for user in everyone for each in user.late_ms]
        await answers
    held = f", engine holds {pace.held:.0%}" if pace.held else ""
    return [
        *spread(f"age of a token, {count} streams{held}", "ms", token_ms, p99_at_most=500.0),
        *spread(f"event loop late, {count} streams{held}", "ms", late_ms),
    ]

"""Strangers send everything that is known to be awkward, and a good client beside them is served."""

import asyncio
import json
import logging
import sys
import time
from typing import Final

from llmws.config import ServerSection
from llmws.server.door import MESSAGES_PER_S
from tests.fuzz.watch import MAX_STEP_S
from tests.support.paths import ROOT

END_S: Final = 60.0
PAUSE_S: Final = 10 / MESSAGES_PER_S
SEED: Final = 1


async def ask_until(ended: asyncio.Event, client) -> list[float]:
    """Round trips of the good client's pings, in seconds."""
    trips = []
    while not ended.is_set():
        sent_s = time.monotonic()
        client.send(json.dumps({"type": "ping", "t": len(trips)}))
        assert json.loads(await client.text()) == {"type": "pong", "t": len(trips)}
        trips.append(time.monotonic() - sent_s)
        await asyncio.sleep(PAUSE_S)
    return trips


async def lag_until(ended: asyncio.Event) -> float:
    """How much later than asked the loop came back at worst, in seconds."""
    worst_s = 0.0
    while not ended.is_set():
        began_s = time.monotonic()
        await asyncio.sleep(PAUSE_S)
        worst_s = max(worst_s, time.monotonic() - began_s - PAUSE_S)
    return worst_s


async def test_a_good_client_is_served_in_a_storm_of_bad_ones(serve, storm_s, is_judged, caplog):
    """Nothing escapes to the loop or the log, and where times are judged the loop is never held up."""
    escaped: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: escaped.append(context))
    running = await serve(server=ServerSection(heartbeat_s=3600))  # the good client hears answers only
    client = await running.attached()
    ended = asyncio.Event()
    async with asyncio.timeout(storm_s + END_S), asyncio.TaskGroup() as group:
        trips, lag = group.create_task(ask_until(ended, client)), group.create_task(lag_until(ended))
        storm = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "tests.fuzz.storm", str(running.port), str(storm_s), str(SEED)),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
        )
        said, _ = await storm.communicate()
        ended.set()
    assert storm.returncode == 0
    assert int(said) > 0
    assert len(trips.result()) > 0
    assert escaped == []
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []
    if is_judged:
        worst_s = max(trips.result())
        print(
            f"\nstorm: {int(said)} connections in {storm_s:.0f} s; {len(trips.result())} pings, the slowest "
            f"{worst_s * 1000:.0f} ms; the loop was late by {lag.result() * 1000:.0f} ms at most"
        )
        assert lag.result() <= MAX_STEP_S
        assert worst_s <= 2 * MAX_STEP_S

"""A few seconds of what `python -m tests.faults.chaos` does for as long as it is told to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.chaos.outcome import chaos
from tests.faults.chaos.storm import Weather
from tests.faults.streaming_server import StreamingServer, running

BRIEF = Weather(server_kill_s=(1.2, 1.6), users_kill_s=(0.7, 1.0), calm_s=60)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[StreamingServer]:
    with running(tmp_path, "--step-s", "0.005") as server:
        yield server


async def test_nothing_is_lost_doubled_or_wrong_in_a_short_storm(server: StreamingServer, tmp_path: Path) -> None:
    """Eight clients in two processes; cuts, resets, black holes, and kill -9 of the server and of clients."""
    outcome = await chaos(server, tmp_path, clients=8, processes=2, seconds=4, seed=1, weather=BRIEF, most_tokens=150)
    print(outcome)

    assert outcome.is_good, str(outcome)
    assert outcome.has_hit, str(outcome)

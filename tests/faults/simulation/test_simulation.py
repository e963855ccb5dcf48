"""The whole system under a virtual clock: one seed is one history of a server, its users and everything that fails.

Real are the clients (`llmws.client`, and the WebSocket library under people who believe nothing), the doors from the
upgrade on, uvicorn's loop around them, the driver, the hub and the store. Simulated are time, the network, the disk,
threads and chance; scripted are the engine, the prompts and the models. `--simulation-seeds N` looks at more histories
and prints what was in them, `--simulation-seed N` repeats one.

Not simulated: TLS and the HTTP routes; `llmws.app`, whose composition `server` repeats; what a thread may do between
two lines of another; the wall clock inside a stopped process; at the level `os`, syncs that fail; a sync that
fails where the disk takes no word of it either.
"""

import os
import subprocess
import sys
import traceback
from collections import Counter

import pytest

from tests.faults.simulation.world import simulate
from tests.support.paths import ROOT

pytestmark = pytest.mark.simulation

FIGURES = (
    "requests", "events", "connections", "resumes", "resets", "cuts", "kills", "stops", "disk faults", "clock jumps",
    "key rotations", "lost", "duplicated", "wrong",
)  # fmt: skip
REPEATED = (3, 15, 27)
FEW = 100
"""Of more histories than this all are run, whatever is found."""


def test_whatever_fails_everybody_gets_every_answer_once_and_nothing_is_left(simulation_seeds):
    seen: Counter[str] = Counter()
    broken: list[int] = []
    for seed in simulation_seeds:
        try:
            simulate(seed, seen)
        except Exception as error:
            broken.append(seed)
            error.add_note(f"repeat it: pytest tests/faults/simulation --simulation-seed {seed}")
            if len(simulation_seeds) <= FEW:
                raise
            print("".join(traceback.format_exception(error)))
    figures = ", ".join(f"{seen[name]} {name}" for name in FIGURES)
    hours = f"{seen['virtual s'] / 3600:,.0f} virtual hours"
    print(f"\n{len(simulation_seeds)} histories, {hours}: {figures}; histories broken: {broken}")
    assert broken == []
    assert seen["resumes"] > 0
    assert seen["kills"] > 0


def test_a_seed_is_one_history_in_every_process():
    """Neither the order of sets nor anything of the machine is in it."""
    program = "from tests.faults.simulation.test_simulation import traces; print(traces())"
    elsewhere = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        check=True,
        timeout=120,
    )
    assert elsewhere.stdout.decode().strip() == str(traces())


def traces() -> list[str]:
    return [simulate(seed, Counter()) for seed in REPEATED]

"""Chaos: many clients, a bad network, kill -9 of everybody, then calm; and nothing is lost, doubled or wrong.

Prints the figures; exits 1 when anything is, or when the storm has missed what it was meant to hit.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import tempfile
from pathlib import Path

from tests.faults.chaos.outcome import chaos
from tests.faults.chaos.storm import Weather
from tests.faults.streaming_server import StreamingServer
from tests.support.real_server import RealServer

GUIDE_PROMPTS = (
    "How does llmws keep my answer when the connection drops?",
    "What is llmws?",
    "Who are you?",
    "How do I add a model?",
)


def main() -> int:
    """Runs it; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long the storm blows (default: %(default)g)")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--processes", type=int, default=10, help="that the clients live in, and that are killed")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--step-s", type=float, default=0.02, help="seconds a token takes (default: %(default)g)")
    parser.add_argument("--folder", type=Path, help="a new one, where everybody's journals and logs are kept")
    parser.add_argument("--guide", action="store_true", help="answers of the built-in model instead of scripted ones")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        if (folder := options.folder) is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llmws-chaos-")))
        else:
            folder.mkdir()
        if options.guide:
            os.environ["LLMWS_LIMITS_REQUESTS_PER_MINUTE"] = "1000000"
            server = RealServer(folder, "--model", "llmws-guide")
        else:
            server = StreamingServer(folder, "--step-s", str(options.step_s))
        server.start()
        try:
            outcome = asyncio.run(
                chaos(
                    server,
                    folder,
                    clients=options.clients,
                    processes=options.processes,
                    seconds=options.minutes * 60,
                    seed=options.seed,
                    weather=Weather(),
                    most_tokens=120,
                    prompts=GUIDE_PROMPTS if options.guide else (),
                )
            )
        finally:
            server.kill()
    print(outcome)
    if not outcome.has_hit:
        print("The storm did not hit everybody in the middle of an answer, so this says little: let it blow longer.")
    return 0 if outcome.is_good and outcome.has_hit else 1


if __name__ == "__main__":
    sys.exit(main())

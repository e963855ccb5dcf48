"""A real server process whose engine says what its script says, one step for each line on standard input.

Prints a line once a model is loaded, and one for each step done.
"""

from __future__ import annotations

import argparse
import logging
import sys
import threading
import time
from pathlib import Path

from llmws import app, config, places
from llmws.catalog.names import ModelName
from llmws.protocol.messages import DeviceSummary, GetResources
from tests.support.stages import GUIDE, ScriptedPrompts, inspected, scripted_engine


class OneModel:
    """A models folder with one model that needs no files."""

    def scan(self):
        return [GUIDE]

    def delete(self, name):
        ModelName(name)


class StillProbe:
    """A device that does not change."""

    def summary(self):
        return DeviceSummary(device="cpu", total_gb=1.0, free_gb=1.0)

    def resources(self, loaded, models, load):
        return inspected(GetResources())


def main() -> None:
    logging.basicConfig(level=logging.WARNING)
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--no-auth", action="store_true")
    parser.add_argument("--hello-timeout-s", type=float, default=0.5)
    parser.add_argument("--tls", type=Path, help="a certificate and its key in one file")
    options = parser.parse_args()
    folder = options.folder
    engine = scripted_engine()
    taken = threading.Event()
    take = engine.take

    def take_and_tell():
        events = take()
        if events:
            taken.set()
        return events

    engine.take = take_and_tell
    ready = folder / "ready.json"

    def command() -> None:
        while not ready.exists():
            time.sleep(0.01)
        print("ready", flush=True)
        for _ in sys.stdin:
            taken.clear()
            if engine.step():
                taken.wait()  # otherwise a slow loop would merge this step's tokens with the next one's
            print("stepped", flush=True)

    threading.Thread(target=command, daemon=True).start()
    settings = config.override(
        config.Config(),
        {
            "server": {"port": 0, "hello_timeout_s": options.hello_timeout_s, "drain_s": 0},
            "auth": {"required": not options.no_auth},
            "generation_defaults": {"max_new_tokens": 100},
        },
    )
    where = places.Places(
        folder / "state",
        folder / "models",
        folder / "state" / "models",
        tls_cert=options.tls,
        tls_key=options.tls,
    )
    parts = app.Parts(engine=engine, probe=StillProbe(), prompts=ScriptedPrompts(), models=OneModel())
    app.serve(settings, where, ready_file=ready, parts=parts)


if __name__ == "__main__":
    main()

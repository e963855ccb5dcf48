"""One target, hunted until it has run so often: by atheris, guided by coverage, or by mutations where it is not there.

Run as a process of its own, `python -m tests.fuzz.hunt NAME RUNS SECONDS FOLDER`, since libFuzzer ends its process.
Leaves in the folder: `notes`, inputs that reach new code in `finds`, and an input that breaks a promise as `crash-…`.
Invariant: the exit status is 0 if and only if no promise was broken.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import logging
import sys
import time
from pathlib import Path
from random import Random
from typing import Final

from tests.fuzz.mutation import mutated
from tests.fuzz.target import CORPUS, Target, corpus_of
from tests.fuzz.watch import Watch

HAS_ATHERIS: Final = importlib.util.find_spec("atheris") is not None
HANG_S: Final = 20
SEED: Final = 1
_INSTRUMENTED: Final = ["llmws", "websockets", "h11", "uvicorn"]


def main(name: str, runs: int, seconds: int, folder: Path) -> None:
    """Hunts."""
    logging.lastResort = None
    logging.getLogger().addHandler(logging.NullHandler())
    finds = folder / "finds"
    finds.mkdir()
    if HAS_ATHERIS:
        _by_coverage(name, runs, seconds, folder)
    else:
        _by_mutation(name, runs, seconds, folder)


def _by_coverage(name: str, runs: int, seconds: int, folder: Path) -> None:
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=_INSTRUMENTED):
        target = _target(name)
    flags = {
        "runs": runs,
        "max_total_time": seconds,
        "max_len": target.max_bytes,
        "timeout": HANG_S,
        "seed": SEED,
        "rss_limit_mb": 4096,
        "artifact_prefix": f"{folder}/",
    }
    arguments = [f"-{key}={value}" for key, value in flags.items()]
    atheris.Setup([sys.argv[0], *arguments, str(folder / "finds"), str(CORPUS / name)], Watch(target, folder / "notes"))
    atheris.Fuzz()


def _by_mutation(name: str, runs: int, seconds: int, folder: Path) -> None:
    target = _target(name)
    watch = Watch(target, folder / "notes")
    random, corpus = Random(SEED), corpus_of(name)
    ends_s = time.monotonic() + seconds
    for _ in range(runs):
        data = mutated(random.choice(corpus), random.choice(corpus), random, max_bytes=target.max_bytes)
        try:
            watch(data)
        except BaseException:
            (folder / f"crash-{hashlib.sha256(data).hexdigest()[:16]}").write_bytes(data)
            raise
        if time.monotonic() > ends_s:
            return


def _target(name: str) -> Target:
    """Imports the targets, and with them the product."""
    targets: dict[str, Target] = importlib.import_module("tests.fuzz.targets").TARGETS
    return targets[name]


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))

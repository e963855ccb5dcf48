"""Fuzzes every target and says what came of it: `python -m tests.fuzz [--runs N] [--seconds S] [--target NAME]`.

Exits 1 where a promise was broken, an input hung or held the event loop too long, and where a target was run less often
than it should have been. With `--grow` inputs that reach code
which the corpus does not reach are added to it.
"""

from __future__ import annotations

import argparse
import math
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import msgspec

from tests.fuzz.coverage import grow
from tests.fuzz.hunt import HANG_S, HAS_ATHERIS
from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS
from tests.fuzz.watch import Counts, counts_in
from tests.support.paths import ROOT

GRACE_S: Final = 2 * HANG_S
MARGIN: Final = 0.03
"""So many more executions are asked for: libFuzzer counts some that reach no target."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one target, which should run so often; `report` is empty where every promise was kept."""

    target: Target
    runs: int
    counts: Counts
    took_s: float
    is_hung: bool = False
    report: str = ""

    @property
    def is_short(self) -> bool:
        """Whether it ran less often than it should have, for a fault or for want of time."""
        return self.counts.executions < self.runs


def main() -> int:
    """Runs the hunts, two at a time, and prints the figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--runs", type=int, default=1_000_000, help="executions of all targets together")
    parser.add_argument("--seconds", type=int, default=900, help="longest time for one target")
    parser.add_argument("--target", choices=TARGETS, help="only this one")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--grow", action="store_true", help="add what reaches new code to the corpus")
    options = parser.parse_args()
    chosen = [TARGETS[options.target]] if options.target else list(TARGETS.values())
    shares = sum(target.share for target in chosen)
    print("atheris, guided by coverage" if HAS_ATHERIS else "mutations of the corpus; atheris is not installed")
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="llmws-hunt-") as name, ThreadPoolExecutor(options.processes) as pool:
        hunts = [
            pool.submit(hunt, target, -(-options.runs * target.share // shares), options.seconds, Path(name))
            for target in chosen
        ]
        outcomes = []
        for each in hunts:
            outcomes.append(each.result())
            print(_line(outcomes[-1]), flush=True)
        if options.grow:
            for target in chosen:
                print(f"{target.name}: {grow(target, Path(name, target.name, 'finds'))} inputs added")
    return sum_up(outcomes, time.monotonic() - began_s)


def hunt(target: Target, runs: int, seconds: int, folder: Path) -> Outcome:
    """One target in a process of its own; an input that breaks it is left in the present folder."""
    asked = math.ceil(runs * (1 + MARGIN))
    place = folder / target.name
    place.mkdir()
    command = [sys.executable, "-m", "tests.fuzz.hunt", target.name, str(asked), str(seconds), str(place)]
    is_hung, began_s = False, time.monotonic()
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        try:
            status = process.wait(seconds + GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            status, is_hung = process.wait(), True
    broken = [shutil.copy(path, Path.cwd() / f"{target.name}-{path.name}") for path in _artifacts(place)]
    text = (place / "log").read_text(errors="replace")
    report = f"status {status}, inputs {[str(path) for path in broken]}\n{text[-4000:]}" if status or broken else ""
    is_hung = is_hung or any("timeout-" in path.name for path in broken)
    notes = place / "notes"
    counts = counts_in(notes) if notes.exists() else Counts()
    took_s = time.monotonic() - began_s
    return Outcome(target=target, runs=runs, counts=counts, took_s=took_s, is_hung=is_hung, report=report)


def _artifacts(folder: Path) -> list[Path]:
    """Inputs that libFuzzer, or we, found to break something."""
    return [path for path in folder.iterdir() if path.name.startswith(("crash-", "timeout-", "oom-"))]


def _line(outcome: Outcome) -> str:
    what = "  hung" if outcome.is_hung else "  BROKEN" if outcome.report else ""
    what += f"  SHORT of {outcome.runs}" if outcome.is_short else ""
    longest_ms = outcome.counts.longest_ns / 1e6
    figures = f"{outcome.counts.executions:>10}{outcome.took_s:>6.0f} s  longest {longest_ms:7.1f} ms"
    return f"{outcome.target.name:18}{figures}{what}"


def sum_up(outcomes: list[Outcome], took_s: float) -> int:
    """Prints the figures of all targets, and returns the status to exit with."""
    broken = [outcome for outcome in outcomes if outcome.report]
    short = [outcome.target.name for outcome in outcomes if outcome.is_short]
    for outcome in broken:
        print(f"--- {outcome.target.name}\n{outcome.report}")
    on_loop = max((each for each in outcomes if each.target.on_loop), key=lambda e: e.counts.longest_ns, default=None)
    print(f"executions: {sum(outcome.counts.executions for outcome in outcomes)} in {took_s:.0f} s")
    print(f"slow inputs run once more: {sum(outcome.counts.repetitions for outcome in outcomes)}")
    print(f"crashes: {sum(not outcome.is_hung for outcome in broken)}")
    print(f"hangs: {sum(outcome.is_hung for outcome in outcomes)}")
    if on_loop is not None:
        print(f"longest on the event loop: {on_loop.counts.longest_ns / 1e6:.1f} ms ({on_loop.target.name})")
    if short:
        print(f"run less often than asked for: {', '.join(short)}")
    return 1 if broken or short else 0


if __name__ == "__main__":
    sys.exit(main())

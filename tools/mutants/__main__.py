"""Plants faults in copies of the product, one at a time, and says which of them the tests notice.

A test that notices nothing proves nothing. Each mutant is one replacement of text; it counts as killed when the tests
named with it fail, which must pass without it. Writes the table of docs/mutants.md; exits 1 when one is not killed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mutants import (
    access,
    clients,
    engine,
    fast,
    faults_store,
    fuzz,
    incidents,
    load,
    models,
    network,
    prompt,
    protocol,
    scheduler,
    session,
    simulation,
    store,
    triton,
)
from mutants.planted import Mutant

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "mutants.md"
TIMEOUT_S = 900
"""Of one run of tests, several of which share the processors; the longest takes a minute alone."""
MUTANTS = [
    *access.MUTANTS,
    *incidents.MUTANTS,
    *clients.MUTANTS,
    *network.MUTANTS,
    *load.MUTANTS,
    *models.MUTANTS,
    *faults_store.MUTANTS,
    *simulation.MUTANTS,
    *fuzz.MUTANTS,
    *session.MUTANTS,
    *protocol.MUTANTS,
    *store.MUTANTS,
    *prompt.MUTANTS,
    *engine.MUTANTS,
    *scheduler.MUTANTS,
    *fast.MUTANTS,
    *triton.MUTANTS,
]
HEAD = """# Planted mutants

A test is trusted when it notices faults. `make mutants` plants each of these in a copy of the product and runs the tests beside it, which pass without it; this table is its output.

| the mutant | in | tests | outcome |
|---|---|---|---|
"""


def main() -> int:
    """Runs every mutant and returns 1 if one survives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write what was found into docs/mutants.md")
    parser.add_argument("--only", default="", metavar="TEXT", help="only those whose file or fault contains this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="N", help="how many at a time")
    options = parser.parse_args()
    chosen = [each for each in MUTANTS if options.only in each.file or options.only in each.breaks]
    with tempfile.TemporaryDirectory(prefix="llmws-mutants-") as name:
        bench = Bench(Path(name), options.jobs)
        with ThreadPoolExecutor(options.jobs) as pool:
            outcomes = list(pool.map(bench.try_mutant, chosen))
    if options.write:
        write_table(dict(zip(chosen, outcomes, strict=True)))
    killed = outcomes.count("killed")
    print(f"{killed} of {len(outcomes)} killed")
    for mutant, outcome in zip(chosen, outcomes, strict=True):
        if outcome != "killed":
            print(f"{outcome:15}{mutant.breaks}")
    return 0 if killed == len(outcomes) else 1


class Bench:
    """Copies of the working tree, each for one mutant at a time."""

    def __init__(self, folder: Path, copies: int) -> None:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
        files = [name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]
        self._free: queue.Queue[Path] = queue.Queue()
        for number in range(copies):
            copy = folder / str(number)
            for name in files:
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, copy / name)
            self._free.put(copy)
        self._without: dict[str, str] = {}

    def try_mutant(self, mutant: Mutant) -> str:
        """Plants one mutant, runs its tests, takes it out again."""
        copy = self._free.get()
        path = copy / mutant.file
        text = path.read_text()
        try:
            outcome = self._outcome(mutant, copy, path, text)
        finally:
            path.write_text(text)
            self._free.put(copy)
        print(f"{outcome:15}{mutant.breaks}", flush=True)
        return outcome

    def _outcome(self, mutant: Mutant, copy: Path, path: Path, text: str) -> str:
        if text.count(mutant.before) != 1:
            return "misplaced"
        if mutant.tests not in self._without:
            self._without[mutant.tests] = self._run(mutant.tests, copy)
        if self._without[mutant.tests] != "survived":
            return "fails without"
        path.write_text(text.replace(mutant.before, mutant.after))
        return self._run(mutant.tests, copy)

    @staticmethod
    def _run(tests: str, copy: Path) -> str:
        """What comes of the tests in this copy."""
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--hypothesis-profile=hunt"]
        command += tests.split()
        if "tests/contract" in tests:
            command += ["-k", "not socket"]
        environment = {**os.environ, "PYTHONPATH": str(copy)}
        return outcome_of(command, folder=copy, environment=environment, timeout_s=TIMEOUT_S)


def outcome_of(command: list[str], *, folder: Path, environment: Mapping[str, str], timeout_s: float) -> str:
    """Runs pytest, and ends it with all that it has started where it takes too long.

    Returns:
        "survived" if the tests passed, "killed" if one failed, else "timed out" or "broken": no test has spoken.
    """
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        status = process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return "timed out"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return {0: "survived", 1: "killed"}.get(status, "broken")


def write_table(outcomes: dict[Mutant, str]) -> None:
    """Writes what was found to docs/mutants.md, beside what it tells of those that were not tried."""
    kept = set(TABLE.read_text().splitlines())
    rows = []
    for mutant in MUTANTS:
        start = f"| {mutant.breaks} | `{mutant.file}` | `{mutant.tests}` | "
        earlier = next(
            (row.removeprefix(start).removesuffix(" |") for row in kept if row.startswith(start)), "not tried"
        )
        rows.append(f"{start}{outcomes.get(mutant, earlier)} |")
    TABLE.write_text(HEAD + "\n".join(rows) + "\n")


if __name__ == "__main__":
    sys.exit(main())

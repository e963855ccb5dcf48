"""Plants faults in a copy of the product, one at a time, and says which of them the tests notice.

A property test that notices nothing proves nothing. Each mutant is one replacement of text; it counts as killed when
the tests named with it fail. Writes the table of docs/mutants.md; exits 1 when one survives.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from mutants import access, engine, fast, prompt, protocol, scheduler, session, store, triton
from mutants.planted import Mutant

ROOT = Path(__file__).parents[2]
MUTANTS = [
    *access.MUTANTS,
    *session.MUTANTS,
    *protocol.MUTANTS,
    *store.MUTANTS,
    *prompt.MUTANTS,
    *engine.MUTANTS,
    *scheduler.MUTANTS,
    *fast.MUTANTS,
    *triton.MUTANTS,
]


def main() -> int:
    """Runs every mutant and returns 1 if one survives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/mutants.md")
    parser.add_argument("--only", default="", metavar="TEXT", help="only those whose file or fault contains this")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="llmws-mutants-") as name:
        copy = Path(name)
        for part in ("llmws", "llm_cli", "tests", "web"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        for mutant in (each for each in MUTANTS if options.only in each.file or options.only in each.breaks):
            outcome = try_mutant(mutant, copy)
            print(f"{outcome:10}{mutant.breaks}", flush=True)
            rows.append((mutant, outcome))
    if options.write:
        write_table(rows)
    survivors = [mutant for mutant, outcome in rows if outcome != "killed"]
    print(f"{len(rows) - len(survivors)} of {len(rows)} killed")
    return 1 if survivors else 0


def try_mutant(mutant: Mutant, copy: Path) -> str:
    """Plants one mutant, runs its tests, takes it out again."""
    path = copy / mutant.file
    text = path.read_text()
    if text.count(mutant.before) != 1:
        return "misplaced"
    path.write_text(text.replace(mutant.before, mutant.after))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "--hypothesis-profile=hunt",
        *mutant.tests.split(),
    ]
    if "tests/contract" in mutant.tests:
        command += ["-k", "not socket"]
    try:
        done = subprocess.run(
            command,
            cwd=copy,
            capture_output=True,
            check=False,
            timeout=300,
            env={**os.environ, "PYTHONPATH": str(copy)},
        )
        return "survived" if done.returncode == 0 else "killed"
    except subprocess.TimeoutExpired:
        return "killed"
    finally:
        path.write_text(text)


def write_table(rows: list[tuple[Mutant, str]]) -> None:
    """Writes what was found to docs/mutants.md."""
    lines = [
        "# Planted mutants",
        "",
        "A property test is trusted when it notices faults. `make mutants` plants each of these in a copy of the product and runs",
        "the tests beside it; this table is its output.",
        "",
        "| the mutant | in | tests | outcome |",
        "|---|---|---|---|",
        *(f"| {each.breaks} | `{each.file}` | `{each.tests}` | {outcome} |" for each, outcome in rows),
        "",
    ]
    (ROOT / "docs" / "mutants.md").write_text("\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())

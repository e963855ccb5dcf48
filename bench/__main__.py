"""Runs the families of figures, one after the other, and writes what they found."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec

from bench import latency, memory, resuming, starting, streaming
from bench.figures import Figure, Report, table
from llmws import __version__

ROOT: Final = Path(__file__).parents[1]
FAMILIES: Final = {
    family.__name__.removeprefix("bench."): family.measure
    for family in (starting, streaming, latency, resuming, memory)
}
PACKAGES: Final = ("websockets", "uvicorn", "msgspec", "cryptography")


def main() -> None:
    """Measures, writes `bench/results/<date>-<host>.json` and prints the table; of a part, only the table."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measures the session path of this machine.")
    parser.add_argument("families", nargs="*", choices=[[], *FAMILIES], help="only these")
    parser.add_argument("--host", default=f"{len(os.sched_getaffinity(0))}-core-cpu", help="a neutral name of it")
    options = parser.parse_args()
    started, load = datetime.now(UTC), os.getloadavg()
    figures = _measure(options.families or list(FAMILIES))
    took_s = round((datetime.now(UTC) - started).total_seconds(), 1)
    print(table(figures))
    print(f"\n{took_s:g} s, load before {load[0]:.1f}")
    if not options.families:
        report = Report(
            at=started.isoformat(timespec="seconds"),
            host=options.host,
            llmws=__version__,
            commit=_commit(),
            versions={"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
            load_average_before=load,
            took_s=took_s,
            figures=figures,
        )
        print(_write(report, ROOT / "bench" / "results" / f"{started.date()}-{options.host}.json"))


def _measure(families: list[str]) -> list[Figure]:
    figures: list[Figure] = []
    # On the disk that sessions are on.
    with tempfile.TemporaryDirectory(dir=ROOT / "var", prefix="bench-", ignore_cleanup_errors=True) as folder:
        for name in families:
            print(f"{name} …", file=sys.stderr, flush=True)
            place = Path(folder) / name
            place.mkdir()
            figures += FAMILIES[name](place)
    return figures


def _write(report: Report, path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    return path.relative_to(ROOT)


def _commit() -> str | None:
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


if __name__ == "__main__":
    main()

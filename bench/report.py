"""Where a run's figures are kept, and which source they are of."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec

from bench.figures import Figure, Report, table
from llmws import __version__

ROOT: Final = Path(__file__).parents[1]
RESULTS: Final = ROOT / "bench" / "results"


def write(report: Report, path: Path) -> Path:
    """Writes the report; returns its path from the repository's root."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def finish(
    figures: Sequence[Figure],
    *,
    started: datetime,
    load_average_before: tuple[float, float, float],
    host: str,
    packages: Sequence[str],
    kind: str | None,
) -> None:
    """Prints the table of a run that has ended, and keeps it in `bench/results/<date>-<host><kind>.json`.

    Args:
        figures: that it found.
        started: when it began.
        load_average_before: of the machine.
        host: a neutral name of it.
        packages: whose versions matter.
        kind: tells kinds of runs apart; None: it was a run of a part, and is not kept.
    """
    took_s = round((datetime.now(UTC) - started).total_seconds(), 1)
    print(table(figures))
    print(f"\n{took_s:g} s, load before {load_average_before[0]:.1f}")
    if kind is not None:
        report = Report(
            at=started.isoformat(timespec="seconds"),
            host=host,
            llmws=__version__,
            commit=commit(),
            versions=versions(packages),
            load_average_before=load_average_before,
            took_s=took_s,
            figures=list(figures),
        )
        print(write(report, RESULTS / f"{started.date()}-{host}{kind}.json"))


def host() -> str:
    """A neutral name of this machine."""
    return f"{len(os.sched_getaffinity(0))}-core-cpu"


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Of Python and these packages."""
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def commit() -> str | None:
    """The commit, marked where the tree differs from it; None outside a repository."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None

"""Where a run's figures are kept, and which source they are of."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec

from bench.figures import Report

ROOT: Final = Path(__file__).parents[1]
RESULTS: Final = ROOT / "bench" / "results"


def write(report: Report, path: Path) -> Path:
    """Writes the report; returns its path from the repository's root."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


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

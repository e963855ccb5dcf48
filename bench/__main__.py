"""Runs the families of figures, one after the other, and writes what they found."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from bench import latency, memory, resuming, starting, streaming
from bench.figures import Figure
from bench.report import ROOT, finish, host

FAMILIES: Final = {
    family.__name__.removeprefix("bench."): family.measure
    for family in (starting, streaming, latency, resuming, memory)
}
PACKAGES: Final = ("websockets", "uvicorn", "msgspec", "cryptography")


def main() -> None:
    """Measures, writes `bench/results/<date>-<host>.json` and prints the table; of a part, only the table."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measures the session path of this machine.")
    parser.add_argument("families", nargs="*", choices=[[], *FAMILIES], help="only these")
    parser.add_argument("--host", default=host(), help="a neutral name of it")
    options = parser.parse_args()
    started, load = datetime.now(UTC), os.getloadavg()
    figures = _measure(options.families or list(FAMILIES))
    finish(
        figures,
        started=started,
        load_average_before=load,
        host=options.host,
        packages=PACKAGES,
        kind=None if options.families else "",
    )


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


if __name__ == "__main__":
    main()

"""Runs the kinds of load, one after the other, and writes what they found."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from bench.figures import Figure
from bench.load import churn, connections, deaf, flood, slow
from bench.load.size import SMALL, WHOLE, Size
from bench.report import ROOT, finish, host

KINDS: Final = {
    kind.__name__.removeprefix("bench.load."): kind.measure for kind in (connections, slow, deaf, flood, churn)
}
PACKAGES: Final = ("websockets", "uvicorn", "msgspec", "cryptography")


def main() -> None:
    """Measures, writes `bench/results/<date>-<host>-load.json` and prints the table; of a part, only the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.load", description="Measures the server under load.")
    parser.add_argument("kinds", nargs="*", choices=[[], *KINDS], help="only these")
    parser.add_argument("--small", action="store_true", help="a tenth of it: shows that everything works")
    parser.add_argument("--host", default=host(), help="a neutral name of this machine")
    options = parser.parse_args()
    started, load = datetime.now(UTC), os.getloadavg()
    figures = _measure(options.kinds or list(KINDS), SMALL if options.small else WHOLE)
    finish(
        figures,
        started=started,
        load_average_before=load,
        host=options.host,
        packages=PACKAGES,
        kind=None if options.kinds or options.small else "-load",
    )


def _measure(kinds: list[str], size: Size) -> list[Figure]:
    figures: list[Figure] = []
    # On the disk that sessions are on.
    with tempfile.TemporaryDirectory(dir=ROOT / "var", prefix="bench-", ignore_cleanup_errors=True) as folder:
        for name in kinds:
            print(f"{name} …", file=sys.stderr, flush=True)
            figures += KINDS[name](Path(folder) / name, size)
    return figures


if __name__ == "__main__":
    main()

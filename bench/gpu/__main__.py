"""Runs what there is time for, prints the table and writes the figures."""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import torch
from msgspec.structs import replace

from bench.figures import Figure, Report, figure, table
from bench.gpu import kernels, shapes
from bench.gpu.deadline import Deadline, say
from bench.gpu.model import REAL, TOY, Setting, beside, ours
from bench.report import RESULTS, commit, versions, write
from llmws import __version__

PACKAGES: Final = ("torch", "transformers", "triton")
_KERNELS_S: Final = 60
_TUNING_S: Final = 60


def main() -> None:
    """Measures and prints a table; on a GPU also writes `bench/results/<date>-<host>-gpu.json`."""
    options = _options()
    device = torch.device(options.device)
    started, load = datetime.now(UTC), os.getloadavg()
    deadline = Deadline(options.deadline_s)
    report = Report(
        at=started.isoformat(timespec="seconds"),
        host=_host(device),
        llmws=__version__,
        commit=commit(),
        versions=versions([name for name in PACKAGES if find_spec(name)]),
        load_average_before=load,
        took_s=0,
        figures=[],
    )
    folder = options.out or (None if options.tiny else RESULTS)
    try:
        for each in _measured(device, deadline, options):
            print(table([each]).splitlines()[-1], flush=True)
            took_s = round((datetime.now(UTC) - started).total_seconds(), 1)
            report = replace(report, took_s=took_s, figures=[*report.figures, each])
            if folder is not None:  # every time: whatever ends this program, minutes of a GPU are not lost
                written = write(report, folder / f"{started.date()}-{report.host}-gpu.json")
    finally:
        print(f"\n{table(report.figures)}\n\n{report.took_s:g} s" if report.figures else "nothing was measured")
        if folder is not None and report.figures:
            print(written)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description="Measures the engine on a GPU.")
    names = [shape.name for shape in shapes.REAL]
    parser.add_argument("--device", default="cuda:0", help="default cuda:0")
    parser.add_argument("--deadline-s", type=float, default=540, help="what takes longer is left out (default 540)")
    parser.add_argument("--only", nargs="+", choices=["kernels", *names], default=["kernels", *names], help="these")
    parser.add_argument("--tune", action="store_true", help="try other launches of the kernel too")
    parser.add_argument("--tiny", action="store_true", help="a toy model: does the program work?")
    parser.add_argument("--scratch", type=Path, help="where models are written; 20 GB (default: the system's place)")
    parser.add_argument("--out", type=Path, help="where the figures go (default bench/results; a toy's nowhere)")
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"torch finds no {options.device}; on CPU only --device cpu --tiny works")
    if options.device == "cpu" and not options.tiny:
        parser.error("on CPU only a toy can be run: --device cpu --tiny")
    return options


def _measured(device: torch.device, deadline: Deadline, options: argparse.Namespace) -> Iterator[Figure]:
    bytes_per_s = kernels.bandwidth(device, 2**20 if options.tiny else 2**30)
    yield figure("bandwidth of the memory, copying", "GB/s", [bytes_per_s / 1e9])
    if "kernels" in options.only:
        if device.type != "cuda":
            say("LEFT OUT: the decode kernels need a GPU; the tests run them in Triton's interpreter")
        elif deadline.allows("decode kernels", _KERNELS_S):
            yield from kernels.figures(device, bytes_per_s)
        if device.type == "cuda" and options.tune and deadline.allows("launches of the decode kernel", _TUNING_S):
            yield from kernels.tuned(device, bytes_per_s)
    setting = Setting(device, bytes_per_s, TOY if options.tiny else REAL, deadline)
    for shape in shapes.TOY if options.tiny else shapes.REAL:
        if not (options.tiny or shape.name in options.only) or not deadline.allows(shape.name, shape.needed_s):
            continue
        with tempfile.TemporaryDirectory(dir=options.scratch, prefix="llmws-bench-") as folder:
            written = shapes.write(shape, Path(folder) / "model", device=device, dtype=setting.dtype)
            rates = yield from ours(shape, written, setting)
            yield from beside(shape, written, setting, rates)


def _host(device: torch.device) -> str:
    """A neutral name of this machine: its GPU's."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


if __name__ == "__main__":
    main()

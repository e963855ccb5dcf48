"""`make bench-gpu` without a GPU, on a toy model: everything but the kernels runs; what it measures says nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec

from bench.figures import Report

ROOT = Path(__file__).parents[3]


def test_a_toy_is_loaded_stepped_and_compared(tmp_path) -> None:
    command = [sys.executable, "-m", "bench.gpu", "--device", "cpu", "--tiny", "--out", tmp_path]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stderr
    [written] = tmp_path.iterdir()
    report = msgspec.json.decode(written.read_bytes(), type=Report)
    assert [each.name.strip() for each in report.figures] == [
        "bandwidth of the memory, copying",
        "toy: loading",
        "less a second, over reading its files",
        "opening its pool, with the first recording",
        "toy: 1 stream",
        "share of the bandwidth's roofline",
        "toy: 2 streams",
        "toy: 1 stream, over generate()",
        "toy: 2 streams, over generate() one after another",
        "over generate() of one batch",
        "over continuous batching of transformers",
    ]
    assert "LEFT OUT: the decode kernels need a GPU" in ended.stderr

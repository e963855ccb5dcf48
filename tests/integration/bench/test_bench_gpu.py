"""`make bench-gpu` without a GPU, on a toy model: everything but the kernels runs; what it measures says nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import msgspec

from bench.figures import Figure, Report, figure
from bench.gpu import __main__ as program
from tests.support.paths import ROOT


def test_a_toy_is_loaded_stepped_and_compared(tmp_path) -> None:
    # It runs where there are the packages of the engine alone.
    script = "import sys; sys.modules['pynvml'] = None; from bench.gpu.__main__ import main; main()"
    command = [sys.executable, "-c", script, "--device", "cpu", "--tiny", "--out", tmp_path]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stderr
    [written] = tmp_path.iterdir()
    report = msgspec.json.decode(written.read_bytes(), type=Report)
    assert [each.name.strip() for each in report.figures] == [
        "bandwidth of the memory, copying",
        "toy: loading",
        "less a second, over reading its files",
        "opening its pool, with all recordings",
        "toy: 1 stream",
        "share of the bandwidth's roofline",
        "toy: 2 streams",
        "the same, drawn at temperature 0.7 and top-p 0.9",
        "toy: 1 stream, over generate()",
        "toy: 2 streams, over generate() one after another",
        "over generate() of one batch",
        "over continuous batching of transformers",
    ]
    assert "LEFT OUT: the decode kernels need a GPU" in ended.stderr


def test_every_figure_is_written_when_it_is_there(tmp_path, monkeypatch) -> None:
    """So that what ends the program in the middle takes nothing with it."""
    written = []

    def measured(*_) -> Iterator[Figure]:
        for name in ("one", "other"):
            yield figure(name, "s", [1.0])
            [path] = tmp_path.iterdir()
            written.append([each.name for each in msgspec.json.decode(path.read_bytes(), type=Report).figures])

    monkeypatch.setattr(program, "_measured", measured)
    monkeypatch.setattr(sys, "argv", ["bench.gpu", "--device", "cpu", "--tiny", "--out", str(tmp_path)])
    program.main()

    assert written == [["one"], ["one", "other"]]

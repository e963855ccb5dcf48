"""`make bench-load` in small: everybody is started, served and counted; what it measures there says nothing."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.support.paths import ROOT


def test_a_crowd_is_let_in_and_all_of_it_stays() -> None:
    command = [sys.executable, "-m", "bench.load", "--small", "connections"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    assert re.findall(r"^  connections lost +(\d+)", ended.stdout, re.MULTILINE) == ["0"]
    assert "age of a token, 100 connections, 50 of them streaming" in ended.stdout


def test_a_kind_of_load_that_is_none_is_named() -> None:
    command = [sys.executable, "-m", "bench.load", "earthquake"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, "'earthquake'" in ended.stderr) == (2, True)

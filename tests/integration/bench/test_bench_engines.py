"""`make bench-engine` on a toy model: everybody is started, asked and compared; what it measures there says nothing."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.support.paths import ROOT


def test_all_that_need_nothing_installed_answer_alike() -> None:
    command = [sys.executable, "-m", "bench.engines", "--tiny", "--rounds", "1"]
    command += ["--only", "generate", "continuous", "llmws", "server"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stderr
    told = re.findall(r"^streams with every token of generate\(\): (.+?)  .* (met|MISSED)$", ended.stdout, re.MULTILINE)
    assert told == [("continuous batching", "met"), ("llmws", "met"), ("llmws serve", "met")]


def test_an_interpreter_that_is_not_there_is_named() -> None:
    command = [sys.executable, "-m", "bench.engines", "--llama-python", "/nowhere/python"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (1, "--llama-python: /nowhere/python is not a program\n")

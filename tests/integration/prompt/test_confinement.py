"""What a confined process cannot do, tried in real processes."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.integration.prompt.harness import WAIT_S, helpers_of
from tests.support.paths import ROOT
from tests.support.real_server import RealServer

CONFINED = """
import os, resource, sys
from llmws.prompt.confinement import allow_cpu, confine, give_memory_back
confine(256 * 2**20)
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CONFINED + code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=WAIT_S)


def test_memory_ends_at_the_bound() -> None:
    taken = run("taken = bytearray(200 * 2**20); print('200'); bytearray(100 * 2**20)")
    assert taken.stdout == "200\n"
    assert taken.stderr.endswith("MemoryError\n")


def test_no_file_is_written(tmp_path: Path) -> None:
    done = run("with open(sys.argv[1], 'wb', buffering=0) as file: file.write(b'x')", str(tmp_path / "file"))
    assert "File too large" in done.stderr
    assert (tmp_path / "file").stat().st_size == 0


def test_no_limit_is_one_that_could_be_raised_again() -> None:
    code = """
kinds = (resource.RLIMIT_AS, resource.RLIMIT_CORE, resource.RLIMIT_FSIZE)
print([resource.getrlimit(kind) for kind in kinds])
"""
    assert run(code).stdout == f"[({256 * 2**20}, {256 * 2**20}), (0, 0), (0, 0)]\n"


def test_a_limit_that_is_lower_already_stays() -> None:
    code = """
confine(128 * 2**20)
confine(2**40)
print(resource.getrlimit(resource.RLIMIT_AS)[0] // 2**20)
"""
    assert run(code).stdout == "128\n"


def test_processor_time_is_given_anew_for_each_job() -> None:
    code = """
import time
for _ in range(4):
    allow_cpu(0.8)
    before = time.process_time()
    while time.process_time() < before + 0.3:
        pass
print('four', flush=True)
while True:
    pass
"""
    done = run(code)
    assert (done.stdout, done.returncode) == ("four\n", -signal.SIGPROF)


def test_the_kernel_takes_this_process_before_the_server() -> None:
    assert run("print(open('/proc/self/oom_score_adj').read())").stdout.strip() == "500"


@pytest.mark.parametrize("ending", ["kill", "stop"])
def test_a_server_leaves_no_process_behind(tmp_path: Path, ending: str) -> None:
    """A real `llmws serve`, with `kill -9` and with SIGTERM."""
    server = RealServer(tmp_path, "--model", "llmws-guide")
    server.start()
    try:
        assert server.process is not None
        parent = psutil.Process(server.process.pid)
        while not (helpers := helpers_of(parent)):
            assert server.process.poll() is None, server.log()
        getattr(server, ending)()
    finally:
        server.close()
    _, alive = psutil.wait_procs(helpers, timeout=WAIT_S)
    assert [each for each in alive if each.status() != psutil.STATUS_ZOMBIE] == []

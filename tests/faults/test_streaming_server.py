"""What the tests' own server owes them."""

from __future__ import annotations

from pathlib import Path

from tests.faults.streaming_server import START_TIMEOUT_S, StreamingServer


def test_a_server_ends_when_the_tests_are_gone(tmp_path: Path) -> None:
    """As when they are killed: nobody is left to end it."""
    server = StreamingServer(tmp_path)
    server.launch()
    for pipe in (server._process.stdin, server._process.stdout):
        assert pipe is not None
        pipe.close()
    try:
        assert server._process.wait(START_TIMEOUT_S) == 0
    finally:
        server._process.kill()
        server._process.wait()

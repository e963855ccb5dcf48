"""What a model says is hostile text, and a terminal obeys text."""

from __future__ import annotations

import os
import pty
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from tests.security.box import Box
from tests.support.paths import ROOT
from tests.support.terminal import command, environment

OBEYED = (b"\x1b]0;", b"\x1b[2J", b"\x1b[31m", b"\x07", "\x9b".encode(), "\u202e".encode(), b"\rover")


def on_a_terminal(arguments: list[str], environ: dict[str, str]) -> bytes:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command(arguments), stdin=theirs, stdout=theirs, stderr=theirs, env=environ, cwd=ROOT)
    os.close(theirs)
    seen = b""
    with suppress(OSError):  # how a terminal whose other side is gone ends
        while piece := os.read(ours, 65536):
            seen += piece
    os.close(ours)
    assert process.wait(timeout=30) == 0, seen
    return seen


def in_a_pipe(arguments: list[str], environ: dict[str, str]) -> bytes:
    done = subprocess.run(
        command(arguments), stdin=subprocess.DEVNULL, capture_output=True, env=environ, cwd=ROOT, timeout=30, check=True
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("show", [on_a_terminal, in_a_pipe])
def test_an_answer_cannot_command_the_terminal(box: Box, tmp_path: Path, show) -> None:
    """Titles, colours, cleared screens (CVE-2021-25743, kubectl) and letters in another order (CVE-2021-42574)."""
    arguments = ["--port", str(box.ready["port"]), "--temporary", "hello"]
    token_file = box.ready["token_file"]
    seen = show([*arguments[:2], "--token-file", token_file, *arguments[2:]], environment(tmp_path))
    assert b"reply-zanzibar" in seen
    assert [each for each in OBEYED if each in seen] == []

"""A real `llm` process on a real pseudo-terminal, or with pipes."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import signal
import sys
import termios
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from tests.support.paths import ROOT

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[@-Z\\-_=>]|\r")
DEADLINE_S = 20


def environment(state: Path, **extra: str) -> dict[str, str]:
    """An environment in which `llm` keeps its state in `state` and knows no other server."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    return {**kept, "HOME": str(state), "XDG_STATE_HOME": str(state), "TERM": "xterm-256color", **extra}


def command(arguments: Sequence[str]) -> list[str]:
    return [
        sys.executable,
        "-W",
        "error",
        "-c",
        "import sys; from llm_cli.main import main; sys.exit(main())",
        *arguments,
    ]


class Terminal:
    """`llm`, or a program that runs it, on a terminal: what is typed, what is seen."""

    def __init__(self, state: Path, *arguments: str, program: Sequence[str] = (), **environ: str) -> None:
        self._command = program or command(arguments)
        self._environ = environment(state, **environ)
        self.raw = b""
        self.returncode: int | None = None

    async def __aenter__(self) -> Self:
        self._master, slave = pty.openpty()
        self._cooked = termios.tcgetattr(slave)
        termios.tcsetwinsize(slave, (40, 200))
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=self._environ,
            cwd=ROOT,
            start_new_session=True,
            preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),  # becomes the controlling terminal
        )
        os.close(slave)
        asyncio.get_running_loop().add_reader(self._master, self._read)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.returncode is None:
            self.kill()
            await self.end()
        asyncio.get_running_loop().remove_reader(self._master)
        os.close(self._master)

    @property
    def text(self) -> str:
        """Everything that was printed, without escape sequences."""
        return _ESCAPES.sub("", self.raw.decode(errors="replace"))

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode(errors="surrogateescape"))

    async def sees(self, text: str, *, times: int = 1) -> None:
        """Waits until the text was printed."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                while self.text.count(text) < times:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"{text!r} was not seen in {self.text!r}") from None

    @property
    def is_cooked(self) -> bool:
        """Whether the terminal is as it was before."""
        return termios.tcgetattr(self._master) == self._cooked

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)

    async def leave(self) -> int:
        """Presses Ctrl-D until it is heard, as between two prompts the terminal itself swallows it; the exit status."""
        ended = asyncio.ensure_future(self.end())
        while not ended.done():
            self.type("\x04")
            await asyncio.wait({ended}, timeout=1)
        return ended.result()

    async def end(self) -> int:
        """Waits for the process to end; its exit status."""
        async with asyncio.timeout(DEADLINE_S):
            self.returncode = await self._process.wait()
        self._read()
        return self.returncode

    def _read(self) -> None:
        try:
            while True:
                os.set_blocking(self._master, False)
                data = os.read(self._master, 65536)
                if not data:
                    return
                self.raw += data
                # Where the cursor is: what a terminal is asked and answers, here without keeping count.
                os.write(self._master, b"\x1b[1;1R" * data.count(b"\x1b[6n"))
        except (BlockingIOError, OSError):
            return


async def run(state: Path, *arguments: str, stdin: bytes = b"", **environ: str) -> tuple[int, str, str]:
    """Runs `llm` with pipes; exit status, standard output and standard error."""
    process = await asyncio.create_subprocess_exec(
        *command(arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(state, **environ),
        cwd=ROOT,
    )
    async with asyncio.timeout(DEADLINE_S):
        out, err = await process.communicate(stdin)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()

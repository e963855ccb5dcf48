"""Standard output as a place to write text.

Owns the file descriptor. Invariant: when `write` returns, everything was handed to the kernel.
"""

from __future__ import annotations

import asyncio
import os
import select
from typing import Final

_POLL_S: Final = 1.0


class Screen:
    """Writes to a file descriptor without buffering, and without blocking the event loop while a reader pauses.

    Args:
        fd: where to write.
        encoding: how.

    Attributes:
        at_line_start: whether the last character written was a newline, or nothing was written.
    """

    def __init__(self, fd: int = 1, encoding: str = "utf-8") -> None:
        self.at_line_start = True
        self._fd = fd
        self._encoding = encoding

    async def write(self, text: str) -> None:
        """Writes the text.

        Raises:
            OSError: BrokenPipeError when nobody reads any more.
        """
        data = text.encode(self._encoding, errors="replace")
        while data:
            # A paused terminal or pager must not stop the answers to the server's pings.
            while not select.select([], [self._fd], [], 0)[1]:
                await asyncio.to_thread(select.select, [], [self._fd], [], _POLL_S)
            data = data[os.write(self._fd, data[: select.PIPE_BUF]) :]
        if text:
            self.at_line_start = text.endswith("\n")

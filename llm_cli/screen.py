"""Standard output, as the place where answers are shown.

Knows the scribe's socket and nothing of what is written. Invariant: when `write` returns, the text is written and
recorded.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final

import msgspec

from llm_cli.bookmark import Record
from llm_cli.scribe import NOT_RECORDED, Piece

_ERASE_LINE: Final = "\r\x1b[2K"
UNRECORDED: Final = "the state folder cannot be written; after a crash this session goes on with what is unacknowledged"


class Screen:
    """Hands pieces to the scribe. A reader who pauses, or a stopped terminal, holds up only who waits for `write`.

    Args:
        scribe: the scribe's socket.
        unrecorded: called once, when a record could not be saved.

    Attributes:
        at_line_start: whether the last character written was a newline, or nothing was written.
    """

    def __init__(self, scribe: socket.socket, *, unrecorded: Callable[[], None]) -> None:
        scribe.settimeout(0)
        self.at_line_start = True
        self._is_passing = False
        self._is_writing = False
        self._held: list[str] = []
        self._scribe = scribe
        self._unrecorded: Callable[[], None] | None = unrecorded
        self._unanswered = 0

    def passing(self, text: str) -> None:
        """Shows a line on a terminal that whatever comes next replaces; without text, only takes that line away."""
        assert self.at_line_start, "the line of an answer is not to be replaced"
        print(f"{self._begin_line()}{text}", end="", flush=True)
        self._is_passing = bool(text)

    def say(self, text: str) -> None:
        """Shows lines that are not part of an answer, after what is being written now."""
        self._held.append(text)
        if not self._is_writing:
            self._release()

    def _release(self) -> None:
        held, self._held = self._held, []
        for text in held:
            print(f"{self._begin_line()}{text}", flush=True)

    def _begin_line(self) -> str:
        """What must be printed before a line that is not part of an answer."""
        if self._is_passing:
            self._is_passing = False
            return _ERASE_LINE
        lead = "" if self.at_line_start else "\n"
        self.at_line_start = True
        return lead

    async def write(self, text: str, record: Record | None = None) -> None:
        """Writes the text and then saves the record.

        Raises:
            BrokenPipeError: nobody reads the output any more.
        """
        loop = asyncio.get_running_loop()
        if text:
            at_line_start = text.endswith("\n")
            text = (self._begin_line() if self._is_passing else "") + text
            self.at_line_start = at_line_start
        self._unanswered += 1
        self._is_writing = True
        try:
            await loop.sock_sendall(self._scribe, msgspec.json.encode(Piece(text, record)) + b"\n")
            # More than one only if an earlier wait was cancelled.
            while self._unanswered:
                answers = await loop.sock_recv(self._scribe, self._unanswered)
                if not answers:
                    raise BrokenPipeError
                self._unanswered -= len(answers)
                self._heed(answers)
        except ConnectionError:
            raise BrokenPipeError("nobody reads the output any more") from None
        finally:
            self._is_writing = False
            self._release()

    def _heed(self, answers: bytes) -> None:
        if NOT_RECORDED in answers and self._unrecorded is not None:
            unrecorded, self._unrecorded = self._unrecorded, None
            unrecorded()

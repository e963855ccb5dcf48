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
        self._scribe = scribe
        self._unrecorded: Callable[[], None] | None = unrecorded
        self._unanswered = 0

    async def write(self, text: str, record: Record | None = None) -> None:
        """Writes the text and then saves the record.

        Raises:
            BrokenPipeError: nobody reads the output any more.
        """
        loop = asyncio.get_running_loop()
        if text:
            self.at_line_start = text.endswith("\n")
        self._unanswered += 1
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

    def _heed(self, answers: bytes) -> None:
        if NOT_RECORDED in answers and self._unrecorded is not None:
            unrecorded, self._unrecorded = self._unrecorded, None
            unrecorded()

"""Frames between the server and the helper process: a length of four bytes, then that many.

Knows nothing of what is in them. Invariant: nothing is read, and no memory taken, beyond the limit that the reader
names.
"""

from __future__ import annotations

import socket
import time
from typing import Final

import msgspec

from llmws.engine_api import PromptFailed, PromptJob, PromptReady

SIGNAL: Final = b""
"""An empty frame from the helper: at its start that it is ready, after a job that it has it whole and begins."""

_HEADER_BYTES: Final = 4


class Answer(msgspec.Struct, frozen=True):
    """What a job became.

    Attributes:
        event: the renderer's answer.
        fault: where the code went wrong in an unforeseen way, for the server's log; quotes nothing of the prompt.
    """

    event: PromptReady | PromptFailed
    fault: str = ""


encode = msgspec.msgpack.Encoder().encode
decode_job = msgspec.msgpack.Decoder(PromptJob).decode
decode_answer = msgspec.msgpack.Decoder(Answer).decode


UNREADABLE: Final = (msgspec.DecodeError, ValueError, RecursionError)
"""What decoding a frame's body may raise; the last for one that is nested very deeply."""


class FrameError(Exception):
    """The other side announced a frame that is larger than may come."""


class Line:
    """One end of a connected pair of sockets.

    Both methods raise EOFError when the other side is gone, and TimeoutError at `ends_s` (of `time.monotonic`; None
    waits for ever). After any error the line is of no use.
    """

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def send(self, body: bytes, *, ends_s: float | None = None) -> None:
        """Sends a frame."""
        try:
            for part in (len(body).to_bytes(_HEADER_BYTES, "big"), body):
                self._end.settimeout(_left_s(ends_s))
                self._end.sendall(part)
        except ConnectionError:
            raise EOFError from None

    def receive(self, limit_bytes: int, *, ends_s: float | None = None) -> bytes:
        """Waits for a frame.

        Raises:
            FrameError: it has more than `limit_bytes`.
        """
        size = int.from_bytes(self._exactly(_HEADER_BYTES, ends_s), "big")
        if size > limit_bytes:
            raise FrameError(f"a frame of {size} bytes where {limit_bytes} may come")
        return self._exactly(size, ends_s)

    def close(self) -> None:
        """Closes this end; the other reads the end of the line."""
        self._end.close()

    def _exactly(self, size: int, ends_s: float | None) -> bytes:
        content = bytearray(size)
        rest = memoryview(content)
        while rest:
            self._end.settimeout(_left_s(ends_s))
            try:
                taken = self._end.recv_into(rest)
            except ConnectionError:
                taken = 0
            if taken == 0:
                raise EOFError
            rest = rest[taken:]
        return bytes(content)


def _left_s(ends_s: float | None) -> float | None:
    if ends_s is None:
        return None
    left_s = ends_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s

"""The process that writes answers to standard output, and records on disk that it did.

Killing `llm` must neither lose nor repeat a character, and within one process no order of "write" and "record" can
promise that: whoever reads the output may kill the writer between the two system calls, and often does, because the
write is what wakes the reader. So this small child does both; it has a session of its own, and ends only when all that
was handed to it is done. Should it be killed too, the next run may repeat its last piece; nothing is ever lost.

Invariant: a piece that was handed over is written and then recorded, whatever becomes of the one who handed it over.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
from collections.abc import Iterator
from typing import Final

import msgspec

from llm_cli.bookmark import Bookmark, Bookmarks, Record

WRITTEN: Final = b"."
NOT_RECORDED: Final = b"!"


class Piece(msgspec.Struct, frozen=True, omit_defaults=True):
    """Text to write, and what to record when it is written."""

    text: str = ""
    record: Record | None = None


@contextlib.contextmanager
def scribe(encoding: str) -> Iterator[socket.socket]:
    """Starts the child; the socket takes pieces, one JSON object a line, and gives one byte for each.

    To be entered before there are threads or an event loop. At the end it waits for the child.

    Args:
        encoding: of standard output; what it cannot express becomes a question mark.
    """
    mine, its = socket.socketpair()
    child = os.fork()
    if child == 0:
        mine.close()
        status = 1
        try:
            _serve(its, encoding)
            status = 0
        finally:
            # Nothing of the parent's that waits for the interpreter's end may happen twice.
            os._exit(status)
    its.close()
    try:
        with mine:
            yield mine
    finally:
        os.waitpid(child, 0)


def _serve(pieces: socket.socket, encoding: str) -> None:
    # Ctrl-C, Ctrl-Z and the end of the terminal's session are the parent's to deal with.
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.close(0)
    bookmarks = _Open(Bookmarks())
    with contextlib.suppress(OSError):  # nobody reads any more; the parent sees the socket close
        for line in pieces.makefile("rb"):
            piece = msgspec.json.decode(line, type=Piece)
            try:
                _write(1, piece.text.encode(encoding, errors="replace"))
            except OSError as error:
                if error.errno != errno.EPIPE:
                    _write(2, f"llm: standard output: {os.strerror(error.errno or 0)}\n".encode())
                return
            answer = WRITTEN if bookmarks.save(piece.record) else NOT_RECORDED
            with contextlib.suppress(OSError):
                pieces.sendall(answer)


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


class _Open:
    """Saves records, keeping the file of the last one open."""

    def __init__(self, bookmarks: Bookmarks) -> None:
        self._bookmarks = bookmarks
        self._session_id = ""
        self._bookmark: Bookmark | None = None

    def save(self, record: Record | None) -> bool:
        """Saves it, if there is one; whether that worked."""
        if record is None:
            return True
        try:
            if self._bookmark is None or record.session_id != self._session_id:
                if self._bookmark is not None:
                    self._bookmark.close()
                self._bookmark = None
                self._bookmark = self._bookmarks.open(record.session_id)
                self._session_id = record.session_id
            self._bookmark.save(record)
        except (OSError, ValueError):
            return False
        return True

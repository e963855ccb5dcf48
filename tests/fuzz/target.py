"""What is fuzzed: a function of bytes that raises where a promise is broken.

Knows neither the targets nor who drives them. Invariant: a target keeps nothing between two calls, so that an input
that breaks a promise breaks it alone and again.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

CORPUS: Final = Path(__file__).with_name("corpus")
PART: Final = b"\x1e"
"""Between the parts of an input that is several things."""


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """One promise about bytes that somebody else chose.

    Attributes:
        run: raises where the promise is broken. Returns the processor time of the longest step in nanoseconds, where an
            execution is many steps of a loop; None where it is one.
        share: of all executions, relative to the others'.
        on_loop: whether the server does this on its event loop, so that one slow input is felt by everybody.
        max_bytes: of an input.
    """

    run: Callable[[bytes], int | None]
    share: int
    on_loop: bool = True
    max_bytes: int = 4096

    @property
    def name(self) -> str:
        """How it is called on the command line, and its folder in the corpus."""
        return self.run.__name__.replace("_", "-")


def corpus_of(name: str) -> list[bytes]:
    """The committed inputs of a target, in a fixed order."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


def flooded(data: bytes, flood_bytes: int) -> bytes:
    """Its first part once, and what follows again and again."""
    head, _, body = data.partition(PART)
    return head + body * (flood_bytes // max(1, len(body)))


@functools.cache
def scratch() -> Path:
    """A folder of this process, removed at its end: in memory where there is such a place."""
    shared = Path("/dev/shm")
    place = shared if os.access(shared, os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="llmws-fuzz-", dir=place))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def check_refusal(error: Exception, *names: str) -> None:
    """What refuses a stranger's input is one printable line, fit for a log and a terminal, and names what it is."""
    assert str(error).isprintable(), error
    check_names(error, *names)


def check_names(error: Exception, *names: str) -> None:
    """A refusal names one of the things that it can be about."""
    assert not names or any(name in str(error) for name in names), error

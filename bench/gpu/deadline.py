"""The time that a run may take."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable


class Deadline:
    """What is left out when time is short is said aloud.

    Args:
        limit_s: for everything, from now on.
        clock_s: monotonic seconds.
    """

    def __init__(self, limit_s: float, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._end_s = clock_s() + limit_s

    def allows(self, what: str, needed_s: float) -> bool:
        """Whether there is time for something that takes so long at most."""
        left_s = self._end_s - self._clock_s()
        if left_s < needed_s:
            say(f"LEFT OUT: {what} takes up to {needed_s:g} s; {max(0.0, left_s):.0f} s are left")
            return False
        say(f"{what} … ({left_s:.0f} s left)")
        return True


def say(line: str) -> None:
    """Tells the person who waits; figures alone go to standard output."""
    print(line, file=sys.stderr, flush=True)

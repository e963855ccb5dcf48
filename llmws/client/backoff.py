"""How long to wait before the next attempt to connect."""

from __future__ import annotations

from collections.abc import Callable
from random import SystemRandom
from typing import Final

_uniform: Final = SystemRandom().random


class Backoff:
    """Full jitter: nothing before the first attempt, then uniform between 0 and a bound that doubles.

    Source: M. Brooker, "Exponential Backoff And Jitter" (2015): of the variants, full jitter asks least of a server
    that restarts under many clients.

    Args:
        base_s: bound before the second attempt.
        cap_s: largest bound.
        jitter: uniform on [0, 1).
    """

    def __init__(self, *, base_s: float = 0.25, cap_s: float = 10.0, jitter: Callable[[], float] = _uniform) -> None:
        self._base_s = base_s
        self._cap_s = cap_s
        self._jitter = jitter
        self._attempts = 0

    def reset(self) -> None:
        """The last connection was good: the next attempt is made at once."""
        self._attempts = 0

    def next_s(self) -> float:
        """The wait before the next attempt."""
        self._attempts += 1
        if self._attempts == 1:
            return 0.0
        # The exponent is bounded so that a client left alone for days does not compute with huge integers.
        return self._jitter() * min(self._cap_s, self._base_s * 2.0 ** min(self._attempts - 2, 32))

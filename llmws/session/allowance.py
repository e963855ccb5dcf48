"""How many requests a principal may make: a token bucket each. Invariant: never more than a minute's worth at once."""

from __future__ import annotations


class Allowance:
    """Counts requests by principal.

    Args:
        per_minute: how many may come in a minute; so many may also come at once after a minute of rest.
    """

    def __init__(self, *, per_minute: int) -> None:
        self._per_minute = per_minute
        self._left: dict[str, tuple[float, float]] = {}

    def take(self, principal: str, *, now_s: float) -> float:
        """Takes one request from what is left; if nothing is, returns in how many seconds there will be."""
        left, since_s = self._left.get(principal, (float(self._per_minute), now_s))
        left = min(self._per_minute, left + (now_s - since_s) * self._per_minute / 60)
        wait_s = max(0.0, 1 - left) * 60 / self._per_minute
        self._left[principal] = (left if wait_s else left - 1, now_s)
        return wait_s

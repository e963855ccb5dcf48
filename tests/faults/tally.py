"""Kills of a server, by kind: how many a profile makes of each, and what all clients together have heard after them.

Counts by a rule of its own, beside the model clients that fail at the first event out of place, so that a run that
failed still says how much was lost. It is for users in the test's own process; what users in processes that are killed
have seen is in journals, and `judge` judges it.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

SHARES: Final = {
    "guide model, greedy and seeded": 24,
    "guide model, one answer again and again": 6,
    "guide model, prompt being rendered": 6,
    "guide model, being loaded": 6,
    "eight sessions streaming": 60,
    "log being compacted": 50,
    "log being dropped": 35,
    "one request again and again": 28,
    "right after the end": 10,
    "starting and recovering": 30,
    "keys being rotated": 30,
    "prompt being rendered": 9,
    "idle": 6,
}
"""Of 300 kills. A real model takes seconds to come back, a script half of one."""

FIGURES: Final = ("events received", "events acknowledged", "answers cut", "drafts seen", "lost", "duplicated", "wrong")
"""In the order in which they are printed."""


class Tally:
    """What a run has done, and what came of it.

    Args:
        wanted: how many kills the run is to make; of each kind there is one at least.
    """

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self.kills: Counter[str] = Counter()
        self.heard: Counter[str] = Counter()

    def share(self, kind: str) -> int:
        """How many kills of a kind the run is to make."""
        return max(1, round(self._wanted * SHARES[kind] / sum(SHARES.values())))

    def lines(self) -> list[str]:
        """The figures, none if nothing was killed."""
        if not self.kills:
            return []
        kinds = [f"{count:6} {kind}" for kind, count in self.kills.items()]
        figures = ", ".join(f"{self.heard[name]} {name}" for name in FIGURES)
        return [f"{self.kills.total()} kills", *kinds, figures]


class Audit:
    """What one client hears of its session, set against what it has heard before."""

    def __init__(self, tally: Tally) -> None:
        self._heard = tally.heard
        self._events: dict[int, dict[str, Any]] = {}
        self._last_seq = 0
        self._floor = 0

    def hear(self, message: dict[str, Any]) -> None:
        """Counts a message from the server."""
        floor = max(self._floor, message.get("floor_seq", 0))
        self._heard["events acknowledged"] += floor - self._floor
        self._floor = floor
        if "seq" not in message or "epoch" not in message:
            return
        seq = message["seq"]
        self._heard["events received"] += 1
        self._heard["answers cut"] += message.get("code") == "resumed_after_restart"
        self._heard["lost"] += max(0, seq - self._last_seq - 1)
        self._heard["duplicated"] += seq <= self._last_seq
        self._heard["wrong"] += self._events.setdefault(seq, message) != message
        self._last_seq = max(self._last_seq, seq)

    def judge(self, text: str, expected: str) -> None:
        """Counts an answer."""
        self._heard["wrong"] += text != expected

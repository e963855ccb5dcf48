"""Streams of several owners in one batch share a device, and nothing that tells one of another."""

from __future__ import annotations

from llmws.engine.layout import Layout
from llmws.engine.scheduler import Budget, Scheduler

PROMPT = list(range(100, 140))


def computed(scheduler: Scheduler, key: str, *, owner: str) -> tuple[int, int]:
    """How many positions a prompt costs, and how many are said to have been cached."""
    scheduler.add(key, PROMPT, owner=owner, max_tokens=48, computed_apart=())
    positions = 0
    while not (plan := scheduler.plan())[0].samples:
        positions += len(plan[0].ids)
        scheduler.commit({})
    cached = scheduler.cached_tokens(key)
    scheduler.commit({key: 7})
    scheduler.free(key)
    return positions + len(plan[0].ids), cached


def test_neither_time_nor_usage_tells_what_somebody_else_has_asked() -> None:
    """A prompt guessed right answered sooner, and so was found out: CVE-2025-46570, vLLM."""
    layout = Layout((None,), ((0, 0),), 1, 1, 1, 1, 4)
    scheduler = Scheduler(layout, pages=100, budget=Budget(alone=8, beside=5), max_running=4, share_prefixes=True)
    assert computed(scheduler, "a", owner="ann") == (40, 0)
    assert computed(scheduler, "b", owner="bob") == (40, 0)
    assert computed(scheduler, "c", owner="ann") == (4, 36)

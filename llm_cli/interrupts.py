"""Ctrl-C while something runs."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def on_interrupt(*actions: Callable[[], object]) -> Iterator[None]:
    """Each Ctrl-C runs the next of `actions`, and then the last one again."""
    left = list(actions)

    def interrupted() -> None:
        (left.pop(0) if len(left) > 1 else left[0])()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)

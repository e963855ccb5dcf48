"""Ctrl-C while something runs, and being told to end."""

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


@contextlib.contextmanager
def on_termination(action: Callable[[int], object]) -> Iterator[None]:
    """The first SIGTERM or SIGHUP calls `action` with its number; a second one ends the process as it always would."""
    loop = asyncio.get_running_loop()
    # `nohup` says that the end of the terminal is not to be heeded.
    heeded = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is not signal.SIG_IGN]

    def unheeded() -> None:
        for each in heeded:
            loop.remove_signal_handler(each)

    def told(number: int) -> None:
        unheeded()
        action(number)

    for each in heeded:
        loop.add_signal_handler(each, told, each)
    try:
        yield
    finally:
        unheeded()

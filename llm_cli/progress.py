"""Progress of something long, as a bar with rate and remaining time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from llmws.client import Log


@contextlib.contextmanager
def loading() -> Iterator[Callable[[Log], None]]:
    """Shows a bar on standard output while a model loads; gives what takes its progress."""
    from rich.progress import (  # noqa: PLC0415 - the prompt does not wait for it
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (TextColumn("loading"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("", total=None)

        def show(log: Log) -> None:
            progress.update(task, completed=log.bytes or 0, total=log.total_bytes or None)

        yield show

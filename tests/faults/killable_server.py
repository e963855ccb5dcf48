"""What tests ask of a server that they kill."""

from __future__ import annotations

from typing import Protocol


class KillableServer(Protocol):
    """A server's process, on the same state after every start."""

    port: int

    @property
    def ws_url(self) -> str:
        """Where clients connect to, once it is started."""

    @property
    def token(self) -> str | None:
        """What lets users in; None where they need none."""

    def start(self) -> None:
        """Returns when it listens."""

    def kill(self) -> None:
        """`kill -9`."""

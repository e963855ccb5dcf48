"""What the doors need from the rest of the server, and what they give to it.

Owns only interfaces and the identity that passes through them. Knows no implementation.
Invariant: everything here is called on the event loop's thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import msgspec

from llmws.protocol.messages import ClientMessage, Hello
from llmws.runtime.driver import Sink

Role = Literal["metrics", "user", "admin"]
"""Each role may do what the ones before it may."""


class Identity(msgspec.Struct, frozen=True):
    """Who a credential stands for: the owner of sessions, and what it may do."""

    principal: str
    role: Role


Authenticate = Callable[[str | None], Identity | None]
"""A token, or None where the client shows none, to its identity; None refuses. Compares in constant time."""


class Sessions(Protocol):
    """Where authenticated connections lead: the `Driver`, or a fake in tests."""

    def attach(self, sink: Sink, principal: str, role: str, hello: Hello) -> int:
        """Takes a connection after its hello; returns the number that names it in the calls below."""

    def receive(self, connection: int, message: ClientMessage) -> None:
        """Takes a message of an attached connection."""

    def drained(self, connection: int) -> None:
        """The write buffer fell below its low-water mark after having been congested."""

    def detach(self, connection: int) -> None:
        """The socket is gone. Called exactly once for every `attach`."""

    @property
    def ready(self) -> bool:
        """Whether a model is loaded."""

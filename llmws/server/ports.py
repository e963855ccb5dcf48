"""What the doors need from the rest of the server, and what they give to it.

Owns only interfaces. Knows no implementation. Invariant: everything here is called on the event loop's thread, but for
`Credentials.issue`.
"""

from __future__ import annotations

from typing import Protocol

from llmws.access import Identity, Role
from llmws.protocol.messages import ClientMessage, Hello
from llmws.runtime.driver import Sink


class Credentials(Protocol):
    """What tokens stand for."""

    def identify(self, token: str | None) -> Identity | None:
        """Who shows this token, or none; None refuses. Compares in constant time."""

    def holds(self, token_id: str) -> bool:
        """Whether the token of this id has not been revoked."""

    def issue(self, identity: Identity) -> str:
        """Makes another token for this principal and role; touches files. Raises LlmwsError where it cannot."""


class Sessions(Protocol):
    """Where authenticated connections lead: the `Driver`, or a fake in tests."""

    def attach(self, sink: Sink, principal: str, role: Role, hello: Hello) -> int:
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

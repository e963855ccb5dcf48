"""Credentials that hold in memory, for doors that need some."""

from __future__ import annotations

from collections.abc import Mapping

from llmws.access import Identity


class FixedCredentials:
    """Tokens that the test chose.

    Attributes:
        tokens: each with whom it stands for; the key None: who comes without one.
        revoked: ids of tokens.
        issued: whom a token was made for.
    """

    def __init__(self, tokens: Mapping[str | None, Identity]) -> None:
        self.tokens = dict(tokens)
        self.revoked: set[str] = set()
        self.issued: list[Identity] = []

    def identify(self, token: str | None) -> Identity | None:
        identity = self.tokens.get(token, self.tokens.get(None))
        return None if identity is None or identity.token_id in self.revoked else identity

    def holds(self, token_id: str) -> bool:
        return token_id not in self.revoked

    def issue(self, identity: Identity) -> str:
        self.issued.append(identity)
        token = f"llmws_issued_{len(self.issued)}"
        self.tokens[token] = identity
        return token

"""Who may come in: where a credential is found, and what it stands for.

Invariant: `credential` is the only function that reads a token from a request.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from llmws.access import Identity
from llmws.protocol import SUBPROTOCOL
from llmws.server.codes import Codes
from llmws.server.limits import FailureLimiter, network_of
from llmws.server.ports import Credentials

BEARER_SUBPROTOCOL: Final = "llmws.bearer."
"""Prefix of the subprotocol by which a page, which cannot set headers, shows its token: base64url without padding."""


class Denied(msgspec.Struct, frozen=True):
    """No identity. `retry_after_s` is set where the address failed too often to be heard at all."""

    retry_after_s: float | None = None


def credential(
    *, authorization: Sequence[str], subprotocols: Sequence[str] = (), hello_auth: str | None = None
) -> str | None:
    """The token that a request shows: in its header, else as a subprotocol, else in the hello.

    Args:
        authorization: the values of the `Authorization` headers.
        subprotocols: those the client offers.
        hello_auth: the hello's `auth`.

    Returns:
        The token, or None. A header that comes twice counts as none.
    """
    if len(authorization) == 1:
        scheme, _, token = authorization[0].partition(" ")
        if scheme.lower() == "bearer" and token.strip():
            return token.strip()
    bearers = [offer for offer in subprotocols if offer.startswith(BEARER_SUBPROTOCOL)]
    if len(bearers) == 1:
        return _from_base64url(bearers[0].removeprefix(BEARER_SUBPROTOCOL))
    return hello_auth


def select_subprotocol(offered: Sequence[str]) -> str | None:
    """What the server echoes: the protocol's name, never a token."""
    return SUBPROTOCOL if SUBPROTOCOL in offered else None


class Authenticator:
    """Asks who a token or a one-time code stands for, and slows down an address that has failed too often.

    A valid one always comes in: it cannot be guessed, and whoever shares its address, as in a tunnel, must not be
    able to lock its owner out.
    """

    def __init__(self, credentials: Credentials, *, codes: Codes, clock: Callable[[], float]) -> None:
        self._credentials = credentials
        self._codes = codes
        self._clock = clock
        self._failures = FailureLimiter()

    def identify(self, token: str | None, address: str) -> Identity | Denied:
        """The identity of `token`, shown from `address`.

        Showing no token is no guess, so it does not count as a failure.
        """
        if token is None:
            return self._credentials.identify(None) or Denied()
        return self._credentials.identify(token) or self._failed(address)

    def redeem(self, code: str, address: str) -> Identity | Denied:
        """The identity that `code`, shown from `address`, lets in this once."""
        return self._codes.redeem(code) or self._failed(address)

    def trusts_null_origin(self, token: str | None, address: str) -> bool:
        """Whether the token in an upgrade makes up for origin `null`; never where none is required."""
        needs_token = self._credentials.identify(None) is None
        return needs_token and isinstance(self.identify(token, address), Identity)

    def _failed(self, address: str) -> Denied:
        network, now_s = network_of(address), self._clock()
        wait_s = self._failures.wait_s(network, now_s)
        if wait_s > 0:
            return Denied(retry_after_s=wait_s)
        self._failures.failed(network, now_s)
        return Denied()


def _from_base64url(text: str) -> str | None:
    """Decodes strictly: no padding, canonical, ASCII inside."""
    try:
        token = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        canonical = base64.urlsafe_b64encode(token).rstrip(b"=").decode() == text
        return token.decode("ascii") if canonical and token else None
    except (binascii.Error, ValueError):
        return None

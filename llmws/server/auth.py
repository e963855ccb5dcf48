"""Who may come in: where a credential is found, what it stands for, which role a route needs.

Invariant: `credential` is the only function that reads a token from a request, and a route without an entry in the
tables here does not exist.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal, get_args

import msgspec

from llmws.protocol import SUBPROTOCOL
from llmws.server.limits import FailureLimiter, network_of
from llmws.server.ports import Authenticate, Identity, Role

BEARER_SUBPROTOCOL: Final = "llmws.bearer."
"""Prefix of the subprotocol by which a page, which cannot set headers, shows its token: base64url without padding."""

Access = Role | Literal["open"]

HTTP_ROUTES: Final[Mapping[str, Access]] = {
    "/": "open",
    "/healthz": "open",
    "/health": "open",
    "/readyz": "open",
}
"""The least role that each HTTP path needs. A path that is missing is not served."""

WEBSOCKET_ROUTES: Final[Mapping[str, Role]] = {"/": "user", "/v1/ws": "user"}
"""The least role that a hello on each WebSocket path needs."""


class Denied(msgspec.Struct, frozen=True):
    """No identity. `retry_after_s` is set where the address failed too often to be heard at all."""

    retry_after_s: float | None = None


def permits(role: Role, needed: Access) -> bool:
    """Whether `role` is at least `needed`."""
    ranks = get_args(Role)
    return needed == "open" or ranks.index(role) >= ranks.index(needed)


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
    """Asks who a token stands for, and slows down an address that has failed too often.

    A valid token always comes in: it cannot be guessed, and whoever shares its address, as in a tunnel, must not be
    able to lock its owner out.
    """

    def __init__(self, check: Authenticate, *, clock: Callable[[], float]) -> None:
        self._check = check
        self._clock = clock
        self._failures = FailureLimiter()

    def identify(self, token: str | None, address: str) -> Identity | Denied:
        """The identity of `token`, shown from `address`.

        Showing no token is no guess, so it does not count as a failure.
        """
        if token is None:
            return self._check(None) or Denied()
        identity = self._check(token)
        if identity is not None:
            return identity
        network, now_s = network_of(address), self._clock()
        wait_s = self._failures.wait_s(network, now_s)
        if wait_s > 0:
            return Denied(retry_after_s=wait_s)
        self._failures.failed(network, now_s)
        return Denied()

    def trusts_null_origin(self, token: str | None, address: str) -> bool:
        """Whether the token in an upgrade makes up for origin `null`; never where none is required."""
        if token is None or self._check(None) is not None:
            return False
        return isinstance(self.identify(token, address), Identity)


def _from_base64url(text: str) -> str | None:
    """Decodes strictly: no padding, canonical, ASCII inside."""
    try:
        token = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        canonical = base64.urlsafe_b64encode(token).rstrip(b"=").decode() == text
        return token.decode("ascii") if canonical and token else None
    except (binascii.Error, ValueError):
        return None

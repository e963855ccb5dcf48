"""One-time codes, by which a browser on this machine signs in without anybody copying a token.

Owns their lifetime. Knows neither pages nor tokens. Invariant: a code lets in once, within ten minutes, or never.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from typing import Final

from llmws.access import Identity

LIFETIME_S: Final = 600.0
MAX_CODES: Final = 16


class Codes:
    """The codes that have not been used yet. They live in memory: a restart makes them worthless.

    Args:
        clock: seconds, monotonic.
        random: gives a code that cannot be guessed, fit for a URL.
    """

    def __init__(
        self, *, clock: Callable[[], float], random: Callable[[], str] = lambda: secrets.token_urlsafe(32)
    ) -> None:
        self._clock = clock
        self._random = random
        # By hash, so that looking one up takes a time that says nothing about how much of a guess was right.
        self._open: dict[bytes, tuple[Identity, float]] = {}

    def mint(self, identity: Identity) -> str:
        """Makes a code for `identity`; the oldest goes where there are too many."""
        while len(self._open) >= MAX_CODES:
            del self._open[next(iter(self._open))]
        code = self._random()
        self._open[_digest(code)] = (identity, self._clock() + LIFETIME_S)
        return code

    def redeem(self, code: str) -> Identity | None:
        """Whom `code` lets in; it is used up by that. None for one that was used, is too old, or never was."""
        identity, ends_s = self._open.pop(_digest(code), (None, 0.0))
        return identity if self._clock() < ends_s else None


def _digest(code: str) -> bytes:
    return hashlib.sha256(code.encode("utf-8", "surrogatepass")).digest()

"""Master keys that come and go at a word."""

from __future__ import annotations

from llmws.store.keys import KeyRing


class TurningRing(KeyRing):
    """A ring whose key file is always up to date."""

    def add(self) -> None:
        kid = self.current + 1
        self._keys = {**self._keys, kid: bytes([kid % 256]) * 32}

    def remove(self, kid: int) -> None:
        self._keys = {number: key for number, key in self._keys.items() if number != kid}

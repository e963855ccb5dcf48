"""What the scripted engine of the fault lanes says, so that everybody who asks knows what to expect."""

from __future__ import annotations


def token_text(index: int, size_bytes: int) -> str:
    """A token of that size."""
    return str(index % 10) * size_bytes


def spoken(count: int, size_bytes: int) -> str:
    """A whole answer of so many tokens."""
    return "".join(token_text(index, size_bytes) for index in range(count))

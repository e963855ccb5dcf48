"""Inputs that are nearly right: a seeded mutation of one input, perhaps with another.

Knows no target. Invariant: the result depends on the arguments alone.
"""

from __future__ import annotations

from random import Random
from typing import Final

_TELLING: Final = (
    b"",
    b"\0",
    b"\xff",
    b"\xed\xa0\x80",
    b"\x1e",
    b"\r\n",
    b'"',
    b"\\",
    b"null",
    b"-1",
    b"0",
    b"1e999",
    b"18446744073709551616",
    b"9" * 5000,
    b"[" * 40,
    b"[" * 3000,
    b'{"a":' * 1200,
    b"%2e%2e/",
    b"\xe2\x80\xae",
)
"""What readers of text and numbers stumble over."""


def mutated(data: bytes, other: bytes, random: Random, *, max_bytes: int) -> bytes:
    """`data` after one to six changes, some of which borrow from `other`."""
    changed = data
    for _ in range(random.randint(1, 6)):
        changed = _changed(changed, other, random)[:max_bytes]
    return changed


def _changed(data: bytes, other: bytes, random: Random) -> bytes:
    start = random.randint(0, len(data))
    end = min(len(data), start + random.choice((0, 1, 1, 2, 4, 16, 64)))
    match random.randrange(6):
        case 0 if start < len(data):
            return data[:start] + bytes([data[start] ^ 1 << random.randrange(8)]) + data[start + 1 :]
        case 1:
            return data[:start] + random.choice(_TELLING) + data[end:]
        case 2:
            return data[:start] + data[end:]
        case 3:
            return data[:end] + data[start:]
        case 4:
            first, second = sorted((random.randint(0, len(other)), random.randint(0, len(other))))
            return data[:start] + other[first:second] + data[end:]
        case _:
            return data[:start] + random.randbytes(end - start) + data[end:]

"""What a planted fault is."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """A planted fault: what it breaks, where, and which tests must notice."""

    breaks: str
    file: str
    before: str
    after: str
    tests: str

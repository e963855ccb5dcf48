"""Which inputs are worth keeping: those that reach code of ours that no smaller one reaches.

Knows no fuzzer. Invariant: the corpus only grows by inputs that keep every promise.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from types import FrameType
from typing import Any, Final

from tests.fuzz.target import CORPUS, Target, corpus_of

MAX_KEPT: Final = 6
MAX_KEPT_BYTES: Final = 2048
_PRODUCT: Final = str(Path(__file__).parents[2] / "llmws")

Arc = tuple[str, int, int]
"""A file of ours, and two lines of it, one run right after the other."""


def arcs_of(target: Target, data: bytes) -> set[Arc]:
    """The steps from line to line that an execution takes."""
    found: set[Arc] = set()
    last: dict[int, int] = {}

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(_PRODUCT):
            return None
        if event == "line":
            found.add((name, last.get(id(frame), 0), frame.f_lineno))
        last[id(frame)] = frame.f_lineno
        return trace

    sys.settrace(trace)
    try:
        target.run(data)
    finally:
        sys.settrace(None)
    return found


def grow(target: Target, finds: Path) -> int:
    """Adds to a target's corpus what reaches further, the smallest first; returns how many inputs that were."""
    reached: set[Arc] = set()
    for data in corpus_of(target.name):
        reached |= arcs_of(target, data)
    added = 0
    for path in sorted(finds.iterdir(), key=lambda each: each.stat().st_size):
        data = path.read_bytes()
        if added == MAX_KEPT or len(data) > MAX_KEPT_BYTES:
            break
        if new := arcs_of(target, data) - reached:
            reached |= new
            added += 1
            (CORPUS / target.name / hashlib.sha256(data).hexdigest()[:10]).write_bytes(data)
    return added

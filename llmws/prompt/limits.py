"""How much one job may take, known to both sides: the helper binds itself to it, the server enforces it.

Knows neither templates nor processes.
"""

from __future__ import annotations

from typing import Final

import msgspec

MAX_CONTENT_BYTES: Final = 4 * 2**20
"""Longest context in UTF-8, without what the template adds: at most some 4 million tokens, four seconds and 1 GiB."""

MAX_JOB_BYTES: Final = 64 * 2**20
"""Largest job that is handed over; of a conversation longer than `MAX_CONTENT_BYTES` the oldest turns are dropped."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a helper process may take.

    Attributes:
        memory_bytes: of address space. It stands at 40 MiB with a small model; a token of a prompt being made takes
            some 230 bytes, a tokenizer up to twelve times its file.
        base_s: for a job of any size: reading a large tokenizer takes seconds, a slow template ten.
        per_mib_s: for each MiB of the job. Tokenising takes 0.4 to 1.5, and is done a few times to make a
            conversation fit.
        start_s: until a new process is ready; a tenth of a second is usual.
    """

    memory_bytes: int = 2 * 2**30
    base_s: float = 20.0
    per_mib_s: float = 10.0
    start_s: float = 30.0

    def time_s(self, job_bytes: int) -> float:
        """How long a job of that size may take; what is not tokenised gives it no more time."""
        return self.base_s + self.per_mib_s * min(job_bytes, MAX_CONTENT_BYTES) / 2**20


DEFAULT_LIMITS: Final = Limits()

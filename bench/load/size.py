"""How large a run is. The figures to reach hold for the whole size only; the others show that everything works."""

from __future__ import annotations

from typing import Final

import msgspec


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """How large a run is.

    Attributes:
        connections: open at once, of good clients and of hostile ones.
        churners: clients that come and go.
        comings: how often each of them does in a round.
        rounds: of coming and going; memory is compared from the second one on.
        newcomers: that ask for a first token beside each crowd.
        measured_s: for which tokens are watched.
        hello_timeout_s: of the server, for those who say none.
    """

    connections: int
    churners: int
    comings: int
    rounds: int
    newcomers: int
    measured_s: float
    hello_timeout_s: float


WHOLE: Final = Size(
    connections=1_000, churners=80, comings=200, rounds=5, newcomers=40, measured_s=5.0, hello_timeout_s=10.0
)
SMALL: Final = Size(connections=100, churners=8, comings=20, rounds=3, newcomers=5, measured_s=1.0, hello_timeout_s=1.0)

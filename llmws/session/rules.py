"""What holds of every session, from the configuration."""

from __future__ import annotations

from typing import Literal

import msgspec

Durability = Literal["os", "disk"]


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What holds of every session.

    Attributes:
        durability: what an event must survive before it is sent.
        max_unacknowledged_bytes, max_unacknowledged_events: with more than that a session generates nothing.
        compact_bytes: fewer bytes of acknowledged events are not worth writing the rest of the log anew.
        tail_bytes: sendable frames kept in memory for connections that are about level; the others are served from the
            file.
        burst_bytes: given to a connection, or read for it, at a time.
    """

    durability: Durability = "os"
    max_unacknowledged_bytes: int = 16 * 2**20
    max_unacknowledged_events: int = 65_536
    compact_bytes: int = 64 * 1024
    tail_bytes: int = 64 * 1024
    burst_bytes: int = 64 * 1024
